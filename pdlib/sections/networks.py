"""Networks: the keywords of the builders in pdlib.networks."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt

from pdlib.sections.base import Count, Counts, NonNegative, Norm, Section, Share, Whole


class Channels(Section):
    in_channels: Count
    out_channels: Count
    channels: Counts


class AttentionUNet(Channels):
    strides: Counts
    dropout: Share


class PlainUNet(Channels):
    strides: Counts
    num_res_units: Whole
    norm: Norm


class UNet(PlainUNet):
    dropout: Share


class UNetPlusPlus(Channels):
    channels: Annotated[tuple[Count, ...], Field(min_length=6, max_length=6)]
    norm: Norm
    dropout: Share


class BayesianUNet(UNet):
    dropout_from: Whole  # the first level that keeps its dropout, counted from 0


class ProbabilisticUNet(PlainUNet):
    block_convolutions: Count
    latent: Count
    log_sigma_range: tuple[StrictFloat, StrictFloat]
    combination_layers: Annotated[StrictInt, Field(ge=1)]  # the first sees the code
    code_gain: NonNegative  # of its first weights, times He's


class ConditionalGan(PlainUNet):
    noise_scales: Counts  # pixels: how wide each number of a map of Gaussian numbers is, one map each
    discriminator_channels: Counts
    discriminator_strides: Counts


class GuidedUNet(Section):
    in_channels: Count
    out_channels: Count
    model_channels: Count
    channel_mult: Counts
    num_res_blocks: Count
    attention_downsample: tuple[Count, ...]
    num_heads: Count
    scale_shift: StrictBool
    dropout: Share


class MaskAutoencoder(Section):
    classes: Count
    factor: Literal[1, 2, 4]  # between the grids of mask and code
    latent_channels: Count
    channels: Counts


class NoiseLevel(Section):
    in_channels: Count
    channels: Counts

"""The denoising network: the guided-diffusion U-Net (Dhariwal & Nichol 2021, arXiv 2105.05233, appendix A).

Modules are named as in openai/guided-diffusion, so a state dict of that family loads strictly. Class labels
(`label_emb`) are left out: a segmentation has none. Activations keep the memory format of the input; for speed pass
channels_last tensors, and convert the network by `.to(memory_format=torch.channels_last)`.

A residual block returns its branch and its skip without adding them. The next block's norm adds and normalises in one
pass over the memory (`GroupNormSiLU.add_and_norm`); where no norm follows, `Stage` adds them.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pdlib.kernels import ops

NORM_GROUPS = 32  # at every width


def timestep_embedding(t: Tensor, channels: int) -> Tensor:
    """Sinusoids of the step index (Vaswani et al. 2017), cosines first. [N] -> [N, channels] float32."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t.float()[:, None] * frequencies  # [N, channels / 2]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class GroupNormSiLU(nn.GroupNorm):
    """Group normalisation with moments in float32, then SiLU if `silu`; dtype and memory format stay."""

    def __init__(self, channels: int, silu: bool = True):
        super().__init__(NORM_GROUPS, channels)
        self.silu = silu

    def forward(self, x: Tensor, shift: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """norm(x + shift), or with a scale norm(x) * (1 + scale) + shift; then SiLU. x: [N, C, H, W], others [N, C]."""
        if scale is None:
            return self.add_and_norm(x, None, shift)[0]
        h = F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps)
        h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return (F.silu(h) if self.silu else h).to(x.dtype)

    def add_and_norm(self, x: Tensor, residual: Tensor | None, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The norm of x + residual + shift with SiLU, and the sum x + residual (x itself without a residual)."""
        return ops.group_norm_silu(
            x,
            self.weight,
            self.bias,
            groups=self.num_groups,
            eps=self.eps,
            silu=self.silu,
            shift=shift,
            residual=residual,
        )


def _zero(module: nn.Module) -> nn.Module:
    """Set all parameters to zero: a branch whose last layer is zero adds nothing when training starts."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _conv3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)


def _downsample(channels: int) -> nn.Module:
    return nn.Sequential(OrderedDict(op=_conv3(channels, channels, stride=2)))


class Upsample(nn.Module):
    """Repeat every pixel in a 2 x 2 square, then convolve."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = _conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2))

    def folded(self) -> nn.ConvTranspose2d:
        """The same map as one transposed convolution, which needs 16 products per pixel of x instead of 36.

        A 3 x 3 kernel on the upsampled image meets a pixel of x several times: those weights are added up beforehand.
        """
        channels = self.conv.in_channels
        flipped = self.conv.weight.double().transpose(0, 1).flip(2, 3)
        corners = [F.pad(flipped, (left, 1 - left, top, 1 - top)) for left in (0, 1) for top in (0, 1)]
        where = {"device": self.conv.weight.device, "dtype": self.conv.weight.dtype}
        layer = nn.utils.skip_init(nn.ConvTranspose2d, channels, channels, 4, stride=2, padding=1, **where)
        layer.load_state_dict({"weight": sum(corners), "bias": self.conv.bias})
        return layer.requires_grad_(self.conv.weight.requires_grad)


class ResBlock(nn.Module):
    """Two convolutions on a branch, and a skip beside it; the time embedding enters between the convolutions.

    Args:
        emb_channels: width of the time embedding.
        scale_shift: the embedding scales and shifts the second norm's output; otherwise it is added before that norm.
        resample: changes the resolution of branch (before its first convolution) and skip, without parameters.
    """

    def __init__(self, in_channels, out_channels, emb_channels, *, scale_shift, dropout, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample or nn.Identity()
        # The identities take the places of guided-diffusion's SiLU, so that the names in the state dict agree.
        self.in_layers = nn.Sequential(GroupNormSiLU(in_channels), nn.Identity(), _conv3(in_channels, out_channels))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels * (2 if scale_shift else 1)))
        self.out_layers = nn.Sequential(
            GroupNormSiLU(out_channels), nn.Identity(), nn.Dropout(dropout), _zero(_conv3(out_channels, out_channels))
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, residual: Tensor | None, modulation: Tensor) -> tuple[Tensor, Tensor]:
        """Branch and skip of x + residual, not yet added. modulation: output of `emb_layers`, [N, C or 2C]."""
        norm, _, conv = self.in_layers
        y, x = norm.add_and_norm(x, residual)
        h = conv(self.resample(y))
        norm, _, dropout, conv = self.out_layers
        h = norm(h, *reversed(modulation.chunk(2, dim=1))) if self.scale_shift else norm(h, modulation)
        return conv(dropout(h)), self.skip_connection(self.resample(x))


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, with a skip.

    The output channels of `qkv` are ordered (head, q|k|v, channel), or (q|k|v, head, channel) if `new_attention_order`.
    """

    def __init__(self, channels: int, *, num_heads: int, new_attention_order: bool):
        super().__init__()
        self.num_heads, self.new_attention_order = num_heads, new_attention_order
        self.norm = GroupNormSiLU(channels, silu=False)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = _zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Branch and skip of x + residual, not yet added."""
        y, x = self.norm.add_and_norm(x, residual)
        tokens = y.flatten(2).transpose(1, 2)  # [N, L, C], a view of a channels_last tensor
        qkv = F.linear(tokens, self.qkv.weight[..., 0], self.qkv.bias)
        if self.new_attention_order:
            q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = qkv.unflatten(2, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)  # each [N, heads, L, C / heads]
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [N, L, C]
        h = F.linear(h, self.proj_out.weight[..., 0], self.proj_out.bias)
        return h.transpose(1, 2).unflatten(2, x.shape[2:]), x


class Stage(nn.Sequential):
    """Layers in a row. A layer that is no block, and the end, get branch and skip added."""

    def forward(self, x: Tensor, modulations: Iterator[Tensor]) -> Tensor:
        """Apply the layers; each residual block takes the next of the modulations."""
        residual = None
        for layer in self:
            if isinstance(layer, ResBlock):
                x, residual = layer(x, residual, next(modulations))
            elif isinstance(layer, AttentionBlock):
                x, residual = layer(x, residual)
            else:
                x, residual = layer(x if residual is None else x + residual), None
        return x if residual is None else x + residual


class GuidedUNet(nn.Module):
    """Predict eps, v or x_start from [image, x_t] and the step index.

    Args:
        in_channels, out_channels: of [image, x_t]; of x_t, or twice as many to choose the variance too.
        model_channels: the unit of width; every width must be a multiple of 32.
        channel_mult: the width of each level in that unit; a level has half the resolution of the level before.
        num_res_blocks: per level.
        attention_downsample: the down-factors (1, 2, 4, ...) of the levels with attention.
        num_heads: of the attention; num_head_channels, where given, fixes the width of a head instead.
        scale_shift, resblock_updown, new_attention_order: variants of guided-diffusion's published weights.
        dropout: in residual blocks.
        middle_attention: whether the middle block attends.

    ValueError for numbers that do not fit together.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attention_downsample: Sequence[int],
        num_heads: int,
        scale_shift: bool,
        dropout: float,
        num_head_channels: int | None = None,
        resblock_updown: bool = False,
        new_attention_order: bool = False,
        middle_attention: bool = True,
    ):
        super().__init__()
        widths = [int(model_channels * mult) for mult in channel_mult]
        factors = [2**level for level in range(len(widths))]
        if bad := [width for width in (model_channels, *widths) if width % NORM_GROUPS]:
            raise ValueError(f"channel width {bad[0]} is not a multiple of {NORM_GROUPS}")
        if bad := sorted(set(attention_downsample) - set(factors)):
            raise ValueError(f"attention_downsample {bad[0]} is not a down-factor of this network: {factors}")
        self.model_channels, self.factor = model_channels, factors[-1]
        emb_channels = 4 * model_channels

        def res(inputs, outputs, resample=None):
            return ResBlock(inputs, outputs, emb_channels, scale_shift=scale_shift, dropout=dropout, resample=resample)

        def attention(width):
            if width % (num_head_channels or num_heads):
                raise ValueError(f"width {width} does not divide into equal heads")
            heads = width // num_head_channels if num_head_channels else num_heads
            return AttentionBlock(width, num_heads=heads, new_attention_order=new_attention_order)

        def stage(inputs, width, factor):
            attends = factor in attention_downsample
            return Stage(res(inputs, width), attention(width)) if attends else Stage(res(inputs, width))

        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        channels = widths[0]
        self.input_blocks = nn.ModuleList([Stage(_conv3(in_channels, channels))])
        skips = [channels]  # widths of what the output blocks take from the input blocks, last in, first out
        for factor, width in zip(factors, widths, strict=True):
            for _ in range(num_res_blocks):
                self.input_blocks.append(stage(channels, width, factor))
                channels = width
                skips.append(channels)
            if factor != self.factor:
                down = res(channels, channels, nn.AvgPool2d(2)) if resblock_updown else _downsample(channels)
                self.input_blocks.append(Stage(down))
                skips.append(channels)

        middle = attention(channels) if middle_attention else nn.Identity()
        self.middle_block = Stage(res(channels, channels), middle, res(channels, channels))

        self.output_blocks = nn.ModuleList()
        for factor, width in zip(reversed(factors), reversed(widths), strict=True):
            for _ in range(num_res_blocks + 1):
                self.output_blocks.append(stage(channels + skips.pop(), width, factor))
                channels = width
            if factor != 1:
                up = res(channels, channels, nn.Upsample(scale_factor=2)) if resblock_updown else Upsample(channels)
                self.output_blocks[-1].append(up)

        self.out = nn.Sequential(GroupNormSiLU(channels), nn.Identity(), _zero(_conv3(channels, out_channels)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Apply the network at step indices t, [N] integer or float. [N, in, H, W] -> [N, out, H, W].

        ValueError unless H and W are multiples of `self.factor`.
        """
        return self.denoise(x, self.modulations(t))

    def modulations(self, t: Tensor) -> list[Tensor]:
        """Embed step indices t [N] for each residual block, in the order of the blocks: [N, C or 2C] each."""
        sinusoids = timestep_embedding(t, self.model_channels).to(self.time_embed[0].weight.dtype)
        emb = self.time_embed(sinusoids)  # [N, 4 * model_channels]
        return [block.emb_layers(emb) for block in self.modules() if isinstance(block, ResBlock)]

    def denoise(self, x: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """Apply the network to [N, in, H, W] with the embedded step indices that `modulations` returned."""
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(f"image of {x.shape[-2]} x {x.shape[-1]} pixels: pad it to a multiple of {self.factor}")
        modulations = iter(modulations)
        h, skips = x, []
        for stage in self.input_blocks:
            h = stage(h, modulations)
            skips.append(h)
        h = self.middle_block(h, modulations)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), modulations)
        return self.out(h)

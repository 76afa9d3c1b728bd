import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pdlib.networks.guided_unet import GuidedUNet, Upsample

PAPER = dict(
    in_channels=3,
    out_channels=1,
    model_channels=128,
    channel_mult=(1, 1, 2, 2, 4, 4),
    num_res_blocks=2,
    attention_downsample=(16,),
    num_heads=1,
    scale_shift=False,
    dropout=0.0,
)
SMALL = PAPER | dict(model_channels=32, channel_mult=(1, 2, 2), num_res_blocks=1, attention_downsample=(2,))


def random_unet(**options):
    """A small network in which no parameter is zero or one, as trained weights are."""
    torch.manual_seed(0)
    network = GuidedUNet(**SMALL | options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.1) if parameter.ndim > 1 else parameter.uniform_(-0.5, 1.0)
    return network


def random_input():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 16, 24, generator=generator), torch.tensor([3.0, 712.5])


# --- the same architecture in another library -----------------------------------------------------------------------


def to_diffusers(state, *, options):
    """Rename a guided-diffusion state dict to the names of diffusers' UNet2DModel."""
    levels, blocks = len(options["channel_mult"]), options["num_res_blocks"]
    out = {}

    def copy(new, old):
        for kind in ("weight", "bias"):
            out[f"{new}.{kind}"] = state[f"{old}.{kind}"]

    def copy_res(new, old):
        copy(f"{new}.norm1", f"{old}.in_layers.0")
        copy(f"{new}.conv1", f"{old}.in_layers.2")
        copy(f"{new}.time_emb_proj", f"{old}.emb_layers.1")
        copy(f"{new}.norm2", f"{old}.out_layers.0")
        copy(f"{new}.conv2", f"{old}.out_layers.3")
        if f"{old}.skip_connection.weight" in state:
            copy(f"{new}.conv_shortcut", f"{old}.skip_connection")

    def copy_attention(new, old):
        copy(f"{new}.group_norm", f"{old}.norm")
        for kind in ("weight", "bias"):
            qkv = state[f"{old}.qkv.{kind}"].flatten(1) if kind == "weight" else state[f"{old}.qkv.{kind}"]
            channels = len(qkv) // 3
            heads = channels // options["num_head_channels"] if options.get("num_head_channels") else 1
            if options.get("new_attention_order"):
                q, k, v = qkv[:channels], qkv[channels : 2 * channels], qkv[2 * channels :]
            else:
                per_head = [head.chunk(3) for head in qkv.chunk(heads)]
                q, k, v = (torch.cat(parts) for parts in zip(*per_head, strict=True))
            out[f"{new}.to_q.{kind}"], out[f"{new}.to_k.{kind}"], out[f"{new}.to_v.{kind}"] = q, k, v
            out[f"{new}.to_out.0.{kind}"] = state[f"{old}.proj_out.{kind}"].reshape(q.shape)

    def copy_resampler(new, old, name):
        if options.get("resblock_updown"):
            copy_res(new, old)
        else:
            copy(f"{new}.conv", f"{old}.{name}")

    copy("time_embedding.linear_1", "time_embed.0")
    copy("time_embedding.linear_2", "time_embed.2")
    copy("conv_in", "input_blocks.0.0")
    index = 1
    for level in range(levels):
        for block in range(blocks):
            copy_res(f"down_blocks.{level}.resnets.{block}", f"input_blocks.{index}.0")
            if f"input_blocks.{index}.1.norm.weight" in state:
                copy_attention(f"down_blocks.{level}.attentions.{block}", f"input_blocks.{index}.1")
            index += 1
        if level < levels - 1:
            copy_resampler(f"down_blocks.{level}.downsamplers.0", f"input_blocks.{index}.0", "op")
            index += 1
    copy_res("mid_block.resnets.0", "middle_block.0")
    copy_attention("mid_block.attentions.0", "middle_block.1")
    copy_res("mid_block.resnets.1", "middle_block.2")
    index = 0
    for level in range(levels):
        for block in range(blocks + 1):
            copy_res(f"up_blocks.{level}.resnets.{block}", f"output_blocks.{index}.0")
            attends = f"output_blocks.{index}.1.norm.weight" in state
            if attends:
                copy_attention(f"up_blocks.{level}.attentions.{block}", f"output_blocks.{index}.1")
            index += 1
        if level < levels - 1:
            old = f"output_blocks.{index - 1}.{2 if attends else 1}"
            copy_resampler(f"up_blocks.{level}.upsamplers.0", old, "conv")
    copy("conv_norm_out", "out.0")
    copy("conv_out", "out.2")
    return out


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(num_res_blocks=2, scale_shift=True, channel_mult=(1, 2)),
        dict(num_head_channels=16),
        dict(num_head_channels=16, new_attention_order=True),
        dict(num_head_channels=16, scale_shift=True, resblock_updown=True, attention_downsample=(2, 4)),
    ],
)
def test_agrees_with_diffusers(options):
    unet_2d = pytest.importorskip("diffusers.models.unets.unet_2d")
    options = SMALL | options
    attends = [2**level in options["attention_downsample"] for level in range(len(options["channel_mult"]))]
    resnet = options.get("resblock_updown", False)
    down, up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resnet else ("DownBlock2D", "UpBlock2D")
    theirs = unet_2d.UNet2DModel(
        in_channels=3,
        out_channels=1,
        block_out_channels=[options["model_channels"] * mult for mult in options["channel_mult"]],
        layers_per_block=options["num_res_blocks"],
        down_block_types=["AttnDownBlock2D" if here else down for here in attends],
        up_block_types=["AttnUpBlock2D" if here else up for here in reversed(attends)],
        downsample_type="resnet" if resnet else "conv",
        upsample_type="resnet" if resnet else "conv",
        resnet_time_scale_shift="scale_shift" if options["scale_shift"] else "default",
        attention_head_dim=options.get("num_head_channels"),
        attn_norm_num_groups=32,
    ).eval()
    ours = random_unet(**options)
    theirs.load_state_dict(to_diffusers(ours.state_dict(), options=options), strict=True)
    x, t = random_input()
    with torch.no_grad():
        expected, got = theirs(x, t).sample, ours(x, t)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


# --- the state dict of openai/guided-diffusion -----------------------------------------------------------------------

RES = "in_layers.0 in_layers.2 emb_layers.1 out_layers.0 out_layers.3".split()
RES_SKIP = [*RES, "skip_connection"]
ATTENTION = "norm qkv proj_out".split()


def keys(layers):
    return {
        f"{prefix}.{name}.{kind}".replace("..", ".")
        for prefix, names in layers.items()
        for name in names
        for kind in ("weight", "bias")
    }


# model_channels 32, channel_mult (1, 2), num_res_blocks 1, attention at 2.
LITERAL = {
    "time_embed": ["0", "2"],
    "input_blocks.0": ["0"],
    "input_blocks.1.0": RES,
    "input_blocks.3.0": RES_SKIP,
    "input_blocks.3.1": ATTENTION,
    "middle_block.0": RES,
    "middle_block.1": ATTENTION,
    "middle_block.2": RES,
    "output_blocks.0.0": RES_SKIP,
    "output_blocks.0.1": ATTENTION,
    "output_blocks.1.0": RES_SKIP,
    "output_blocks.1.1": ATTENTION,
    "output_blocks.2.0": RES_SKIP,
    "output_blocks.3.0": RES_SKIP,
    "out": ["0", "2"],
}


@pytest.mark.parametrize(
    "resblock_updown, resamplers",
    [
        (False, {"input_blocks.2.0": ["op"], "output_blocks.1.2": ["conv"]}),
        (True, {"input_blocks.2.0": RES, "output_blocks.1.2": RES}),
    ],
)
def test_state_dict_has_the_names_of_guided_diffusion(resblock_updown, resamplers):
    network = random_unet(channel_mult=(1, 2), resblock_updown=resblock_updown)
    assert set(network.state_dict()) == keys(LITERAL | resamplers)


def test_state_dict_has_the_shapes_of_guided_diffusion():
    state = random_unet(channel_mult=(1, 2), scale_shift=True).state_dict()
    shapes = {
        "time_embed.0.weight": (128, 32),
        "input_blocks.0.0.weight": (32, 3, 3, 3),
        "input_blocks.2.0.op.weight": (32, 32, 3, 3),
        "input_blocks.3.0.emb_layers.1.weight": (128, 128),  # scale and shift: twice the width
        "input_blocks.3.0.skip_connection.weight": (64, 32, 1, 1),
        "middle_block.1.qkv.weight": (192, 64, 1),
        "middle_block.1.proj_out.weight": (64, 64, 1),
        "output_blocks.0.0.in_layers.2.weight": (64, 128, 3, 3),
        "output_blocks.1.2.conv.weight": (64, 64, 3, 3),
        "output_blocks.2.0.in_layers.0.weight": (96,),
        "out.2.weight": (1, 32, 3, 3),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


# --- size and cost ---------------------------------------------------------------------------------------------------


def test_paper_preset_has_the_printed_size_and_cost():
    with torch.device("meta"):
        network = GuidedUNet(**PAPER)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, 3, 128, 192), torch.empty(1))
    assert sum(parameter.numel() for parameter in network.parameters()) == 113_670_913
    assert counter.get_total_flops() / 2 == pytest.approx(93.1e9, abs=0.05e9)
    assert network.factor == 32


# --- behaviour -------------------------------------------------------------------------------------------------------


def test_starts_at_zero_and_every_parameter_learns():
    x, t = random_input()
    assert not GuidedUNet(**SMALL)(x, t).any()
    network = random_unet()
    network(x, t).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_step_index_may_be_integer_or_float_and_matters():
    network, (x, _) = random_unet(), random_input()
    with torch.no_grad():
        integer, later = network(x, torch.tensor([5, 5])), network(x, torch.tensor([6, 6]))
        torch.testing.assert_close(network(x, torch.tensor([5.0, 5.0])), integer, rtol=0, atol=0)
    assert (integer - later).abs().max() > 1e-3


def test_memory_format_and_autocast_change_the_speed_only():
    network, (x, t) = random_unet(scale_shift=True), random_input()
    with torch.no_grad():
        expected = network(x, t)
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(network(x, t), expected, rtol=1e-5, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x, t)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 0.05 * expected.norm()


def test_norm_and_silu_run_in_float32_and_round_once():
    norm = random_unet().out[0]
    x = 5 + torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    got = norm(x)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, norm(x.float()).bfloat16())


@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_folded_upsampling_is_the_same_map_for_fewer_products(size):
    upsample = Upsample(3).double()
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(6)).double()
    folded = upsample.folded()
    with torch.no_grad(), FlopCounterMode(display=False) as plain:
        expected = upsample(x)
    with torch.no_grad(), FlopCounterMode(display=False) as fewer:
        found = folded(x)
    torch.testing.assert_close(found, expected)
    assert fewer.get_total_flops() * 36 == plain.get_total_flops() * 16


def test_attention_can_leave_the_middle():
    names = random_unet(middle_attention=False, attention_downsample=()).state_dict()
    assert not [name for name in names if "qkv" in name]
    assert "middle_block.2.in_layers.0.weight" in names


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(model_channels=48), "width 48 is not a multiple of 32"),
        (dict(attention_downsample=(3,)), r"attention_downsample 3 is not a down-factor of this network: \[1, 2, 4\]"),
        (dict(num_heads=3), "width 64 does not divide into equal heads"),
    ],
)
def test_refuses_an_impossible_architecture(options, message):
    with pytest.raises(ValueError, match=message):
        GuidedUNet(**SMALL | options)


def test_refuses_an_image_that_is_not_padded():
    network, (x, t) = random_unet(), random_input()
    assert network.factor == 4
    with pytest.raises(ValueError, match="image of 14 x 24 pixels: pad it to a multiple of 4"):
        network(x[:, :, :14], t)

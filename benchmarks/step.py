"""What one slice costs in one step of the chain: ours beside two libraries, each at several public settings.

All have the same width, depth, attention, batch and rule of the steps. The libraries' networks hold weights of their
own: the output of each candidate and the end of its chain are checked against the same network in float32 (ours and the
reference against the reference). The table also gives each network's parameters and operations.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import DEVICE, PRESET, compare, matmul_flops, relative_error, save, settings
from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.formulas import step_weights
from pdlib.diffusion.sampler import Chain, Diffusion, Sampler
from pdlib.diffusion.schedule import build_schedule
from pdlib.kernels import noise, reference
from pdlib.networks.guided_unet import GroupNormSiLU, GuidedUNet
from pdlib.networks.prepared import PreparedDenoiser

T = 1000
BATCH = 80 if PRESET == "paper" else 16
STEPS = 10 if PRESET == "paper" else 2  # of a call that is timed
CHAIN = Chain("given", "one_step", 300, STEPS, "ddpm", 1.0, "consistent", t_stop=300 - STEPS)  # its first steps
INDICES = CHAIN.indices
SCHEDULE = build_schedule("cosine", steps=T, offset=0.008, max_beta=0.999)
DIFFUSION = Diffusion(SCHEDULE, build_codec("zero_one"), "eps")
TOLERANCE = 0.03  # of an output in bfloat16, relative to float32
STATE_TOLERANCE = 5e-4  # of a chain's state: so near its start a wrong output moves it by ten times this


def randomise(network: nn.Module) -> nn.Module:
    """Replace the zeros of an untrained network by random weights; on the device."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=(0.5 / parameter[0].numel()) ** 0.5)
    return network.to(DEVICE).eval().requires_grad_(False)


def build_monai(options: dict) -> nn.Module:
    from monai.networks.nets import DiffusionModelUNet

    widths = [options["model_channels"] * mult for mult in options["channel_mult"]]
    return DiffusionModelUNet(
        spatial_dims=2,
        in_channels=options["in_channels"],
        out_channels=options["out_channels"],
        channels=widths,
        num_res_blocks=options["num_res_blocks"],
        attention_levels=[2**level in options["attention_downsample"] for level in range(len(widths))],
        num_head_channels=widths,
        use_flash_attention=True,
    )


def build_diffusers(options: dict) -> nn.Module:
    from diffusers import UNet2DModel

    attends = [2**level in options["attention_downsample"] for level in range(len(options["channel_mult"]))]
    return UNet2DModel(
        in_channels=options["in_channels"],
        out_channels=options["out_channels"],
        block_out_channels=[options["model_channels"] * mult for mult in options["channel_mult"]],
        layers_per_block=options["num_res_blocks"],
        down_block_types=["AttnDownBlock2D" if here else "DownBlock2D" for here in attends],
        up_block_types=["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)],
        attention_head_dim=None,
        attn_norm_num_groups=32,
    )


def scheduler_of(system: str):
    """The library's own ancestral sampler on our schedule."""
    if system == "MONAI":
        from monai.networks.schedulers import DDPMScheduler

        made = DDPMScheduler(num_train_timesteps=T, variance_type="fixed_large", clip_sample=True)
        made.betas, made.alphas = SCHEDULE.betas.float(), (1 - SCHEDULE.betas).float()
        made.alphas_cumprod = SCHEDULE.alphas_cumprod.float()
        return made
    from diffusers import DDPMScheduler

    return DDPMScheduler(T, trained_betas=SCHEDULE.betas.numpy(), variance_type="fixed_large", clip_sample=True)


def library_chain(
    system: str, network: nn.Module, setting: str, indices: Sequence[int] = INDICES
) -> tuple[Callable, Callable]:
    """The network as (x, t) -> output, and the chain that a user of the library would write."""
    scheduler, dtype = scheduler_of(system), torch.bfloat16 if "half" in setting else torch.float32
    network = copy.deepcopy(network).to(dtype)
    if "channels-last" in setting:
        network = network.to(memory_format=torch.channels_last)
    mode = "reduce-overhead" if DEVICE.type == "cuda" else "default"  # on a GPU with CUDA graphs
    called = torch.compile(network, mode=mode) if "compiled" in setting else network
    layout = torch.channels_last if "channels-last" in setting else torch.contiguous_format

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled="autocast" in setting):
            output = called(x.to(dtype, memory_format=layout), t)
        return (output if torch.is_tensor(output) else output.sample).float()

    def chain(image: Tensor, x: Tensor) -> Tensor:
        for t in indices:
            output = denoise(torch.cat([image, x], dim=1), torch.full((len(x),), t, device=DEVICE))
            stepped = scheduler.step(output, t, x)
            x = stepped[0] if isinstance(stepped, tuple) else stepped.prev_sample
        return x

    return denoise, chain


def reference_add_and_norm(norm: GroupNormSiLU, x: Tensor, residual: Tensor | None, shift: Tensor | None = None):
    """`GroupNormSiLU.add_and_norm` by the reference alone."""
    how = (norm.num_groups, norm.eps, norm.silu, shift, residual)
    return reference.group_norm_silu(x, norm.weight, norm.bias, *how)


def reference_chain(network: GuidedUNet, setting: str, streams: noise.Streams) -> tuple[Callable, Callable]:
    """guided-diffusion's loop: the plain network, the steps in plain torch, nothing kept from step to step."""
    network = copy.deepcopy(network)
    for norm in (one for one in network.modules() if isinstance(one, GroupNormSiLU)):
        norm.add_and_norm = partial(reference_add_and_norm, norm)
    denoise, _ = library_chain("diffusers", network, setting)
    t = torch.tensor(INDICES)
    weights = step_weights(SCHEDULE, t, t - 1, "eps", "ddpm", 1.0).to(DEVICE, torch.float32)

    def chain(image: Tensor, x: Tensor) -> Tensor:
        for t, row in zip(INDICES, weights, strict=True):
            output = denoise(torch.cat([image, x], dim=1), torch.full((len(x),), t, device=DEVICE))
            fresh = noise.normal(streams, t, *x.shape[1:])
            x = reference.reverse_step(x, output, row.expand(len(x), 7), fresh, DIFFUSION.codec.clamp)
        return x

    return denoise, chain


def our_chain(network: GuidedUNet, setting: str, streams: noise.Streams) -> tuple[Callable, Callable]:
    """`Sampler.reverse_chain` with a prepared network."""
    prepared = PreparedDenoiser(network, T, "bf16-mixed" if "half" in setting else "32-true")
    if "compiled" in setting:
        prepared.network.denoise = torch.compile(prepared.network.denoise)
    return prepared, partial(Sampler(prepared, DIFFUSION, CHAIN).reverse_chain, streams=streams)


LIBRARIES = {"diffusers": build_diffusers, "MONAI": build_monai}
EAGER = ("float32", "autocast", "autocast, channels-last", "half", "half, channels-last")
LIBRARY = (*EAGER, "half, channels-last, compiled")
CANDIDATES = {
    "reference": EAGER,
    "pdlib": ("float32", "half", "half, compiled"),
    "diffusers": LIBRARY,
    "MONAI": LIBRARY,
}


@torch.inference_mode()
def main() -> None:
    options, size, _ = settings()
    streams = noise.subject_streams(0, "bench", torch.arange(BATCH), torch.zeros(BATCH, dtype=torch.int64)).to(DEVICE)
    image, x = (torch.randn(BATCH, channels, *size, device=DEVICE) for channels in (2, 1))
    t = torch.full((BATCH,), INDICES[0], device=DEVICE)
    ours = randomise(GuidedUNet(**options))
    networks = {"reference": ours, "pdlib": ours}
    networks |= {system: randomise(build(options)) for system, build in LIBRARIES.items()}
    chains, about, expected, operations = {}, [], {}, {}
    for system, network in networks.items():
        for setting in CANDIDATES[system]:
            if system == "pdlib":
                denoise, chain = our_chain(network, setting, streams)
            elif system == "reference":
                denoise, chain = reference_chain(network, setting, streams)
            else:
                denoise, chain = library_chain(system, network, setting)
            torch.manual_seed(0)  # the libraries draw from the global generator
            found = denoise(torch.cat([image, x], dim=1), t).clone(), chain(image, x).clone()
            exact = expected.setdefault(network, found)
            if system not in operations:
                with FlopCounterMode(display=False) as counter:
                    denoise(torch.cat([image, x], dim=1), t)
                operations[system] = counter.get_total_flops() / BATCH
            error, state_error = (relative_error(*pair) for pair in zip(found, exact, strict=True))
            millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
            row = {"system": system, "setting": setting, "million_parameters": millions}
            row |= {"gflop": operations[system] / 1e9, "error": error, "state_error": state_error}
            about.append(row)
            if error <= TOLERANCE and state_error <= STATE_TOLERANCE:
                chains[f"{system}: {setting}"] = partial(chain, image, x)
    times = compare(chains) / (BATCH * STEPS)
    table = pd.DataFrame(about)
    table.index = table.system + ": " + table.setting
    table = table.join(times)  # a wrong candidate has no time
    table["tflops"] = table.gflop / table.median_s / 1e3
    table["share_of_matmul"] = table.tflops * 1e12 / matmul_flops()
    table["batch"], table["height"], table["width"] = BATCH, *size
    save("step", table)


if __name__ == "__main__":
    main()

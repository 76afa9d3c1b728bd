"""Each op of the chain against its reference, `torch.compile` of the reference, and what torch itself has for it."""

from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F

from benchmarks.step import BATCH, DIFFUSION, SCHEDULE
from benchmarks.timing import DEVICE, compare, relative_error, save, settings
from pdlib.diffusion.formulas import step_table
from pdlib.kernels import cpu_norm, noise, ops, reference
from pdlib.networks.guided_unet import Upsample

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}


def norm_candidates(x, weight, bias, shift, residual):
    """Group norm of x + residual + shift with SiLU, 32 groups."""
    arguments = {"groups": 32, "eps": 1e-5, "silu": True, "shift": shift, "residual": residual}

    def library():
        h = x + residual
        return F.silu(F.group_norm(h + shift[:, :, None, None], 32, weight.to(x.dtype), bias.to(x.dtype)))

    def plain():
        return reference.group_norm_silu(x, weight, bias, **arguments)[0]

    return {
        "reference": plain,
        "reference, compiled": torch.compile(plain),
        "torch": library,
        "pdlib": lambda: ops.group_norm_silu(x, weight, bias, **arguments)[0],
    }


def backward_candidates(x, weight, bias, shift, residual):
    """Forward and gradient of the same."""
    leaves = [one.clone().requires_grad_() for one in (x, weight, bias, shift, residual)]
    above = torch.randn_like(x)
    candidates = norm_candidates(*leaves)

    def large():
        x, weight, bias, shift, residual = leaves
        return cpu_norm.LearnedNorm.apply(x + residual + shift[:, :, None, None], weight, bias, 32, 1e-5, True)

    if DEVICE.type == "cpu":
        candidates["as if large"] = large

    @torch.enable_grad()
    def gradient(forward):
        return torch.autograd.grad(forward(), leaves, above)

    return {name: partial(gradient, call) for name, call in candidates.items()}


def chain_candidates(x, output, streams):
    """One reverse step with its noise, from index 299 to 298."""
    table = step_table(DIFFUSION, (299,), 299, "ddpm", 1.0, DEVICE)
    rows = torch.zeros(len(x), dtype=torch.int32, device=DEVICE)
    state = x.clone()

    def plain():
        fresh = noise.normal(streams, 299, *x.shape[1:])
        return reference.reverse_step(x, output, table.weights[rows], fresh, table.clamp)

    def in_place():
        ops.reverse_step_(state, output, table, rows, streams)
        return state

    return {"reference": plain, "reference, compiled": torch.compile(plain), "pdlib": in_place}


def start_candidates(mask, streams):
    """A mask diffused to index 299 with its noise."""
    abar = SCHEDULE.abar(299)
    weights = torch.stack([abar, 1 - abar]).sqrt()

    def plain():
        return reference.q_sample(mask, weights, noise.normal(streams, noise.START, *mask.shape[1:]))

    return {
        "reference": plain,
        "reference, compiled": torch.compile(plain),
        "pdlib": lambda: ops.q_sample_start(mask, weights, streams),
    }


def ensemble_candidates(members):
    """Mean, variance, entropy and votes of five members."""
    plain = partial(reference.ensemble_moments, members, 0.5)
    return {
        "reference": lambda: torch.stack([part.float() for part in plain()]),
        "reference, compiled": torch.compile(lambda: torch.stack([part.float() for part in plain()])),
        "pdlib": lambda: torch.stack([part.float() for part in ops.ensemble_moments(members, 0.5)]),
    }


def first_convolution_candidates(image, state, channels):
    """The network's first convolution, and the same with what the image adds to it kept from step to step."""
    weight = torch.randn(channels, 3, 3, 3, device=DEVICE, dtype=image.dtype)
    whole, image, weight, of_state, alone = (
        channels_last(one) for one in (torch.cat([image, state], dim=1), image, weight, weight[:, 2:], state)
    )
    of_image = F.conv2d(image, weight[:, :2], padding=1)
    return {
        "reference": lambda: F.conv2d(whole, weight, padding=1),
        "image part kept": lambda: F.conv2d(alone, of_state, padding=1).add_(of_image),
    }


def upsample_candidates(x):
    """Every pixel becomes four, then a convolution; and both as one layer."""
    upsample = Upsample(x.shape[1]).to(x.device)
    plain, folded = (layer.to(x.dtype, memory_format=torch.channels_last) for layer in (upsample, upsample.folded()))
    return {
        "reference": partial(plain, x),
        "reference, compiled": torch.compile(partial(plain, x)),
        "folded": partial(folded, x),
    }


def channels_last(x):
    """A copy with channels-last strides even for one channel, for which `contiguous` accepts any layout."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last).copy_(x)


def joint_error(found, expected):
    """The relative error of all that a candidate returns, a tensor or several (a gradient may be zero by itself)."""
    parts = ([one] if torch.is_tensor(one) else one for one in (found, expected))
    return relative_error(*(torch.cat([part.double().flatten() for part in several]) for several in parts))


@torch.no_grad()
def main() -> None:
    options, (height, width), _ = settings()
    streams = noise.subject_streams(0, "bench", torch.arange(BATCH), torch.zeros(BATCH, dtype=torch.int64)).to(DEVICE)
    cases = {}
    first, *_, last = options["channel_mult"]
    for mult, factor in ((first, 1), (first, 2), (last, 4)):  # as at three levels of the network
        channels = options["model_channels"] * mult
        for dtype in (torch.float32, torch.bfloat16):
            x, residual = (
                torch.randn(BATCH, channels, height // factor, width // factor, device=DEVICE, dtype=dtype).contiguous(
                    memory_format=torch.channels_last
                )
                for _ in range(2)
            )
            weight, bias = torch.rand(channels, device=DEVICE), torch.rand(channels, device=DEVICE)
            shift = torch.randn(BATCH, channels, device=DEVICE).to(dtype)
            cases["group_norm_silu", tuple(x.shape), dtype] = norm_candidates(x, weight, bias, shift, residual)
            backward = backward_candidates(x, weight, bias, shift, residual)
            cases["group_norm_silu, gradient", tuple(x.shape), dtype] = backward
            if factor > 1:
                cases["upsample", tuple(x.shape), dtype] = upsample_candidates(x)
    x, output = (torch.randn(BATCH, 1, height, width, device=DEVICE) for _ in range(2))
    mask = (torch.rand(BATCH, 1, height, width, device=DEVICE) < 0.05).float()
    members = torch.rand(5, BATCH, height, width, device=DEVICE)
    cases["p_sample", tuple(x.shape), torch.float32] = chain_candidates(x, output, streams)
    cases["q_sample", tuple(x.shape), torch.float32] = start_candidates(mask, streams)
    cases["ensemble_stats", tuple(members.shape), torch.float32] = ensemble_candidates(members)
    image, state = x.expand(-1, 2, -1, -1).to(torch.bfloat16), x.to(torch.bfloat16)
    first = first_convolution_candidates(image, state, options["model_channels"])
    cases["first_convolution", tuple(x.shape), torch.bfloat16] = first
    rows = []
    for (op, shape, dtype), candidates in cases.items():
        torch.compiler.reset()  # or a function compiled for many shapes would be run as it is
        expected = candidates["reference"]()
        tolerance = TOLERANCE[dtype]
        errors = {name: joint_error(call(), expected) for name, call in candidates.items()}
        times = compare({name: call for name, call in candidates.items() if errors[name] <= tolerance})
        about = {"op": op, "shape": "x".join(map(str, shape)), "dtype": str(dtype).removeprefix("torch.")}
        rows += [
            about | {"candidate": name, "error": errors[name]} | dict(times.reindex([name]).iloc[0]) for name in errors
        ]
    save("ops", pd.DataFrame(rows))


if __name__ == "__main__":
    main()

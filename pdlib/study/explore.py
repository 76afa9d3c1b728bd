"""One case to look around in: its slices, the chain of one of them call by call, and what methods make of it.

`report.scene` holds what this collects, `report.explore` draws it, and `widgets` puts sliders to it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pdlib.diffusion.formulas import predict_x_start, q_sample
from pdlib.diffusion.sampler import STARTS, Sampler
from pdlib.evaluation import metrics
from pdlib.inference.slices import OnBatch, silent
from pdlib.kernels import noise, ops, reference
from pdlib.networks.prepared import PreparedDenoiser
from pdlib.report.scene import Call, Diffused, Result, Scene, Trial
from pdlib.study.comparison import Row
from pdlib.study.pictures import WidestSlice
from pdlib.study.rows import ensemble_of
from pdlib.study.run import Run

REPEATS = 5  # of an op that is timed; the quickest counts


def middle_case(run: Run) -> str:
    """The test subject whose lesion load is the median."""
    loads = {subject: run.volume(subject).lesion_ml for subject in run.subjects("test")}
    return sorted(loads, key=loads.get)[len(loads) // 2]


def scene_of(run: Run, subject: str) -> Scene:
    """A case's slices as networks see them."""
    volume, seen = run.volume(subject), WidestSlice.of(run, subject)
    return Scene(
        subject=subject,
        flair=seen.window.cut(volume.image[0]),
        reference=seen.window.cut(volume.mask),
        place=seen.place,
        numbers=seen.window.slices.tolist(),
        pixel_aspect=volume.spacing_mm[1] / volume.spacing_mm[2],
        note=run.note,
    )


def result_of(row: Row, subject: str, on_batch: OnBatch = silent) -> Result:
    """What a row makes of a case, with the calls and seconds of its members and their starts."""
    run, drawn = row.run, row.members(subject, on_batch)
    begun = row.starts(subject) if row.first.trained else None
    whole = ensemble_of(run, drawn.values)
    scores = metrics.score_volume(run.labels(subject), whole.mask, run.volume(subject).spacing_mm)
    cut = WidestSlice.of(run, subject).window.cut
    return Result(
        method=row.name,
        t_prime=row.chain.t_prime if row.first.trained else None,
        members=np.stack([cut(member) for member in drawn.values]),
        mean=cut(whole.mean),
        variance=cut(whole.variance),
        mask=cut(whole.mask),
        dice=scores["dice"],
        calls=drawn.calls + (begun.calls if begun else 0),
        seconds=drawn.seconds + (begun.seconds if begun else 0.0),
    )


def diffused(scene: Scene, preseg: np.ndarray, seen: WidestSlice, sampler: Sampler, times: Sequence[int]) -> list:
    """Reference and pre-segmentation [N, H, W] of the widest slice, diffused to paper times with the same noise."""
    codec, schedule = sampler.diffusion.codec, sampler.diffusion.schedule
    masks = [torch.from_numpy(mask[scene.place]).float()[None, None] for mask in (scene.reference, preseg)]
    fresh = noise.normal(seen.streams, noise.START, *masks[0].shape[1:])
    found = []
    for t in times:
        states = [q_sample(codec.encode(mask), t - 1, fresh, schedule)[0, 0].numpy() for mask in masks]
        abar = float(schedule.abar(t - 1))
        found.append(Diffused(t, abar**0.5, (1 - abar) ** 0.5, *states))
    return found


def exact_sampler(row: Row, subject: str, **changes) -> Sampler:
    """A row's sampler with a network in float32, and with changes of its chain such as rule="ddim"."""
    sampler, card = row.networks(subject).trained.sampler(row.run), row.networks(subject).trained.denoiser.card
    network = row.run.network(row.networks(subject).trained.denoiser, "denoiser")
    denoiser = PreparedDenoiser(network, card["t_max"], "32-true")
    return replace(sampler, denoiser=denoiser, chain=replace(sampler.chain, **changes))


def x_start_predictor(sampler: Sampler) -> Callable[[Tensor, Tensor, int], Tensor]:
    """The network of a chain as a function of image [N, 2, H, W], x_t [N, 1, H, W] and index t, which gives the x_start
    that it predicts, clamped; whatever the network has been trained to predict.
    """
    diffusion = sampler.diffusion

    def predict(image: Tensor, x_t: Tensor, t: int) -> Tensor:
        index = torch.full((len(x_t),), t, device=x_t.device)
        output = sampler.denoiser(torch.cat([image, x_t], dim=1), index)[:, : x_t.shape[1]]
        return predict_x_start(diffusion.prediction, output, x_t, t, diffusion.schedule, diffusion.codec.clamp)

    return predict


@torch.inference_mode()
def recorded(sampler: Sampler, seen: WidestSlice, mask: Tensor) -> tuple[Tensor, list[Call]]:
    """A chain on the widest slice from a mask [1, 1, H, W]: the sampled mask, and every network call."""
    chain, device = sampler.chain, mask.device
    streams = seen.streams.to(device)
    index = chain.start_index(sampler.diffusion.schedule)
    states = [STARTS[chain.start](mask, index, streams, sampler.diffusion)]
    calls = []

    def on_step(index: int, x_t: Tensor, x_start: Tensor) -> None:
        calls.append(Call(index + 1, states[-1][0, 0].cpu().numpy(), x_start[0, 0].cpu().numpy()))
        states.append(x_t)

    return sampler.sample(seen.image.to(device), mask, streams, on_step=on_step), calls


# --- kernels ---------------------------------------------------------------------------------------------------------


def kernel_trials(sizes: Sequence[tuple[int, int]]) -> dict[tuple[str, str], Trial]:
    """Each op by its reference and by what `ops` chooses, on images of some sizes (H, W): by op and size."""
    found = {}
    for height, width in sizes:
        for op, (plain, chosen) in _pairs(height, width).items():
            results, times = zip(_timed(plain), _timed(chosen), strict=True)
            pictures = [result.reshape(-1, *result.shape[-2:])[0].float().numpy() for result in results]
            found[op, f"{height} x {width}"] = Trial(*pictures, *times)
    return found


def _pairs(height: int, width: int) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """By op, its reference and the op itself on the same inputs."""
    generator = torch.Generator().manual_seed(0)
    streams = noise.subject_streams(0, "a student", torch.tensor([4]), torch.tensor([0]))
    mask = torch.zeros(1, 1, height, width)
    mask[..., height // 4 : height // 2, width // 4 : width // 2] = 1.0
    weights = torch.tensor([0.9, 0.4])
    x = torch.randn(1, 16, height, width, generator=generator).contiguous(memory_format=torch.channels_last)
    norm = {"groups": 4, "eps": 1e-5, "silu": True, "shift": None, "residual": None}
    scale, members = (torch.ones(16), torch.zeros(16)), torch.rand(5, height, width, generator=generator)

    def plain_start() -> Tensor:
        return reference.q_sample(mask, weights, noise.normal(streams, noise.START, 1, height, width))

    return {
        "q_sample_start": (plain_start, lambda: ops.q_sample_start(mask, weights, streams)),
        "group_norm_silu": (
            lambda: reference.group_norm_silu(x, *scale, **norm)[0],
            lambda: ops.group_norm_silu(x, *scale, **norm)[0],
        ),
        "ensemble_moments": (
            lambda: reference.ensemble_moments(members, 0.5)[1],
            lambda: ops.ensemble_moments(members, 0.5)[1],
        ),
    }


@torch.no_grad()
def _timed(compute: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """A result, and the milliseconds of the quickest of a few repetitions."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        result = compute()
        times.append(1000 * (time.perf_counter() - started))
    return result, min(times)

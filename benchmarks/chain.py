"""What a volume costs: beside two libraries; against T', members, slice size and width; and outside the network.

The libraries' chains are loops as their users write them, each at the setting that `benchmarks.step` found fastest; run
that first. They visit the same indices, and each of their steps goes from t to t - 1, however far apart these are.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch

from benchmarks.step import DIFFUSION, LIBRARIES, SCHEDULE, TOLERANCE, library_chain, randomise
from benchmarks.timing import DEVICE, PRESET, compare, relative_error, save, settings
from pdlib.diffusion.sampler import Chain, Sampler
from pdlib.diffusion.schedule import calls_of_stride
from pdlib.evaluation import records
from pdlib.inference.precision import Compute
from pdlib.inference.slices import sample_slices
from pdlib.kernels import noise
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.networks.prepared import PreparedDenoiser
from pdlib.paths import BENCHMARKS

SLICES = 83 if PRESET == "paper" else 8
STRIDE = 10 if PRESET == "paper" else 100
BASE = Chain("preseg", "run_to_zero", 300, calls_of_stride(300, STRIDE), "ddim", 1.0, "consistent")
MEMBERS = 5 if PRESET == "paper" else 2
BATCH = 83 if PRESET == "paper" else 16


class Instant(PreparedDenoiser):
    """A network that computes nothing: what a step costs outside the network."""

    def __init__(self, network: GuidedUNet, output: torch.Tensor):
        super().__init__(network, 1, "32-true")
        self.output = output

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.output[: len(x)]


def volume(denoise, size: tuple[int, int], chain: Chain, members: int) -> np.ndarray:
    """All members of all slices of a volume."""
    image, start = torch.zeros(SLICES, 2, *size), torch.zeros(1, SLICES, 1, *size)
    member, number = torch.meshgrid(torch.arange(members), torch.arange(SLICES), indexing="ij")
    streams, compute = noise.subject_streams(0, "bench", number, member), Compute(DEVICE, "32-true", BATCH)
    return sample_slices(Sampler(denoise, DIFFUSION, chain), image, start, streams, compute, lambda images: None).values


def from_t_prime(t_prime: int) -> Chain:
    """The base case's chain from another T', its calls as far apart."""
    return replace(BASE, t_prime=t_prime, calls=calls_of_stride(t_prime, STRIDE))


def library_volume(system: str, options: dict, size: tuple[int, int]) -> tuple[Callable[[], torch.Tensor], float]:
    """The same by a library, and its network's error; ValueError where that is wrong in the fastest setting."""
    steps = records.read_table(BENCHMARKS / f"bench_step_{DEVICE.type}.csv")
    quickest = steps[steps.system == system].sort_values("median_s").setting.iloc[0]
    network = randomise(LIBRARIES[system](options))
    rows = [torch.zeros(SLICES * MEMBERS, channels, *size, device=DEVICE).split(BATCH) for channels in (2, 1)]
    x, t = torch.randn(BATCH, 3, *size, device=DEVICE), torch.full((BATCH,), BASE.indices[0], device=DEVICE)
    (denoise, chain), (exact, _) = (library_chain(system, network, one, BASE.indices) for one in (quickest, "float32"))
    error = relative_error(denoise(x, t), exact(x, t))
    if error > TOLERANCE:
        raise ValueError(f"{system} ({quickest}) is wrong by {error:.2g}")
    return lambda: torch.cat([chain(image, state).cpu() for image, state in zip(*rows, strict=True)]), error


@torch.inference_mode()
def main() -> None:
    options, size, precision = settings()
    steps = SCHEDULE.steps
    network = randomise(GuidedUNet(**options))
    denoise, exact = (PreparedDenoiser(network, steps, one) for one in (precision, "32-true"))
    ours = volume(denoise, size, BASE, MEMBERS)
    free, total = torch.cuda.mem_get_info() if DEVICE.type == "cuda" else (float("nan"), float("nan"))
    error = relative_error(*(torch.from_numpy(one) for one in (ours, volume(exact, size, BASE, MEMBERS))))
    if error > TOLERANCE:
        raise ValueError(f"the members are wrong by {error:.2g}")
    half = {**options, "model_channels": options["model_channels"] // 2}
    narrow = {} if half["model_channels"] % 32 else {"half": half}
    twice = {**options, "model_channels": options["model_channels"] * 2}
    wide = {name: randomise(GuidedUNet(**one)) for name, one in {**narrow, "twice": twice}.items()}
    larger = (2 * size[0], 2 * size[1])
    instant = Instant(network, torch.zeros(BATCH, 1, *size, device=DEVICE))
    cases = {
        ("as it is", "pdlib"): (denoise, size, BASE, MEMBERS),
        ("outside the network", "-"): (instant, size, BASE, MEMBERS),
        ("T'", "100"): (denoise, size, from_t_prime(100), MEMBERS),
        ("T'", "600"): (denoise, size, from_t_prime(600), MEMBERS),
        ("members", "1"): (denoise, size, BASE, 1),
        ("members", str(2 * MEMBERS)): (denoise, size, BASE, 2 * MEMBERS),
        ("slice", f"{larger[0]}x{larger[1]}"): (denoise, larger, BASE, MEMBERS),
    }
    for name, network in wide.items():
        cases["width", name] = (PreparedDenoiser(network, steps, precision), size, BASE, MEMBERS)
    volumes, errors = {key: partial(volume, *case) for key, case in cases.items()}, {("as it is", "pdlib"): error}
    for system in LIBRARIES:
        cases["as it is", system] = (None, size, BASE, MEMBERS)
        volumes["as it is", system], errors["as it is", system] = library_volume(system, options, size)
    times = compare(volumes)
    rows = []
    for (question, value), (_, used, chain, members) in cases.items():
        calls = SLICES * members * len(chain.indices)
        about = {"question": question, "case": value, "t_prime": chain.t_prime, "ensemble_size": members}
        about |= {"height": used[0], "width": used[1], "calls": calls}
        about["error"] = errors.get((question, value), float("nan"))  # of the members; of a library's network
        rows.append(about | dict(times.loc[[(question, value)]].iloc[0]))
    table = pd.DataFrame(rows)
    table["ms_per_call"] = 1e3 * table.median_s / table.calls
    table["gpu_gib"] = (total - free) / 2**30  # held after one volume, before any other candidate
    save("chain", table)


if __name__ == "__main__":
    main()

"""Candidates timed in turns, so that whatever else the machine does falls on all of them."""

import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pdlib import records
from pdlib.inference import fast_precision
from pdlib.paths import BENCHMARKS, ROOT
from pdlib.workflow import load_profile

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRESET = "paper" if DEVICE.type == "cuda" else "cpu"  # whose network and slices are measured
ROUNDS = 15
ROUND_SECONDS = 0.2  # at least, for each candidate


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Mean seconds of a call, the device's work included."""
    _wait()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait()
    return (time.perf_counter() - started) / repeats


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def compare(candidates: Mapping[str, Callable[[], object]]) -> pd.DataFrame:
    """Seconds a call of each candidate: median and quartiles over rounds in which all of them take their turn."""
    for call in candidates.values():
        call()  # compiles, chooses algorithms
    repeats = {name: max(1, round(ROUND_SECONDS / seconds(call, 1))) for name, call in candidates.items()}
    rounds = [{name: seconds(call, repeats[name]) for name, call in candidates.items()} for _ in range(ROUNDS)]
    low, median, high = np.quantile(pd.DataFrame(rounds), [0.25, 0.5, 0.75], axis=0)
    return pd.DataFrame({"median_s": median, "low_s": low, "high_s": high}, index=list(candidates))


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected, both in double precision."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def matmul_flops() -> float:
    """Floating-point operations a second of a large bfloat16 matrix product: what this device can reach."""
    size = 8192 if DEVICE.type == "cuda" else 2048
    one, two = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / float(compare({"matmul": partial(torch.mm, one, two)}).median_s["matmul"])


def save(name: str, table: pd.DataFrame) -> None:
    """Write a table of results/ with its stamp, and print it."""
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    stamp = records.stamp(root=ROOT, device=device, seed=0, data_fingerprint="", phantom=True, profile=PRESET)
    records.write_table(BENCHMARKS / f"bench_{name}_{DEVICE.type}.csv", table, stamp)
    print(table.to_string(index=False), flush=True)


def settings() -> tuple[dict, tuple[int, int], str]:
    """The denoiser's arguments, the slice's height and width, and the precision that are measured."""
    profile = load_profile(PRESET)["03_train_ddpm"]
    size = (128, 192) if PRESET == "paper" else (88, 64)
    return profile["network"], size, fast_precision(DEVICE)

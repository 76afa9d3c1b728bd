"""Candidates timed in turns, so that whatever else the machine does falls on all of them.

float32 means float32 here: TF32 is off for every candidate, the libraries' as well.
"""

import platform
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pdlib.evaluation import records
from pdlib.inference.precision import choose_device, fast_precision
from pdlib.paths import BENCHMARKS, ROOT
from pdlib.profiles import load_profile

DEVICE = choose_device("auto")  # turns TF32 off
PRESET = "paper" if DEVICE.type == "cuda" else "cpu"  # whose network and slices are measured
ROUNDS = 15
ROUND_SECONDS = 0.2  # about, for each candidate
COMPARE_SECONDS = 120  # about, for all rounds; there are three at least


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
    """Seconds a call of each candidate: median and quartiles over rounds in which each is timed once."""
    for call in candidates.values():
        call()  # compiles, chooses algorithms
    once = {name: seconds(call, 1) for name, call in candidates.items()}
    repeats = {name: max(1, round(ROUND_SECONDS / taken)) for name, taken in once.items()}
    count = int(np.clip(COMPARE_SECONDS / sum(repeats[name] * once[name] for name in once), 3, ROUNDS))
    rounds = [{name: seconds(call, repeats[name]) for name, call in candidates.items()} for _ in range(count)]
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


def device_name() -> str:
    """What was measured: the GPU, or the processor and the threads used of it."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    about = Path("/proc/cpuinfo")
    found = re.search("model name\\s*: (.*)", about.read_text()) if about.exists() else None
    return f"{found[1] if found else platform.processor()}, {torch.get_num_threads()} threads"


def save(name: str, table: pd.DataFrame) -> None:
    """Write a table of results/ with its stamp, and print it."""
    stamp = records.stamp(root=ROOT, device=device_name(), seed=0, data_fingerprint="", phantom=True, profile=PRESET)
    records.write_table(BENCHMARKS / f"bench_{name}_{DEVICE.type}.csv", table, stamp)
    print(table.to_string(index=False), flush=True)


def settings() -> tuple[dict, tuple[int, int], str]:
    """The denoiser's arguments, the slice's height and width, and the precision that are measured."""
    size = (192, 128) if PRESET == "paper" else (88, 64)
    return load_profile(PRESET).denoiser.network.arguments(), size, fast_precision(DEVICE)

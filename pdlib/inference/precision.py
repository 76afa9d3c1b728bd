"""What the machine decides: device, precision of sampling, batch size, and whether float32 means float32."""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer

PRECISIONS = ("bf16-mixed", "32-true")
PROBES = 20  # tries of each precision, some milliseconds each
GAIN = 1.25  # how much faster bfloat16 has to be to be chosen on a CPU


@dataclass(frozen=True)
class Compute:
    """How networks are run on this machine.

    Args:
        device: where they run.
        precision: "bf16-mixed" or "32-true".
        batch_size: images in a network call at most; for a chain, members times slices.
    """

    device: torch.device
    precision: str
    batch_size: int

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}: choose one of {list(PRECISIONS)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size {self.batch_size} must be at least 1")


def choose_device(name: str) -> torch.device:
    """The device called name; "auto" is CUDA where there is a GPU, else the CPU. Also turns TF32 off."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    turn_tf32_off()
    return torch.device(name)


def turn_tf32_off() -> None:
    """Make "32-true" mean float32 on a GPU too, where torch by default rounds the inputs of convolutions (TF32).

    For speed there is "bf16-mixed", which `fast_precision` chooses on every GPU that has TF32.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@cache
def fast_precision(device: torch.device) -> str:
    """ "bf16-mixed" where the device convolves at least a quarter faster in bfloat16, else "32-true".

    A CPU without bfloat16 in hardware imitates it several times more slowly than it computes float32, so a CPU is
    measured, once: the fastest of many short tries of each precision in turns, since other work on the machine must not
    decide. A GPU reports whether it supports bfloat16; a convolution short enough to probe one measures its launch.
    """
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    timers = [_convolution_timer(device, dtype) for dtype in (torch.bfloat16, torch.float32)]
    tries = [[timer.timeit(2).mean for timer in timers] for _ in range(PROBES)]
    half, full = (min(seconds) for seconds in zip(*tries, strict=True))
    return "bf16-mixed" if GAIN * half < full else "32-true"


def steady_precision(device: torch.device) -> str:
    """The precision that the hardware is made for, without a measurement: the same in every run on a machine.

    "bf16-mixed" on a GPU that computes in bfloat16 and a CPU that convolves in it (AMX, AVX512-BF16), else "32-true".
    """
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return "bf16-mixed" if able.get("amx_bf16") or able.get("avx512_bf16") else "32-true"
    return fast_precision(device) if device.type == "cuda" else "32-true"


def _convolution_timer(device: torch.device, dtype: torch.dtype) -> Timer:
    x = torch.ones(4, 64, 64, 64, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.ones(64, 64, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    used = {"conv2d": F.conv2d, "x": x, "weight": weight}
    return Timer("conv2d(x, weight)", globals=used, num_threads=torch.get_num_threads())

"""What the machine decides, with stand-ins for the machines."""

import pytest
import torch

from pdlib.inference import precision
from pdlib.inference.precision import Compute, choose_device, fast_precision


def test_the_device_is_a_gpu_where_there_is_one(monkeypatch):
    for there, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device("auto") == torch.device(device)
    assert choose_device("cpu") == torch.device("cpu")


def test_float32_means_float32():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    choose_device("cpu")
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("half", "chosen"), [(0.5, "bf16-mixed"), (0.9, "32-true"), (3.0, "32-true")])
def test_a_cpu_s_precision_is_measured_once(monkeypatch, half, chosen):
    timed = []

    class Timer:
        def __init__(self, dtype):
            self.mean = half if dtype == torch.bfloat16 else 1.0

        def timeit(self, repeats):
            timed.append(self.mean)
            return self

    monkeypatch.setattr(precision, "_convolution_timer", lambda device, dtype: Timer(dtype))
    fast_precision.cache_clear()
    assert fast_precision(torch.device("cpu")) == fast_precision(torch.device("cpu")) == chosen
    assert timed == [half, 1.0] * precision.PROBES
    fast_precision.cache_clear()


@pytest.mark.parametrize(("supported", "chosen"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_reports_its_precision(monkeypatch, supported, chosen):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    fast_precision.cache_clear()
    assert fast_precision(torch.device("cuda")) == chosen
    fast_precision.cache_clear()


def test_settings_of_no_machine_are_refused():
    with pytest.raises(ValueError, match="unknown precision 'auto'"):
        Compute(torch.device("cpu"), "auto", 8)
    with pytest.raises(ValueError, match="batch_size 0"):
        Compute(torch.device("cpu"), "32-true", 0)


@pytest.mark.parametrize(
    ("able", "chosen"),
    [({"amx_bf16": True}, "bf16-mixed"), ({"avx512_bf16": True}, "bf16-mixed"), ({"avx2": True}, "32-true")],
)
def test_steady_precision_measures_nothing(monkeypatch, able, chosen):
    monkeypatch.setattr(precision, "_convolution_timer", lambda *_: pytest.fail("a convolution was timed"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert precision.steady_precision(torch.device("cpu")) == chosen
    assert precision.steady_precision(torch.device("mps")) == "32-true"

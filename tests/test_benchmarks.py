"""The clock of the benchmarks, and what it has measured: no time beside a wrong answer, every table stamped."""

import time

import pandas as pd
import pytest
import torch

from benchmarks import chain, ops, step, timing
from pdlib.evaluation import records
from pdlib.kernels import noise
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.paths import BENCHMARKS, measured_devices
from pdlib.report import tables

MEASURED = sorted(BENCHMARKS.glob("bench_*.csv"))


def test_candidates_are_timed_in_turns(monkeypatch):
    monkeypatch.setattr(timing, "ROUND_SECONDS", 0.004)
    order = []

    def sleeping(name, seconds):
        return lambda: (order.append(name), time.sleep(seconds))

    times = timing.compare({"slow": sleeping("slow", 0.004), "quick": sleeping("quick", 0.001)})
    assert list(times.index) == ["slow", "quick"]
    assert (times.low_s <= times.median_s).all() and (times.median_s <= times.high_s).all()
    assert times.median_s["slow"] >= 0.004 and 0.001 <= times.median_s["quick"] < times.median_s["slow"]
    assert order.count("slow") == 2 + timing.ROUNDS
    turns = [name for name, before in zip(order, [None, *order[:-1]], strict=True) if name != before]
    assert turns == ["slow", "quick"] * (2 + timing.ROUNDS)


def test_an_error_is_relative_to_what_is_expected():
    assert timing.relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)


def streams(rows):
    return noise.subject_streams(0, "bench", torch.arange(rows), torch.zeros(rows, dtype=torch.int64)).to(timing.DEVICE)


def test_what_is_timed_beside_each_other_gives_one_result():
    """The candidates of an op on small tensors, those aside that have to be compiled."""
    draw = torch.Generator().manual_seed(0)

    def image(*shape):
        return torch.randn(*shape, generator=draw).to(timing.DEVICE)

    x = image(2, 64, 6, 4).contiguous(memory_format=torch.channels_last)
    norm = (x, image(64), image(64), image(2, 64), x + 1)
    cases = [
        ops.norm_candidates(*norm),
        ops.backward_candidates(*norm),
        ops.chain_candidates(image(3, 1, 6, 4), image(3, 1, 6, 4), streams(3)),
        ops.start_candidates((image(3, 1, 6, 4) > 0).float(), streams(3)),
        ops.ensemble_candidates(image(5, 3, 6, 4).sigmoid()),
        ops.first_convolution_candidates(image(2, 2, 6, 4), image(2, 1, 6, 4), 8),
        ops.upsample_candidates(x),
    ]
    for candidates in cases:
        expected = candidates["reference"]()
        for name, call in candidates.items():
            if "compiled" not in name:
                assert ops.joint_error(call(), expected) <= ops.TOLERANCE[torch.float32], name


@torch.inference_mode()
def test_our_chain_is_the_reference_s():
    options = {"in_channels": 3, "out_channels": 1, "model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1}
    options |= {"attention_downsample": [], "num_heads": 1, "scale_shift": False, "dropout": 0.0}
    network = step.randomise(GuidedUNet(**options))
    image, x = torch.randn(2, 2, 8, 4, device=timing.DEVICE), torch.randn(2, 1, 8, 4, device=timing.DEVICE)
    ends = [make(network, "float32", streams(2))[1](image, x) for make in (step.our_chain, step.reference_chain)]
    assert timing.relative_error(*ends) <= 1e-5
    assert step.INDICES[0] == 299 and len(step.INDICES) == step.STEPS


def test_a_chain_from_another_t_prime_makes_its_calls_as_far_apart():
    assert chain.BASE.calls == 300 / chain.STRIDE and chain.from_t_prime(600).calls == 600 / chain.STRIDE


def test_float32_is_float32():
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_measured_tables_are_stamped(path):
    stamp, table = records.read_stamp(path), records.read_table(path)
    assert stamp["device"] and stamp["packages"]["torch"] and stamp["git"]["sha"] and not stamp["git"]["dirty"]
    timed = table.dropna(subset="median_s")
    assert len(timed) and (timed.low_s <= timed.median_s).all() and (timed.median_s <= timed.high_s).all()


def test_the_cpu_has_been_measured():
    assert "cpu" in measured_devices()


def test_speeds_are_told_beside_the_quickest_reference():
    steps = pd.DataFrame(
        {
            "system": ["pdlib", "reference", "reference", "MONAI"],
            "setting": ["half", "float32", "half", "half"],
            "median_s": [0.002, 0.008, 0.004, float("nan")],
            "low_s": [0.001, 0.007, 0.003, float("nan")],
            "high_s": [0.003, 0.009, 0.005, float("nan")],
            "error": [0.01, 0.0, 0.01, 0.5],
            "share_of_matmul": 0.5,
        }
    )
    table = tables.speed_table(steps)
    assert list(table.system) == ["pdlib", "reference", "reference", "MONAI"]
    assert table.faster[0] == pytest.approx(2.0) and table.milliseconds[0] == pytest.approx(2.0)
    assert "| pdlib | half | 2 [1, 3] | 2.00 |" in tables.table_markdown(table, "caption")
    assert "| MONAI | half | – |" in tables.table_markdown(table, "caption")

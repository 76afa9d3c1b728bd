"""The clock of the benchmarks, and what it has measured: no time beside a wrong answer, every table stamped."""

import time

import pandas as pd
import pytest
import torch

from benchmarks import timing
from pdlib.evaluation import records
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

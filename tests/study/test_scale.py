"""What a study would cost on a GPU: counted operations, hours, and the room it wants."""

from dataclasses import replace

import pandas as pd
import pytest
import yaml

from pdlib.evaluation import records
from pdlib.paths import CLUSTERS, SCALE
from pdlib.profiles import load_profile
from pdlib.report.scale import parts
from pdlib.study import scale
from pdlib.study.scale import COUNTED, PARTS, Network, Study, hours, network_of
from pdlib.study.speed import Head, trials
from pdlib.study.work import works

SMOKE = load_profile("smoke", {"denoiser": {"fit": {"batch_size": 2, "crop": [COUNTED, 2 * COUNTED]}}})
HEAD = Head(6, COUNTED, COUNTED, (6, COUNTED, COUNTED), (3.0, 1.0, 1.0))
STAMP = {"git": {"sha": None}, "profile": "paper", "device": "a GPU"}


@pytest.fixture
def study():
    """A study whose every update costs 10^18 operations and every call 10^15."""
    networks = dict.fromkeys(trials(SMOKE, HEAD), Network(1000, 1e18, 1e15, 0.0))
    return Study(SMOKE, HEAD, networks, subjects=10, case_bytes=2**30)


def test_operations_are_those_of_the_image_that_a_run_has():
    trial = trials(SMOKE, HEAD)["denoiser"]
    wider = trials(SMOKE, replace(HEAD, width=3 * COUNTED))["denoiser"]
    small, wide = network_of(trial), network_of(wider)
    assert wide.call == pytest.approx(3 * small.call) and wide.update == small.update
    assert small.update == pytest.approx(3 * 2 * 2 * small.call, rel=0.15), "two images, two crops wide, there and back"
    assert small.gpu_bytes > 20 * small.parameters


def test_work_is_that_of_the_jobs(study):
    work = works(SMOKE, 10, HEAD.slices)
    updates, calls = (
        sum(count for units in work.values() for (one, _), count in units.items() if one == kind)
        for kind in ("update", "call")
    )
    row = study.row()
    assert row["update_eflop"] == pytest.approx(updates) and row["call_eflop"] == pytest.approx(calls / 1000)
    assert row["calls"] == calls and row["jobs"] == len(work)
    assert sum(study.jobs().values()) == pytest.approx(updates + calls / 1000)
    assert study.row([PARTS["Fig. 3 (T')"]])["jobs"] == 4 + len(SMOKE.sweep.t_primes)  # 01, 02, 03, the points, 05
    five = replace(study, folds=5).row()
    assert five["call_eflop"] == pytest.approx(5 * row["call_eflop"])
    assert five["jobs"] == 5 * (row["jobs"] - 2) + 2, "01 and 09 are of no one fold"
    assert five["disk_gib"] - 10 == pytest.approx(5 * (row["disk_gib"] - 10)), "cases are there once"
    assert replace(study, subjects=20).row()["memory_gib"] > row["memory_gib"]


def test_hours_are_operations_by_the_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "STEP", tmp_path / "bench_step_cuda.csv")
    low, high = scale.SHARES
    found = hours(scale.GPUS["H100"] * high * 3600 / 1e18)
    assert found["h100_hours_low"] == pytest.approx(1) and found["h100_hours_high"] == pytest.approx(high / low)
    rows = pd.DataFrame({"system": ["pdlib", "pdlib", "MONAI"], "tflops": [100.0, 200.0, 400.0]})
    records.write_table(scale.STEP, rows, STAMP)
    assert hours(0.72) == {"gpu_hours": pytest.approx(1)}


def test_a_page_says_of_what_its_hours_are(tmp_path):
    row = {"kind": "part", "name": "Fig. 3", "jobs": 3, "update_eflop": 1.0, "call_eflop": 2.0}
    longest = [{"kind": "job", "name": "03_train_ddpm", "subjects": subjects} for subjects in (60, 170)]
    rows = pd.DataFrame([one | hours(100.0) | {"gpu_hours": 12.345} for one in (row, *longest)])
    about = {"shares": [0.1, 0.5], "peaks": scale.GPUS, "head": [45, 192, 160]}
    records.write_table(tmp_path / "scale.csv", rows, STAMP | about | {"measured": False})
    told = parts(tmp_path / "scale.csv")
    assert "An estimate: no GPU has run it" in told["basis"] and "Hours of one H100" in told["figures"]
    records.write_table(tmp_path / "scale.csv", rows, STAMP | about | {"measured": True})
    told = parts(tmp_path / "scale.csv")
    assert "of a GPU" in told["basis"] and "| 12 |" in told["figures"] and "estimate" not in told["basis"]
    assert told["jobs"].startswith("| Notebook | GPU hours, 60 subjects | 170 subjects |")
    assert told["jobs"].endswith("| 03_train_ddpm | 12 | 12 |")


def test_the_committed_table_has_the_paper_s_network():
    rows = records.read_table(SCALE)
    denoiser = rows[rows["name"] == "denoiser"].iloc[0]
    _, height, width = records.read_stamp(SCALE)["head"]
    gmac, crop = 93.1, 128 * 192  # of a forward pass
    assert denoiser.million_parameters == pytest.approx(113.67, abs=0.01)
    whole = 2 * gmac * height * width / crop
    assert 0.9 * whole < denoiser.gflop_call <= whole, "a chain's calls share what no step changes"
    assert denoiser.tflop_update == pytest.approx(3 * 2 * gmac * 12 / 1e3, rel=0.02)
    points = rows[rows.kind == "point"]
    assert (points.call_eflop / points["name"].astype(int)).std() < 1e-4 * points.call_eflop.max()


def test_the_committed_table_is_of_the_profile_as_it_is(tmp_path, monkeypatch):
    """Networks are not counted again: what each costs is read from the table."""
    rows, stamp = records.read_table(SCALE), records.read_stamp(SCALE)
    if not stamp["measured"]:
        monkeypatch.setattr(scale, "STEP", tmp_path / "none")
    profile = load_profile(stamp["profile"])
    head = Head(*stamp["head"], stamp["grid"], stamp["spacing_mm"])
    costs = rows[rows.kind == "network"].set_index("name")
    networks = {
        name: Network(1e6 * one.million_parameters, 1e12 * one.tflop_update, 1e9 * one.gflop_call, 2**30 * one.gpu_gib)
        for name, one in costs.iterrows()
    }
    study = Study(profile, head, networks, 3 * profile.data.cases_per_site, stamp["case_bytes"])
    assert {*networks} == {*trials(profile, head)}
    pd.testing.assert_frame_equal(scale.table(study), rows, check_dtype=False, check_like=True, rtol=2e-5)


def test_a_cluster_gives_the_longest_jobs_their_time(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "STEP", tmp_path / "none")  # by the slower GPU's data sheet, measured or not
    rows = records.read_table(SCALE)
    longest = rows[rows.kind == "job"].groupby("name").eflop.max()
    wants = yaml.safe_load((CLUSTERS / "slurm" / "notebooks.yaml").read_text(encoding="utf-8"))
    limits = {name: int(wants[name]["runtime"].split()[0]) / 60 for name in longest.index}
    assert {name for name, eflop in longest.items() if hours(eflop)["a100_hours_high"] > limits[name]} == set()

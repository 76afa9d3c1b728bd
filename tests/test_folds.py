"""Test folds beside each other: their folders, and the command that runs them."""

import subprocess
import sys

import pytest

from pdlib import workflow
from pdlib.paths import ROOT, Layout, layout


def test_fold_0_lies_at_the_top_and_the_others_below_it(tmp_path):
    first, second = (Layout(tmp_path, "cpu", fold) for fold in (0, 2))
    for kind in ("runs", "results", "figures"):
        assert getattr(first, kind) == tmp_path / kind / "cpu"
        assert getattr(second, kind) == tmp_path / kind / "cpu" / "fold_2"
    assert second.weights("denoiser") == tmp_path / "runs/cpu/fold_2/weights/denoiser"
    assert second.done("03_train_ddpm") == tmp_path / "runs/cpu/fold_2/done/03_train_ddpm"
    assert (second.cases, second.folds) == (first.cases, first.folds) and second.shared == first
    for job in ("01_prepare_data",):
        assert second.done(job) == first.done(job) and second.executed(job) == first.executed(job)
    assert second.executed("11_claims") != first.executed("11_claims")


@pytest.mark.parametrize(("asked", "folds"), [("", [0]), ("all", [0, 1, 2, 3, 4]), ("3", [3]), ("0 2", [0, 2])])
def test_folds_that_are_asked_for(asked, folds):
    assert workflow.chosen_folds("smoke", asked) == folds


@pytest.mark.parametrize(("asked", "wrong"), [("5", "5"), ("0 -1", "-1"), ("1,2", "1,2"), ("every", "every")])
def test_a_fold_that_there_is_not_ends_in_one_line(tmp_path, asked, wrong):
    command = ["make", "-s", "reproduce", "PROFILE=smoke", f"OUT={tmp_path}", "READY=", f"PYTHON={sys.executable}"]
    done = subprocess.run([*command, f"FOLDS={asked}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert f"FOLDS={asked}: profile smoke has no fold '{wrong}': say all, or of 0, 1, 2, 3, 4" in done.stderr


def test_another_fold_is_a_graph_of_its_own_on_the_same_data(tmp_path):
    place = layout("smoke", str(tmp_path), fold=1)
    for path in (place.done("01_prepare_data"), place.cases, place.folds):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--dry-run",
        "--snakefile",
        ROOT / "Snakefile",
        "--directory",
        tmp_path,
    ]
    command += ["--config", "profile=smoke", f"out={tmp_path}", "fold=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.strip() for line in done.stdout.splitlines()]
    written = [path for line in lines if line.startswith("output: ") for path in line[len("output: ") :].split(", ")]
    kinds = [place.runs, place.results, place.figures]
    assert len(written) > 50 and all(any(path.startswith(f"{kind}/") for kind in kinds) for path in written)
    assert "rule claims:" in lines and "rule prepare_data:" not in lines


def test_a_notebook_asks_for_the_earlier_ones_of_its_fold(tmp_path, monkeypatch):
    asked = []
    monkeypatch.delenv(workflow.IN_WORKFLOW, raising=False)
    monkeypatch.setattr(workflow.subprocess, "run", lambda command, check: asked.extend(command))
    place = Layout(tmp_path, "smoke", 2)
    workflow.require(place, "03_train_ddpm")
    assert "FOLDS=2" in asked
    assert f"TARGETS='{place.shared.done('01_prepare_data')}' '{place.done('03_train_ddpm')}'" in asked

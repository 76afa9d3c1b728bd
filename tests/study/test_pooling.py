"""Test folds beside each other: their folders, the command that runs them, and their scores as one table."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import rewritten

from pdlib.evaluation import records
from pdlib.methods import SCORED, preseg_starts
from pdlib.paths import ROOT, Layout, measured_devices
from pdlib.profiles import load_profile
from pdlib.report import tables
from pdlib.reproduce import Asked, chosen_folds
from pdlib.study.pooling import pool, saw_only_their_own
from pdlib.training.weights import load_weights

FOLDS = pd.DataFrame({"subject": ["a", "b", "c", "d", "e"], "fold": [0, 0, 0, 1, 2]})
DICE = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.5, "e": 0.1}
TESTED, VALIDATED = {0: "abc", 1: "d", 2: "e"}, {0: "d", 1: "e", 2: "abc"}


def scored(subjects, fold, split, gain=0.0, method="pd_ddpm"):
    about = {"method": method, "fold": fold, "seed": 0, "site": "Utrecht", "split": split, "nfe": 1, "seconds": 1.0}
    return pd.concat([records.score_rows({"dice": DICE[s] + gain}, subject=s, **about) for s in subjects])


@pytest.fixture
def by_fold():
    return {
        fold: pd.concat([scored(TESTED[fold], fold, "test"), scored(VALIDATED[fold], fold, "validation", gain=-0.1)])
        for fold in TESTED
    }


def test_fold_0_lies_at_the_top_and_the_others_below_it(tmp_path):
    first, second = (Layout(tmp_path, "cpu", fold) for fold in (0, 2))
    for kind in ("runs", "results", "figures"):
        assert getattr(first, kind) == tmp_path / kind / "cpu"
        assert getattr(second, kind) == tmp_path / kind / "cpu" / "fold_2"
    assert second.weights("denoiser_0") == tmp_path / "runs/cpu/fold_2/weights/denoiser_0"
    assert second.done("03_train_ddpm") == tmp_path / "runs/cpu/fold_2/done/03_train_ddpm"
    assert (second.cases, second.folds) == (first.cases, first.folds) and second.shared == first
    for job in ("01_prepare_data", "13_all_folds"):
        assert second.done(job) == first.done(job) and second.executed(job) == first.executed(job)
    assert second.executed("11_claims") != first.executed("11_claims")


@pytest.mark.parametrize(("asked", "folds"), [("", [0]), ("all", [0, 1, 2, 3, 4]), ("3", [3]), ("0 2", [0, 2])])
def test_folds_that_are_asked_for(asked, folds):
    assert chosen_folds(load_profile("smoke"), asked) == folds


@pytest.mark.parametrize(("asked", "wrong"), [("5", "5"), ("0 -1", "-1"), ("1,2", "1,2"), ("every", "every")])
def test_a_fold_that_there_is_not_is_refused(asked, wrong):
    with pytest.raises(ValueError, match=f"FOLDS={asked}: profile smoke has no fold '{wrong}': say all, or of 0, 1, 2"):
        chosen_folds(load_profile("smoke"), asked)


def dry_run(out, *given):
    """What `make reproduce` would do, as one text."""
    command = ["make", "-s", "reproduce", "PROFILE=smoke", f"OUT={out}", "READY=", f"PYTHON={sys.executable}", "DRY=1"]
    return subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True)


def test_folds_are_pooled_when_every_one_of_them_has_its_scores(tmp_path):
    marks = [Layout(tmp_path, "smoke", fold).done(job) for fold in range(5) for job in SCORED]
    for mark in marks:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    done = dry_run(tmp_path, "TARGETS=13_all_folds")
    _, pooling = done.stdout.split("rule all_folds:")
    wanted = next(line for line in pooling.splitlines() if line.strip().startswith("input: "))
    assert all(str(mark.relative_to(tmp_path)) in wanted for mark in marks)
    marks[-1].unlink()
    done = dry_run(tmp_path, "TARGETS=13_all_folds")
    assert done.returncode != 0 and str(marks[-1].relative_to(tmp_path)) in done.stdout + done.stderr


def test_some_jobs_of_all_folds_are_not_pooled(tmp_path):
    asked = {"PDLIB_PROFILE": "smoke", "PDLIB_OUT_FOLDER": str(tmp_path), "PDLIB_FOLDS": "all"}
    assert Asked.of(asked).pooled and not Asked.of(asked | {"PDLIB_TARGETS": "05_sweep_t_prime"}).pooled


def test_another_fold_is_a_graph_of_its_own_on_the_same_data(tmp_path):
    place = Layout(tmp_path, "smoke", 1)
    shared = [place.done("01_prepare_data"), place.cases, place.folds, place.done("09_read_the_kernels")]
    speeds = [f"speed_{device}.{kind}" for device in measured_devices() for kind in ("png", "pdf")]
    for path in (*shared, *(place.shared.figures / name for name in speeds)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    lines = [line.strip() for line in dry_run(tmp_path, "FOLDS=1").stdout.splitlines()]
    written = [path for line in lines if line.startswith("output: ") for path in line[len("output: ") :].split(", ")]
    outside = [
        path
        for path in written
        if not any((tmp_path / path).is_relative_to(kind) for kind in (place.runs, place.results, place.figures))
    ]
    assert len(written) > 50 and set(outside) <= {str(path.relative_to(tmp_path)) for path in shared}
    assert any(line.startswith("rule notebook_11_claims:") for line in lines)
    assert "rule all_folds:" not in lines


def test_networks_that_saw_a_test_subject_are_found(trained):
    found = saw_only_their_own(trained.run, trained.weights).set_index("network")
    assert set(found.index) == {path.parent.name for path in trained.weights.glob("*/best.safetensors")}
    assert found["own subjects"].all() and (found.crossed == 0).all() and (found.fold == 0).all()
    data = load_weights(trained.preseg).card["data"]
    rewritten(trained.preseg, data=data | {"train": [*data["train"], trained.run.subjects("test")[0]]})
    found = saw_only_their_own(trained.run, trained.weights).set_index("network")
    assert not found.loc["attention_unet_0", "own subjects"] and found.crossed.sum() == 1
    assert found.loc["attention_unet_0", "crossed"] == 1


def test_pooled_scores_by_hand(by_fold):
    """Subjects weigh alike: (.9 + .8 + .7 + .5 + .1) / 5, not the mean of the folds' means; validation stays apart."""
    scores = pool(by_fold, FOLDS)
    assert len(scores) == 10 and scores.groupby(["split", "subject"]).size().eq(1).all()
    assert scores.groupby("split").value.mean().to_dict() == pytest.approx({"test": 0.6, "validation": 0.5})
    how = {"rows": [{"method": "pd_ddpm"}], "baseline": {"method": "pd_ddpm"}, "metrics": ["dice"]}
    how["interval"] = {"resamples": 100, "confidence": 0.95, "seed": 0}
    table = tables.table1(scores[scores.split == "test"], **how)
    assert table.n[0] == 5 and table.dice[0] == pytest.approx(0.6)


def test_pooling_refuses_a_subject_where_it_is_not_tested(by_fold):
    twice = by_fold | {1: pd.concat([by_fold[1], scored("a", 1, "test")])}
    with pytest.raises(ValueError, match="fold 1: its test rows are not those of its test subjects"):
        pool(twice, FOLDS)
    missing = by_fold | {0: by_fold[0][by_fold[0].subject != "b"]}
    with pytest.raises(ValueError, match="fold 0: its test rows"):
        pool(missing, FOLDS)
    with pytest.raises(ValueError, match="fold 2: its validation rows"):
        pool(by_fold | {2: pd.concat([scored("e", 2, "test"), scored("ab", 2, "validation")])}, FOLDS)
    with pytest.raises(ValueError, match="fold 0: its test rows"):
        pool({0: by_fold[0].assign(fold=1)}, FOLDS)


def test_one_fold_of_a_study_with_further_subjects_is_its_own_pool(by_fold):
    """Every row is tested on f and g, the key rows on h as well; a second fold would count all three twice."""
    further = pd.DataFrame({"subject": ["f", "g", "h"], "part": ["test", "test", "key"]})
    folds = pd.concat([FOLDS.assign(part="fold"), further])
    rows = by_fold[0].replace({"subject": {"a": "f", "b": "g", "c": "h"}})
    assert len(pool({0: rows}, folds)) == len(pool({0: rows[rows.subject != "h"]}, folds)) + 1 == 4
    with pytest.raises(ValueError, match="fold 0: its test rows"):
        pool({0: rows[rows.subject != "g"]}, folds)
    with pytest.raises(ValueError, match="several times"):
        pool({0: rows, 1: by_fold[1]}, folds)


def test_checkpoints_pool_by_their_rank(by_fold):
    """The step that is nearest to a gap differs from fold to fold; its rank, the column `start`, does not."""
    found = {}
    for fold in TESTED:
        for start in preseg_starts(3):
            rows = [scored(TESTED[fold], fold, "test", method=name) for name in ("attention_unet", "pd_ddpm")]
            found.setdefault(fold, []).append(pd.concat(rows).assign(start=start))
    found = {fold: pd.concat(rows) for fold, rows in found.items()}
    how = {"presegmenter": "attention_unet", "metrics": ["dice"]}
    how["interval"] = {"resamples": 100, "confidence": 0.95, "seed": 0}
    table = tables.table2(pool(found, FOLDS), starts=preseg_starts(3), **how)
    assert table.start.tolist() == ["empty", "checkpoint_1", "checkpoint_2", "best"] and (table.n == 5).all()
    np.testing.assert_allclose(table.dice, 0.6)

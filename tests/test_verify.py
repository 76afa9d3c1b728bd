"""`make verify` finds what it is made to find: each fault is put in, and the check that is to see it does."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pdlib import verify
from pdlib.evaluation import records
from pdlib.methods import CHAIN
from pdlib.paths import ROOT, Layout
from pdlib.profiles import load_profile
from pdlib.report.compare import POINTS, difference
from pdlib.report.curves import training_figure
from pdlib.report.style import save_figure
from pdlib.report.tables import save_table
from pdlib.study import fewer, redraw
from pdlib.study.comparison import Row
from pdlib.study.redraw import Kept, planned
from pdlib.verify import DIFFERS, SAME, UNCHECKED

FINGERPRINT = "0123456789abcdef" * 4
QUICK = ("folds", "preseg_scores", "phantom_calibration", "training/unet_0")  # of results/cpu: drawn in a second
CURVE = pd.DataFrame({"step": range(1, 40), "metric": "dice", "value": np.random.default_rng(0).random(39)})


def git(folder: Path, *command: str) -> str:
    about = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", folder, *about, *command], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def copied(out: Path) -> Layout:
    """Some of the committed scores."""
    place = Layout(out, "cpu")
    for name in QUICK:
        for kind in ("csv", "stamp.json"):
            made = place.results / f"{name}.{kind}"
            made.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "results" / "cpu" / f"{name}.{kind}", made)
    return place


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Some of the committed scores and what is made of them, with rough intervals."""
    rough = load_profile("cpu", {"statistics": {"resamples": 20}})
    monkeypatch.setattr(redraw, "load_profile", lambda name: rough)
    place = copied(tmp_path / "run")
    assert redraw.redraw(Kept.of(place, place.figures)) == {}
    return place


def found(checks, verdict):
    return {check.what: check.why for check in checks if check.verdict == verdict}


def test_what_notebooks_made_of_the_committed_scores_is_made_again_to_the_byte(tmp_path):
    """Tables and figures that were committed by a run of the notebooks, whose drawing has not changed since."""
    place = copied(tmp_path)
    assert redraw.redraw(Kept.of(place, place.figures)) == {}
    for name in ("table2.csv", "table2.md", "phantom_calibration.png", "training/unet_0.png", "training/unet_0.pdf"):
        assert difference(place.figures / name, ROOT / "figures" / "cpu" / name) == "", name


def test_a_whole_run_is_the_same_and_images_are_named_as_not_checked(place):
    (place.figures / "fig2.png").write_bytes(b"slices")
    checks = list(verify.drawings(place))
    assert len(found(checks, SAME)) == 8 and not found(checks, DIFFERS)
    assert found(checks, UNCHECKED) == {"figures/cpu/fig2.png": "shows subjects' slices, which results/ does not hold"}


def test_a_changed_table_a_lost_one_a_strange_one_and_a_broken_figure_differ(place):
    table = place.figures / "table2.csv"
    text = table.read_text()
    table.write_text(text.replace(",0.71431,", ",0.71432,"))
    assert table.read_text() != text, "a digit was changed"
    (place.figures / "table2.md").unlink()
    (place.figures / "table3.csv").write_text("method,dice\nours,0.99\n")
    (place.figures / "training/unet_0.png").write_bytes(b"half a fi")
    differs = found(verify.drawings(place), DIFFERS)
    assert differs.pop("figures/cpu/training/unet_0.png").startswith("cannot be read")
    changed = differs.pop("figures/cpu/table2.csv")
    assert changed.startswith("1 of ") and changed.endswith("numbers by up to 1.4e-05 of their size")
    assert differs == {
        "figures/cpu/table2.md": "results/ has its numbers, and it is not there",
        "figures/cpu/table3.csv": "no table in results/ gives it",
    }


def test_a_changed_score_shows_in_the_table_and_in_the_stamp(place):
    path = place.results / "preseg_scores.csv"
    stamp = records.read_stamp(path)
    rows = records.read_table(path)
    rows.loc[(rows.metric == "dice") & (rows.method == CHAIN), "value"] *= 0.99
    records.write_table(path, rows, stamp)
    drawn = {f"figures/cpu/{name}" for name in ("table2.csv", "table2.md", "starts.png", "starts.pdf")}
    assert {*found(verify.drawings(place), DIFFERS)} == drawn
    path.write_text(path.read_text().replace(",0.7", ",0.8", 1))
    told = found(verify.stamps(place.out / "results"), DIFFERS)
    assert told == {"results/cpu/preseg_scores.csv": "the table was changed after it was stamped"}


def test_tables_that_nothing_can_be_made_of_are_a_difference_and_no_traceback(place):
    stamp = records.read_stamp(place.results / "preseg_scores.csv")
    records.write_table(place.results / "preseg_scores.csv", pd.DataFrame({"step": [1]}), stamp)
    assert "figures/cpu, made of preseg_scores" in found(verify.drawings(place), DIFFERS)
    place.folds.unlink()
    assert {*found(verify.drawings(place), DIFFERS)} == {"figures/cpu"}


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_figures_may_differ_by_what_six_digits_lose_and_by_no_more(tmp_path, kind):
    kept, moved = CURVE.assign(value=[float(f"{value:.6g}") for value in CURVE.value]), CURVE.copy()
    moved.loc[20, "value"] += 0.002  # a third of a pixel
    for name, curve in {"drawn": CURVE, "kept": kept, "moved": moved}.items():
        save_figure(training_figure(curve), tmp_path / name)
    drawn = tmp_path / f"drawn.{kind}"
    assert difference(tmp_path / f"kept.{kind}", drawn) == ""
    assert difference(tmp_path / f"moved.{kind}", drawn) != ""
    save_figure(training_figure(CURVE, note="another"), tmp_path / "noted")
    assert difference(tmp_path / f"noted.{kind}", drawn) != ""
    if kind == "pdf":
        assert (tmp_path / "kept.pdf").read_bytes() != drawn.read_bytes() and POINTS < 0.28, "a tenth of a PNG's pixel"


def test_how_far_tables_differ_is_told_by_the_columns_of_both(tmp_path):
    old = pd.DataFrame({"method": ["a", "b"], "dice": [0.5, 0.25], "gone": [1, 2]})
    save_table(old, "", tmp_path / "old")
    save_table(old.assign(dice=[0.5, 0.3], new=1).drop(columns="gone"), "", tmp_path / "ours")
    save_table(old[:1], "", tmp_path / "short")
    said = difference(tmp_path / "ours.csv", tmp_path / "old.csv")
    assert said == "no longer: gone; new: new; 1 of 4 cells differ, numbers by up to 2.0e-01 of their size"
    assert difference(tmp_path / "short.csv", tmp_path / "old.csv") == "1 rows where there were 2"


@pytest.mark.parametrize("name", [CHAIN, "ddpm", "es_ddpm", "addpm", "x0_jump"])
def test_rows_named_without_their_networks_are_those_with_them(trained, name):
    for changes in ({}, {"stride": 1, "calls": None}, {"calls": 2}):
        changes = changes if name != "addpm" else changes | {"t_prime": 500}
        ours, theirs = planned(trained.run, name, **changes), Row.of(trained.run, name, **changes)
        assert ours.about == theirs.about
    assert planned(trained.run, CHAIN).jump().about == Row.of(trained.run, CHAIN).jump().about
    steps = trained.profile.wolleb2021.diffusion.schedule.steps
    assert planned(trained.run, "wolleb2021").chain.t_prime == steps != Row.of(trained.run, "ddpm").chain.t_prime


def test_the_rows_of_fewer_calls_are_among_the_scored_ones(trained):
    run = trained.run
    profile = run.profile.model_copy(
        update={"fewer_calls": run.profile.fewer_calls.model_copy(update={"starts": [CHAIN, "ddpm"]})}
    )
    run = replace(run, profile=profile)
    scored = [row.about for name in (CHAIN, "ddpm") for row in fewer.fewer_rows(run, name)]
    for row in redraw._fewer_rows(run):
        assert any(row.items() <= about.items() for about in scored), row


@pytest.fixture
def history(tmp_path):
    """A repository with two commits, of which the tables in results/ name the first."""
    root = tmp_path / "clone"
    (root / "configs").mkdir(parents=True)
    git(root, "init", "--quiet")
    for text in ("seed: 0\n", "seed: 1\n"):
        for name in ("paper", "cpu"):
            (root / "configs" / f"{name}.yaml").write_text(text)
        git(root, "add", ".")
        git(root, "commit", "--quiet", "-m", text)
    return root


def stamped(root: Path, name: str = "cpu/scores", **changes) -> None:
    about = {"device": "cpu", "seed": 0, "data_fingerprint": FINGERPRINT, "phantom": True, "profile": "cpu"}
    stamp = records.stamp(root=root, **about)
    stamp["git"] = {"sha": git(root, "rev-parse", "HEAD^"), "dirty": False}
    records.write_table(root / "results" / f"{name}.csv", pd.DataFrame({"dice": [0.5]}), stamp | changes)


def test_a_stamp_leads_back_to_a_commit_and_says_whether_its_settings_are_todays(history):
    stamped(history)
    stamped(history, "bench_step_cpu", data_fingerprint="")
    checks = list(verify.stamps(history / "results", history))
    assert not found(checks, DIFFERS)
    commit = f"commit {git(history, 'rev-parse', 'HEAD^')[:10]}, profile cpu, of 2 tables"
    assert found(checks, SAME)[commit] == "in git's history, settings changed since"
    (history / "configs/paper.yaml").write_text("seed: 0\n")
    (history / "configs/cpu.yaml").write_text("seed: 0\n")
    assert found(verify.stamps(history / "results", history), SAME)[commit].endswith("settings as today")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"git": {"sha": "f" * 40, "dirty": False}}, "not in git's history"),
        ({"git": {"sha": "f" * 40, "dirty": True}}, "made by ffffffffff with changes that no commit holds"),
        ({"git": {"sha": None, "reason": "git is not installed"}}, "made by unknown code (git is not installed)"),
        ({"seed": None}, "its stamp does not say: seed"),
        ({"data_fingerprint": ""}, "its stamp has no fingerprint of the data"),
        ({"packages": {"python": "3.11.7", "numpy": "2"}}, "its stamp has no version of: torch"),
        ({"device": ""}, "its stamp names no device or no profile"),
        ({"profile": "night"}, "it has no configs/night.yaml"),
    ],
)
def test_a_stamp_that_does_not_lead_back_differs(history, changes, said):
    stamped(history, **changes)
    assert [*found(verify.stamps(history / "results", history), DIFFERS).values()] == [said]


def test_a_table_without_its_stamp_and_a_stamp_without_its_table_differ(history):
    stamped(history, "cpu/lone"), stamped(history, "cpu/lost")
    (history / "results/cpu/lone.stamp.json").unlink()
    (history / "results/cpu/lost.csv").unlink()
    (history / "results/cpu/lone.2.csv").write_text("dice\n0.5\n")  # goes on in it: told once
    assert {*found(verify.stamps(history / "results", history), DIFFERS)} == {
        "results/cpu/lone.csv",
        "results/cpu/lost.stamp.json",
    }


def test_without_git_s_history_a_commit_is_not_checked(history, tmp_path):
    stamped(history)
    shutil.copytree(history / "results", tmp_path / "export" / "results")
    (reason,) = found(verify.stamps(tmp_path / "export" / "results", tmp_path / "export"), UNCHECKED).values()
    assert reason == "there is no git history here"
    git(tmp_path, "clone", "--quiet", "--depth", "1", history.as_uri(), "shallow")
    shutil.copytree(history / "results", tmp_path / "shallow" / "results")
    (reason,) = found(verify.stamps(tmp_path / "shallow" / "results", tmp_path / "shallow"), UNCHECKED).values()
    assert "shallow" in reason


def test_networks_that_score_otherwise_or_other_subjects_differ():
    printed = pd.DataFrame({"method": ["unet", "unet", CHAIN], "subject": ["a", "b", "a"], "dice": [0.5, 0.6, 0.7]})
    assert {
        check.verdict for check in verify.rescored(printed.assign(dice=printed.dice + 0.0004), printed, "weights")
    } == {SAME}
    worse = found(verify.rescored(printed.assign(dice=[0.5, 0.6, 0.69]), printed, "weights"), DIFFERS)
    assert worse == {f"weights, {CHAIN}": "Dice by up to 0.01"}
    fewer_subjects = found(verify.rescored(printed[1:], printed, "weights"), DIFFERS)
    assert fewer_subjects == {"weights, unet": "1 of 2 subjects were scored only then, or only now"}


def test_a_page_that_says_something_else_differs(tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text("<!-- found: begin -->\nold\n<!-- found: end -->\n")
    monkeypatch.setattr(verify, "ROOT", tmp_path)
    for text, verdict in (("old", SAME), ("new", DIFFERS)):
        monkeypatch.setattr(verify.readme, "parts", lambda place, text=text: {page: {"found": text}})
        assert [check.verdict for check in verify.pages()] == [verdict]


def test_the_command_ends_with_1_on_a_difference_and_2_where_there_is_nothing(place, monkeypatch, capsys):
    monkeypatch.setenv("PDLIB_OUT_FOLDER", str(place.out))
    monkeypatch.setenv("PDLIB_PROFILE", "")
    monkeypatch.setattr(verify, "_commit", lambda *about: verify.Check(SAME, "commit"))
    assert verify.main() == 0 and "13 same, 0 DIFFERS, 1 not checked" in capsys.readouterr().out
    stamp = place.results / "folds.stamp.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"seed": None}))
    assert verify.main() == 1 and "results/cpu/folds.csv: its stamp does not say: seed" in capsys.readouterr().out
    monkeypatch.setenv("PDLIB_PROFILE", "night")
    assert verify.main() == 2 and "no figures to verify" in capsys.readouterr().err

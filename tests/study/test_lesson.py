"""A lesson stands on the networks that the repository comes with, and on subjects that these have not seen."""

from dataclasses import replace

import pytest

from pdlib import graph, paths
from pdlib.paths import NOTEBOOKS
from pdlib.profiles import load_profile
from pdlib.study.committed import names
from pdlib.study.comparison import Row
from pdlib.training.weights import export_weights, load_weights

LESSON = load_profile("lesson")
TRAINED = ("02_train_segmenters", "03_train_ddpm", "16_start_matched")


@pytest.fixture
def come_along(tmp_path, monkeypatch):
    """A repository with a file for every network that the reference commits."""
    monkeypatch.setattr(paths, "COMMITTED", tmp_path)
    for name in names(load_profile(LESSON.reference)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.safetensors").touch()


def test_its_subjects_are_others_than_the_reference_s():
    reference = load_profile(LESSON.reference)
    assert LESSON.seed != reference.seed and reference.reference is None
    for section in ("segmenters", "denoiser", "refine"):
        ours, theirs = (getattr(profile, section).model_dump() for profile in (LESSON, reference))
        assert ours.get("network") == theirs.get("network"), section


@pytest.mark.parametrize("notebook", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_needs_no_training_but_its_own(notebook, come_along):
    needed = graph.needed(notebook, LESSON)
    trained = [job for job in needed if job.startswith(TRAINED)]
    assert trained == (["02_train_segmenters.attention_unet_0"] if notebook.startswith("07") else [])
    own = graph.needed(notebook, load_profile("cpu"))
    assert len(needed) <= len(own), "the cpu profile trains what it needs"


def test_the_graph_trains_nothing_that_comes_along(come_along):
    jobs = graph.graph(LESSON)
    trained = [job for job in jobs if job.startswith(TRAINED)]
    assert trained == ["02_train_segmenters.attention_unet_0"] and set(jobs["07_preseg_accuracy"]) > set(trained)
    assert all(before in jobs for waits in jobs.values() for before in waits)


def test_a_run_takes_what_comes_along_and_its_own_for_the_rest(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "COMMITTED", tmp_path)
    export_weights(networks.place.weights("x").parent, ["denoiser_0"], tmp_path, "night")
    run = replace(networks.run, profile=networks.profile.model_copy(update={"reference": "night"}))
    other = load_weights(tmp_path / "denoiser_0" / "best.safetensors")
    assert run.weights("denoiser_0").path == other.path, "the committed one, whatever was trained here"
    assert other.comes_along and not networks.run.weights("denoiser_0").comes_along
    assert run.weights("attention_unet_0").path == networks.place.weights("attention_unet_0") / "best.safetensors"
    row = Row.of(run, "pd_ddpm", 1)
    assert row.first.trained.denoiser.digest == other.digest
    assert networks.run.weights("denoiser_0").path != other.path, "without a reference nothing comes from there"


def test_the_ledger_of_a_lesson_is_the_reference_s(networks):
    run = replace(networks.run, profile=networks.profile.model_copy(update={"reference": "cpu"}))
    assert run.scored.whose == "phantom, profile cpu, 12 test subjects" and run.scored.profile.name == "cpu"
    assert networks.run.scored.place == networks.run.place

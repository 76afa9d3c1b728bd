"""A run: its subjects and settings, and which networks it takes or refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import rewritten

from pdlib import paths
from pdlib.data import wmh
from pdlib.data.folds import with_further
from pdlib.evaluation import records
from pdlib.paths import Layout
from pdlib.study import run as run_module
from pdlib.study.rows import members_rows
from pdlib.study.run import Run, diffusion_of
from pdlib.training.weights import export_weights, load_weights

TRAININGS = ["attention_unet_0", "bayesian_unet_0", "probabilistic_unet_0", "tdpm_0300"]
TRAININGS += ["denoiser_0", "wolleb2021", "one_step_0200", "one_step_0200_mask"]


def test_no_subject_is_in_two_parts_whatever_the_fold(networks):
    tested = []
    for fold in range(3):
        run = Run.at(replace(networks.place, fold=fold), networks.profile)
        parts = [set(run.subjects(split)) for split in ("train", "validation", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 9 and all(parts)
        tested += run.subjects("test")
    assert len(tested) == len(set(tested)) == 9, "each subject is tested once"


@pytest.fixture
def further(trained):
    """A run with two repeats and eight further subjects a site, two of which every row is tested on."""
    folds = records.read_table(trained.place.folds)
    more = [(f"further/{site}/{i}", site, float(i)) for site in ("Utrecht", "GE3T") for i in range(8)]
    cases = pd.DataFrame(more, columns=["subject", "site", "lesion_ml"])
    table = with_further(folds, cases, seeds=[4, 7], others_per_site=2, seed=0)
    records.write_table(trained.place.folds, table, {})
    repeats = {"seeds": (4, 7), "further_per_site": 8, "others_per_site": 2, "key_methods": ("pd_ddpm",)}
    repeats = trained.profile.repeats.model_copy(update=repeats)
    return Run.at(trained.place, trained.profile.model_copy(update={"repeats": repeats}))


def test_further_subjects_are_tested_each_in_one_repeat(further, networks):
    before = networks.run
    for split in ("train", "validation"):
        assert further.subjects(split) == before.subjects(split)
        assert {further.seed_of(subject) for subject in further.subjects(split)} == {4}
    few, key = further.subjects("test"), further.subjects("key")
    assert (len(few), len(key)) == (4, 16) and set(few) < set(key)
    assert further.tested("pd_ddpm") == key and further.tested("ddpm") == few
    for subjects in (few, key):
        seeds = [further.seed_of(subject) for subject in subjects]
        assert seeds.count(4) == seeds.count(7) == len(subjects) // 2
    assert {further.site(subject) for subject in few} == {"Utrecht", "GE3T"}
    assert further.whose == "phantom, profile tiny, 16 test subjects of the key rows, 4 of the others"


def test_without_further_subjects_every_row_is_tested_on_the_test_fold(networks):
    run = networks.run
    assert run.subjects("key") == run.subjects("test") == run.tested("pd_ddpm") == run.tested("unet")
    assert {run.seed_of(subject) for subject in run.subjects("test")} == {0}
    assert run.whose == "phantom, profile tiny, 3 test subjects"


def test_a_score_names_the_repeat_that_made_it(trained):
    repeats = trained.profile.repeats.model_copy(update={"seeds": (5,)})
    run = Run.at(trained.place, trained.profile.model_copy(update={"repeats": repeats, "seed": 3}))
    subject = run.subjects("test")[0]
    members = np.zeros((1, *run.volume(subject).mask.shape), np.float32)
    about = {"method": "unet", "split": "test", "nfe": 1}
    assert set(members_rows(run, members, subject, **about).seed) == {5}


def test_a_few_subjects_are_spread_over_the_sites(networks):
    run = networks.run
    subjects = run.subjects("validation")
    assert run.spread("validation", 9) == subjects and run.spread("validation", 1) == subjects[:1]
    few = run.spread("validation", 2)
    assert few == [subjects[0], subjects[-1]] and len({run.site(subject) for subject in few}) == 2


def test_training_slices_are_those_of_the_training_subjects(networks):
    run = networks.run
    bank = run.training_slices()
    volumes = [run.volume(subject) for subject in run.subjects("train")]
    assert len(bank.images) == len(bank.masks) == run.slice_count("train")
    assert sum(float(mask.sum()) for mask in bank.masks) == sum((v.mask * v.brain).sum() for v in volumes)
    total = sum(float(image.abs().sum()) for image in bank.images)
    assert total == pytest.approx(sum(np.abs(v.image).sum() for v in volumes), rel=1e-5)
    assert run.slice_count("train", "test") == run.slice_count("train") + run.slice_count("test")


def test_a_card_tells_the_data_as_segment_needs_them(networks):
    card = networks.run.data_card()
    assert card["in_plane_mm"]["median"] == pytest.approx([4.0, 4.8]) and card["clip_percentiles"] == [0.5, 99.5]
    assert card["slice_mm"] == {"low": 3.0, "median": 3.0, "high": 3.0}
    assert card == networks.run.weights("denoiser_0").card["data"] and json.loads(json.dumps(card)) == card


def test_trainings_on_patients_go_on_from_the_networks_of_the_clone_where_the_profile_says_so(
    networks, tmp_path, monkeypatch
):
    monkeypatch.setattr(paths, "COMMITTED", tmp_path)
    run = networks.run
    own = run.weights("denoiser_0")
    export_weights(own.path.parents[1], ["denoiser_0"], tmp_path / run.profile.name, run.profile.name)
    tuned = replace(run, profile=run.profile.model_copy(update={"fine_tune": True}))
    patients = {**run.data, "phantom": False}
    assert run.begun_with("denoiser_0") is None and tuned.begun_with("denoiser_0") is None, "a phantom begins anew"
    assert replace(run, data=patients).begun_with("denoiser_0") is None
    assert replace(tuned, data=patients).begun_with("denoiser_0").card["full_precision"] == own.digest
    assert replace(tuned, data=patients).begun_with("denoiser_1") is None, "nothing comes along"


def test_labels_tell_other_pathology_from_lesion(networks):
    run, found = networks.run, set()
    for subject in run.subjects("test"):
        stored, _ = wmh.read_labels(f"{run.data['root']}/{subject}/wmh.nii.gz")
        np.testing.assert_array_equal(run.labels(subject), stored)
        found |= set(np.unique(stored))
    assert found == {0, 1, 2}


def test_a_run_keeps_the_precision_it_measured_whatever_a_later_measurement_says(trained, monkeypatch):
    monkeypatch.setattr(run_module, "fast_precision", lambda device: "bf16-mixed")
    machine = trained.profile.machine

    def precision(asked):
        profile = trained.profile.model_copy(update={"machine": machine.model_copy(update={"precision": asked})})
        return Run.at(trained.place, profile).compute.precision

    assert (precision("auto"), precision("bf16-mixed")) == ("32-true", "bf16-mixed")


# Which networks a run takes.
def test_weights_are_read_once_and_networks_built_once(trained):
    run = trained.run
    weights = run.weights("attention_unet_0")
    assert run.weights("attention_unet_0") is weights
    network = run.network(weights, "segmenter")
    assert run.network(weights, "segmenter", "generator") is network
    denoiser = run.denoiser(run.weights("denoiser_0"))
    assert run.denoiser(run.weights("denoiser_0")) is denoiser
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rewritten(trained.preseg, shift=0.1)
    other = run.network(run.weights("attention_unet_0"), "segmenter")
    assert other is not network and run.weights("attention_unet_0") != weights
    assert any(not torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(ValueError, match=r"denoiser_0/best\.safetensors: holds a denoiser, not a segmenter"):
        run.network(run.weights("denoiser_0"), "segmenter", "generator")
    with pytest.raises(ValueError, match=r"attention_unet_0/best\.safetensors: holds a segmenter, not a denoiser"):
        run.denoiser(run.weights("attention_unet_0"))


def test_each_denoiser_comes_with_what_it_was_trained_with(networks):
    shared, own = (networks.run.weights(name) for name in ("denoiser_0", "wolleb2021"))
    assert float(diffusion_of(own).schedule.betas[-1]) == pytest.approx(0.9) and own != shared
    assert diffusion_of(shared).schedule.steps == 10 and diffusion_of(shared).prediction == "v"


@pytest.mark.fault("bad weights")
@pytest.mark.parametrize("name", TRAININGS)
def test_weights_of_another_fold_are_refused(trained, name):
    place = replace(trained.place, fold=1)
    shutil.copytree(trained.weights, place.weights(""))
    with pytest.raises(ValueError, match=f"fold_1/weights/{name}/best.* its train subjects are not those of fold 1"):
        Run.at(place, trained.profile).weights(name)
    assert trained.run.weights(name).finished


@pytest.mark.fault("bad weights")
@pytest.mark.parametrize("split", ["train", "validation"])
def test_weights_of_other_subjects_are_refused(trained, split):
    data = load_weights(trained.preseg).card["data"]
    rewritten(trained.preseg, data=data | {split: [*data[split], trained.run.subjects("test")[0]]})
    with pytest.raises(ValueError, match=f"attention_unet_0/best.* its {split} subjects are not those of fold 0"):
        trained.run.weights("attention_unet_0")


def test_an_unfinished_training_s_best_is_refused_but_not_the_steps_it_kept(trained):
    rewritten(trained.preseg, finished=False, step=1)
    run = trained.run
    with pytest.raises(ValueError, match=r"attention_unet_0/best.* not ended, these weights are of update 1"):
        run.weights("attention_unet_0")
    kept = sorted(
        path.stem for path in trained.preseg.parent.glob("*.safetensors") if path.stem not in ("best", "last")
    )
    assert len(kept) == 2 and all(run.weights("attention_unet_0", step).card["kind"] == "segmenter" for step in kept)
    with pytest.raises(ValueError, match=r"weights/nnunet/best\.safetensors"):
        run.weights("nnunet")


# Changed settings.
def changed(trained, own_networks):
    place = replace(trained.place, changed="abc", own_networks=own_networks)
    if own_networks:
        shutil.copytree(trained.place.runs, place.runs, ignore=shutil.ignore_patterns("weights", "changed"))
        shutil.copytree(trained.place.results, place.results, ignore=shutil.ignore_patterns("changed"))
    return Run.at(place, trained.profile)


def test_a_run_with_changed_settings_takes_the_profile_s_networks_and_writes_apart(trained):
    run = changed(trained, own_networks=False)
    own = run.place.weights("one_step_0200") / "best.safetensors"
    assert run.data == trained.run.data and run.subjects("test") == trained.run.subjects("test")
    assert run.weights("denoiser_0") is trained.run.weights("denoiser_0")
    before = sorted(trained.place.results.rglob("*"))
    run.write("a", pd.DataFrame({"x": [1]}))
    written = run.place.results / "a.csv"
    assert written == trained.place.results / "changed" / "abc" / "a.csv" and written.exists()
    assert set(trained.place.results.glob("*")) - set(before) == {trained.place.results / "changed"}
    shutil.copytree(trained.place.weights("one_step_0200"), own.parent)
    rewritten(own, shift=0.1)
    assert run.weights("one_step_0200").path == own, "its own come first, where it has trained some"
    assert trained.run.weights("one_step_0200").path != own


def test_a_run_whose_changes_concern_its_networks_takes_no_others(trained):
    run = changed(trained, own_networks=True)
    with pytest.raises(ValueError, match=r"changed/abc/weights/denoiser_0/best\.safetensors"):
        run.weights("denoiser_0")
    shutil.copytree(trained.place.weights("denoiser_0"), run.place.weights("denoiser_0"))
    assert run.weights("denoiser_0").path == run.place.weights("denoiser_0") / "best.safetensors"


def test_opening_asks_for_what_the_notebook_stands_on_and_stamps_what_was_changed(trained, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(run_module, "require", lambda *arguments: asked.append(arguments))
    place = Layout(tmp_path / "other", "smoke", 2)
    for theirs, ours in ((trained.place.cases, place.cases), (trained.place.folds, place.folds)):
        ours.parent.mkdir(parents=True)
        shutil.copy(theirs, ours)
    run = Run.open("05_sweep_t_prime", "smoke", 2, str(place.out), {"chain": {"eta": 0.5}})
    assert asked == [
        (run.place, run.profile, ["01_prepare_data", "02_train_segmenters.attention_unet_0", "03_train_ddpm.0"])
    ]
    assert run.place.trained == place and run.place.results.is_relative_to(place.shared.results / "changed")
    assert (run.fold, run.profile.chain.eta, run.note) == (2, 0.5, "phantom")
    run.write("a", pd.DataFrame({"x": [1]}))
    stamp = records.read_stamp(run.place.results / "a.csv")
    assert stamp["profile"] == "smoke" and stamp["changes"] == {"chain": {"eta": 0.5}} and stamp["phantom"] is True
    with pytest.raises(ValueError, match=r"chain\.eat: no such setting"):
        Run.open("05_sweep_t_prime", "smoke", 2, str(place.out), {"chain": {"eat": 0.5}})

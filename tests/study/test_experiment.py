"""Scores of a run: the right subjects, the right numbers, and nothing computed twice or left stale."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from pdlib.data import wmh
from pdlib.evaluation import metrics, records
from pdlib.inference import slices as slices_module
from pdlib.inference import volumes as inference
from pdlib.networks.guided_unet import PreparedDenoiser
from pdlib.study import experiment
from pdlib.training.fit import read_weights


class Calls:
    """Images that networks were called on, counted at the networks themselves: on the CPU, for replays call none."""

    def __init__(self, monkeypatch):
        self.images = 0
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        denoise, call = PreparedDenoiser.__call__, slices_module.call

        def counted_denoise(network, x, t):
            self.images += len(x)
            return denoise(network, x, t)

        def counted_call(network, precision, on_call, x, *arguments):
            self.images += len(x)
            return call(network, precision, on_call, x, *arguments)

        monkeypatch.setattr(PreparedDenoiser, "__call__", counted_denoise)
        monkeypatch.setattr(slices_module, "call", counted_call)

    def since(self) -> int:
        images, self.images = self.images, 0
        return images


@pytest.fixture
def calls(monkeypatch) -> Calls:
    return Calls(monkeypatch)


def silent(images):
    pass


def slices(run, subject):
    return int(run.volume(subject).brain.any(axis=(1, 2)).sum())


def values(rows):
    return rows.drop(columns="seconds")


def another_network(path):
    """Other weights in the same file."""
    tensors, card = read_weights(path)
    save_file({name: value + 0.1 for name, value in tensors.items()}, path, metadata={"card": json.dumps(card)})


def test_no_subject_is_in_two_parts_whatever_the_fold(networks):
    for fold in range(3):
        run = replace(networks.run, place=replace(networks.place, fold=fold))
        parts = [set(run.subjects(split)) for split in ("train", "validation", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 9 and all(parts)


SOURCES = ["attention_unet_0", "bayesian_unet_0", "probabilistic_unet_0", "tdpm_0300"]


@pytest.mark.parametrize("name", [*SOURCES, "denoiser", "one_step_0200", "one_step_0200_mask"])
def test_weights_of_another_fold_are_refused(trained, name):
    place, denoiser = replace(trained.place, fold=1), experiment.Denoiser.load(trained.run)
    run, path = replace(trained.run, place=place), place.weights(name) / "best.safetensors"
    shutil.copytree(trained.weights, place.weights(""))
    subject = run.subjects("test")[0]
    with pytest.raises(ValueError, match=f"fold_1/weights/{name}/best.* its train subjects are not those of fold 1"):
        if name == "denoiser":
            experiment.Denoiser.load(run)
        elif name in SOURCES:
            experiment.draws(run, path, subject, 1)
        else:
            chain = trained.chain(t_prime=3, finish="one_step", t_stop=2)
            experiment.chain_members(run, denoiser, chain, None, subject, 1, one_step=path)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_weights_of_other_subjects_are_refused(trained, split):
    tensors, card = read_weights(trained.preseg)
    card["data"][split].append(trained.run.subjects("test")[0])
    save_file(tensors, trained.preseg, metadata={"card": json.dumps(card)})
    with pytest.raises(ValueError, match=f"attention_unet_0/best.* its {split} subjects are not those of fold 0"):
        experiment.starts(trained.run, trained.preseg, trained.run.subjects("test")[0], 1)


def test_a_run_keeps_the_precision_it_measured_whatever_a_later_measurement_says(trained, monkeypatch):
    monkeypatch.setattr(inference, "fast_precision", lambda device: "bf16-mixed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert replace(trained.run, precision="auto").autocast == "32-true"
    assert replace(trained.run, precision="bf16-mixed").autocast == "bf16-mixed"


def test_training_slices_are_those_of_the_training_subjects(networks):
    run = networks.run
    bank = run.training_slices()
    volumes = [run.volume(subject) for subject in run.subjects("train")]
    assert len(bank.images) == len(bank.masks) == sum(slices(run, subject) for subject in run.subjects("train"))
    assert sum(float(mask.sum()) for mask in bank.masks) == sum((v.mask * v.brain).sum() for v in volumes)
    total = sum(float(image.abs().sum()) for image in bank.images)
    assert total == pytest.approx(sum(np.abs(v.image).sum() for v in volumes), rel=1e-5)
    card = run.grid_card()
    assert card["in_plane_mm"]["median"] == pytest.approx([4.0, 4.8]) and card["clip_percentiles"] == [0.5, 99.5]


def test_labels_tell_other_pathology_from_lesion(networks):
    run = networks.run
    for subject in run.subjects("test"):
        stored, _ = wmh.read_labels(f"{run.data['root']}/{subject}/wmh.nii.gz")
        np.testing.assert_array_equal(experiment.labels(run.volume(subject)), stored)


def test_segmenter_rows_are_the_direct_scores(trained):
    run = trained.run
    rows = experiment.segmenter_rows(run, [trained.preseg], method="unit", split="test", on_batch=silent)
    assert list(rows.columns) == list(records.COLUMNS) and set(rows.subject) == set(run.subjects("test"))
    assert set(rows.nfe) == {1} and set(rows.ensemble_size) == {1} and rows.t_prime.isna().all()
    network, _ = inference.load_segmenter(trained.preseg, torch.device("cpu"))
    for subject in run.subjects("test"):
        volume = run.volume(subject)
        direct = inference.draw_member(
            network,
            volume,
            subject=subject,
            seed=0,
            member=0,
            multiple=4,
            batch_size=3,
            precision="32-true",
            on_batch=silent,
        )
        stored = direct.values.astype(np.float16)  # as the cache keeps it
        expected = metrics.score_volume(experiment.labels(volume), stored >= 0.5, volume.spacing_mm)
        found = rows[rows.subject == subject].set_index("metric")
        assert found.value.to_dict() == pytest.approx(expected, nan_ok=True) and set(found.site) == {run.site(subject)}


def test_a_deep_ensemble_averages_its_networks_and_costs_their_sum(trained):
    run, subject = trained.run, trained.run.subjects("test")[0]
    both = [trained.preseg, trained.place.weights("attention_unet_1") / "best.safetensors"]
    rows = experiment.segmenter_rows(run, both, method="deep", split="test", on_batch=silent)
    stack = np.concatenate([experiment.draws(run, path, subject, 1).values for path in both])
    assert np.abs(stack[0] - stack[1]).max() > 1e-3
    volume = run.volume(subject)
    expected = metrics.score_volume(experiment.labels(volume), stack.mean(axis=0) >= 0.5, volume.spacing_mm)
    found = rows[rows.subject == subject].set_index("metric").value
    assert found["dice"] == pytest.approx(expected["dice"])
    assert found["uncertainty"] == pytest.approx(stack.var(axis=0)[volume.brain].mean(), rel=1e-4)
    assert set(rows.nfe) == {2} and set(rows.ensemble_size) == {2}


def test_chain_rows_are_the_direct_scores_and_count_every_call(trained, calls):
    run, chain = trained.run, trained.chain(7, stride=2)
    denoiser = experiment.Denoiser.load(run)
    rows = experiment.chain_rows(
        run, denoiser, chain, trained.preseg, method="pd_ddpm", split="test", ensemble_size=3, on_batch=silent
    )
    spent = calls.since()
    assert list(rows.columns) == list(records.COLUMNS) and set(rows.subject) == set(run.subjects("test"))
    assert set(rows.nfe) == {3 * 4 + 1} and set(rows.t_prime) == {7} and set(rows.ensemble_size) == {3}
    assert spent == sum(13 * slices(run, subject) for subject in run.subjects("test"))
    for subject in run.subjects("test"):
        volume = run.volume(subject)
        begun = experiment.starts(run, trained.preseg, subject, 3).values
        members = (
            inference.sample_members(
                denoiser.network,
                volume,
                begun,
                chain=chain,
                diffusion=denoiser.diffusion,
                one_step=None,
                subject=subject,
                seed=0,
                members=range(3),
                multiple=4,
                batch_size=5,
                precision="32-true",
                on_batch=silent,
            )
            .values.astype(np.float16)
            .astype(np.float32)
        )
        ensemble = inference.combine(members, threshold=0.5, vote="soft")
        found = rows[rows.subject == subject].set_index("metric").value
        expected = metrics.score_volume(experiment.labels(volume), ensemble.mask, volume.spacing_mm)
        assert found[list(expected)].to_dict() == pytest.approx(expected, nan_ok=True)
        assert found["uncertainty"] == pytest.approx(ensemble.variance[volume.brain].mean(), rel=1e-3)


def test_nothing_is_computed_twice_until_something_changes(trained, calls):
    run, chain, path = trained.run, trained.chain(), trained.place.weights("denoiser") / "best.safetensors"
    subject = run.subjects("test")[0]
    each = slices(run, subject)

    def members(run=run, chain=chain, preseg=trained.preseg):
        return experiment.chain_members(run, experiment.Denoiser.load(run), chain, preseg, subject, 2).values

    first = members()
    assert calls.since() == each * (1 + 2 * 4)
    np.testing.assert_array_equal(members(), first)
    assert calls.since() == 0
    assert np.abs(members(run=replace(run, seed=1)) - first).max() > 1e-3
    assert calls.since() == each * 2 * 4
    assert not np.array_equal(members(chain=replace(chain, step="ddim")), first)
    members(preseg=None)
    assert calls.since() == 2 * each * 2 * 4
    members()
    calls.since()
    another_network(path)
    assert not np.array_equal(members(), first)
    assert calls.since() == each * 2 * 4
    another_network(trained.preseg)
    members()
    assert calls.since() == each * (1 + 2 * 4)


def test_chains_and_last_networks_do_not_evict_each_other(trained, calls):
    run, denoiser, subject = trained.run, experiment.Denoiser.load(trained.run), trained.run.subjects("test")[0]
    stopped = {"t_prime": 3, "finish": "one_step", "t_stop": 2}
    kinds = [(trained.chain(step="ddim", eta=eta), None) for eta in (0.0, 1.0)]
    kinds += [
        (trained.chain(**stopped), trained.place.weights(f"one_step_0200{name}") / "best.safetensors")
        for name in ("", "_mask")
    ]

    def members():
        return [
            experiment.chain_members(run, denoiser, chain, trained.preseg, subject, 1, one_step=last).values
            for chain, last in kinds
        ]

    first = members()
    calls.since()
    for one, again in zip(first, members(), strict=True):
        np.testing.assert_array_equal(one, again)
    assert calls.since() == 0
    with pytest.raises(ValueError, match="trained for t_stop = 2, and the chain stops at 1"):
        wrong = trained.chain(**stopped | {"t_stop": 1})
        experiment.chain_members(run, denoiser, wrong, trained.preseg, subject, 1, one_step=kinds[2][1])


def test_other_data_under_the_same_names_are_read_anew(trained, calls):
    run, subject = trained.run, trained.run.subjects("test")[0]
    experiment.draws(run, trained.preseg, subject, 1)
    text = trained.place.cases.read_text(encoding="utf-8")
    trained.place.cases.write_text(text.replace(run.data["fingerprint"], "other"), encoding="utf-8")
    calls.since()
    experiment.draws(run, trained.preseg, subject, 1)
    assert calls.since() == slices(run, subject)


def test_a_larger_ensemble_samples_only_what_is_missing(trained, calls):
    run, chain = trained.run, trained.chain()
    denoiser, subject = experiment.Denoiser.load(run), trained.run.subjects("test")[0]

    def members(count):
        return experiment.chain_members(run, denoiser, chain, trained.preseg, subject, count)

    two = members(2)
    calls.since()
    five = members(5)
    assert calls.since() == 3 * 4 * slices(run, subject)
    assert len(members(3).values) == 3 and calls.since() == 0
    np.testing.assert_array_equal(five.values[:2], two.values)
    assert (five.calls, two.calls) == (20, 8)
    for path in trained.place.samples().rglob("*.npz"):
        path.unlink()
    np.testing.assert_array_equal(members(5).values, five.values)


def test_killed_sampling_goes_on_where_it_was(trained, calls):
    run, chain = trained.run, trained.chain()
    denoiser, subjects = experiment.Denoiser.load(run), trained.run.subjects("test")

    def rows(on_batch):
        common = {"method": "pd_ddpm", "split": "test", "ensemble_size": 2, "on_batch": on_batch}
        return experiment.chain_rows(run, denoiser, chain, trained.preseg, **common)

    def killed(images):
        if calls.images > slices(run, subjects[0]) * 9 + 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rows(killed)
    calls.since()
    resumed = rows(silent)
    assert calls.since() == sum(8 * slices(run, subject) for subject in subjects[1:]) + sum(
        slices(run, subject) for subject in subjects[2:]
    ), "the first subject is done, and so is the second one's pre-segmentation"
    for path in trained.place.samples().rglob("*.npz"):
        path.unlink()
    pd.testing.assert_frame_equal(values(rows(silent)), values(resumed))
    assert not list(trained.place.runs.rglob("*.tmp"))


def test_an_empty_start_costs_nothing_and_scores_nothing(trained, calls):
    run = trained.run
    rows = experiment.preseg_rows(run, None, method="empty", split="test")
    found = rows.pivot(index="subject", columns="metric", values="value")
    assert (found.dice == 0).all() and (found.lesion_recall == 0).all() and found.hd95_mm.isna().all()
    assert set(rows.nfe) == {0} and calls.since() == 0
    soft = experiment.preseg_rows(run, trained.preseg, method="best", split="test")
    direct = experiment.segmenter_rows(run, [trained.preseg], method="best", split="test", on_batch=silent)
    pd.testing.assert_frame_equal(values(soft), values(direct))


CURVE = pd.Series({15: 0.10, 30: 0.50, 45: 0.60, 60: 0.65, 75: 0.70, 90: 0.69})


@pytest.mark.parametrize(
    ("gaps", "steps"),
    [
        ([0.2, 0.1, 0.0], [30, 45, 75]),
        ([0.0, 0.1, 0.2], [30, 45, 75]),
        ([0.045, 0.029, 0.0], [60, 90, 75]),
        ([0.045, 0.029, 0.014, 0.0], [45, 60, 90, 75]),
        ([0.0], [75]),
    ],
)
def test_checkpoints_by_hand(gaps, steps):
    """Targets are best - gap = .50, .60; or .655 and .671, so .65 and .69, unless .686 takes .69."""
    assert experiment.pick_checkpoints(CURVE, gaps) == steps


def test_too_few_checkpoints_is_said():
    with pytest.raises(ValueError, match="4 checkpoints asked of a training with 3 distinct scores"):
        experiment.pick_checkpoints(pd.Series({1: 0.1, 2: 0.2, 3: 0.2, 4: 0.3}), [0.045, 0.029, 0.014, 0.0])


def test_random_ensembles_of_a_pool_by_hand(networks):
    """One of four members is the reference, the others empty: a soft vote at one half needs it among at most two."""
    run, found = networks.run, {}
    for subject in run.subjects("test")[:2]:
        pool = np.zeros((4, *run.volume(subject).mask.shape), np.float32)
        pool[2] = run.volume(subject).mask
        rows = experiment.ensemble_draws(
            run, pool, subject, method="pd_ddpm", split="test", t_prime=3, sizes=[1, 2, 3, 4], draws=40
        )
        assert list(rows.columns) == list(records.COLUMNS) and len(rows) == 160
        found[subject] = rows.set_index(["ensemble_size", "seed"]).value
    one, other = found.values()
    pd.testing.assert_series_equal(one, other)
    share = one.groupby("ensemble_size").mean()
    assert set(one) == {0, 1} and share[3] == share[4] == 0
    assert share[1] == pytest.approx(1 / 4, abs=0.2) and share[2] == pytest.approx(1 / 2, abs=0.25)


def test_agreement_with_perfect_and_with_blind_members(trained, monkeypatch):
    """Members that are the raters' own masks; then members that agree with each other and with nobody."""
    run, subject = trained.run, trained.run.subjects("test")[0]
    volume = run.volume(subject)
    truth = volume.mask == 1
    other = truth.copy()
    other[tuple(np.argwhere(truth)[0])] = False
    raters = {"observer_o3": truth.astype(np.uint8), "observer_o4": other.astype(np.uint8)}
    monkeypatch.setattr(experiment.Run, "raters", lambda self, name: raters)
    about = {"method": "unit", "split": "test", "t_prime": None, "bins": 10}

    def scored(members):
        rows = experiment.agreement_rows(run, np.stack(members).astype(np.float32), subject, **about)
        return rows.set_index("metric").value

    perfect = scored([truth, other])
    assert perfect["energy_distance"] == 0 and perfect["rater_dice"] > 0.9
    assert perfect["risk_area"] == perfect["risk_area_oracle"] == 0 and perfect["risk_area_random"] == 0
    blind = scored([truth * 0, truth * 0])
    share = truth[volume.brain & ~volume.ignore].mean()
    assert blind["risk_area"] == pytest.approx(blind["risk_area_random"]) == pytest.approx(share)
    assert blind["calibration_error"] == pytest.approx(share) and blind["rater_dice"] == 0
    assert blind["energy_distance"] > 1.9


def test_a_generator_s_states_stand_beside_diffused_references(trained):
    run, denoiser = trained.run, experiment.Denoiser.load(trained.run)
    weights = trained.place.weights("tdpm_0300") / "best.safetensors"
    subjects = run.subjects("test")[:2]
    table = experiment.state_statistics(run, weights, denoiser.diffusion, 3, subjects)
    abar = float(denoiser.diffusion.schedule.abar(2))
    diffused = table.loc["diffused"]
    assert diffused["mean in lesions"] == pytest.approx(abar**0.5, abs=0.1)
    assert diffused["deviation outside"] == pytest.approx((1 - abar) ** 0.5, rel=0.1)
    assert diffused["deviation between draws"] == pytest.approx((1 - abar) ** 0.5, rel=0.1)
    drawn = np.stack([experiment.draws(run, weights, subject, 2).values for subject in subjects])
    inside = np.stack([run.volume(subject).brain & (run.volume(subject).mask == 0) for subject in subjects])
    assert table.loc["drawn", "mean outside"] == pytest.approx(drawn[:, 0][inside].mean(), rel=1e-5)

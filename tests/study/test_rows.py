"""Members in, scores out: by hand, with the cost of what was called."""

import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import save

from pdlib.evaluation import agreement, metrics, records
from pdlib.inference.volumes import combine
from pdlib.study.comparison import Row
from pdlib.study.rows import agreement_rows, ensemble_draws, members_rows, risk_curve
from pdlib.study.run import Run

ABOUT = {"method": "pd_ddpm", "split": "test", "t_prime": 3}


def by_metric(rows):
    return rows.set_index("metric").value


def test_an_ensemble_s_rows_are_its_mask_s_scores_and_its_members_spread(networks):
    run, subject = networks.run, networks.run.subjects("test")[0]
    volume = run.volume(subject)
    members = np.random.default_rng(0).random((3, *volume.brain.shape), dtype=np.float32) * volume.brain
    rows = members_rows(run, members, subject, nfe=7, seconds=1.5, **ABOUT)
    ensemble = combine(members, threshold=0.5, vote="soft")
    expected = metrics.score_volume(run.labels(subject), ensemble.mask, volume.spacing_mm)
    found = by_metric(rows)
    assert found[list(expected)].to_dict() == pytest.approx(expected, nan_ok=True)
    assert found["uncertainty"] == pytest.approx(members.var(axis=0)[volume.brain].mean(), rel=1e-4)
    assert set(found.index) - set(expected) == {"uncertainty", "relative_uncertainty", "entropy"}
    assert (
        list(rows.columns) == list(records.COLUMNS) and len(rows[["nfe", "seconds", "t_prime"]].drop_duplicates()) == 1
    )
    about = rows.iloc[0]
    assert (about.ensemble_size, about.nfe, about.site, about.fold) == (3, 7, run.site(subject), 0)
    alone = members_rows(run, members[:1], subject, **ABOUT)
    assert set(alone.metric) == set(expected), "one member has no spread"


def test_the_profile_says_how_members_become_a_mask(networks):
    run, subject = networks.run, networks.run.subjects("test")[0]
    truth = (run.labels(subject) == 1).astype(np.float32)
    members = np.stack([truth, truth * 0.3, truth * 0.3])  # the mean is .53, the majority says no

    def dice(**changes):
        ensemble = run.profile.ensemble.model_copy(update=changes)
        other = Run.at(run.place, run.profile.model_copy(update={"ensemble": ensemble}))
        return by_metric(members_rows(other, members, subject, **ABOUT))["dice"]

    assert (dice(), dice(vote="majority"), dice(threshold=0.6)) == (1, 0, 0)


def test_a_presegmentation_by_itself_is_its_segmenter_s_row(trained, calls):
    run = trained.run
    soft = Row.of(run, "pd_ddpm").start_scores("test", "attention_unet").assign(start="")
    assert calls.since() == run.slice_count("test")
    direct = Row.of(run, "attention_unet").scores("test")
    assert calls.since() == 0 and set(soft.nfe) == {1}
    pd.testing.assert_frame_equal(soft, direct)


def test_an_empty_start_costs_nothing_and_scores_nothing(trained, calls):
    row = Row.of(trained.run, "pd_ddpm").starting_from(None, "empty")
    rows = row.start_scores("test", "attention_unet")
    found = rows.pivot(index="subject", columns="metric", values="value")
    assert (found.dice == 0).all() and (found.lesion_recall == 0).all() and found.hd95_mm.isna().all()
    assert set(rows.nfe) == {0} == set(rows.seconds) and calls.since() == 0 and set(rows.start) == {"empty"}


def test_random_ensembles_of_a_pool_by_hand(networks):
    """One of four members is the reference, the others empty: a soft vote at one half needs it among at most two."""
    run, found = networks.run, {}
    for subject in run.subjects("test")[:2]:
        pool = np.zeros((4, *run.volume(subject).mask.shape), np.float32)
        pool[2] = run.volume(subject).mask
        rows = ensemble_draws(run, pool, subject, [1, 2, 3, 4], 40, **ABOUT)
        assert list(rows.columns) == list(records.COLUMNS) and len(rows) == 160
        assert rows.nfe.isna().all() and rows.seconds.isna().all() and set(rows.unit) == {"1"}
        found[subject] = rows.set_index(["ensemble_size", "seed"]).value
    one, other = found.values()
    pd.testing.assert_series_equal(one, other)
    share = one.groupby("ensemble_size").mean()
    assert set(one) == {0, 1} and share[3] == share[4] == 0
    assert share[1] == pytest.approx(1 / 4, abs=0.2) and share[2] == pytest.approx(1 / 2, abs=0.25)


def test_agreement_with_perfect_and_with_blind_members(trained, tmp_path):
    """Members that are the raters' own masks; then members that agree with each other and with nobody."""
    root = tmp_path / "cases"
    shutil.copytree(trained.run.data["root"], root)
    text = trained.place.cases.read_text(encoding="utf-8")
    trained.place.cases.write_text(text.replace(trained.run.data["root"], str(root)), encoding="utf-8")
    run = trained.run
    subject = run.subjects("test")[0]
    volume = run.volume(subject)
    truth = volume.mask == 1
    other = truth.copy()
    other[tuple(np.argwhere(truth)[0])] = False
    alone = by_metric(agreement_rows(run, truth[None].astype(np.float32), subject, 10, **ABOUT))
    assert np.isnan(alone["energy_distance"]) and np.isnan(alone["rater_dice"]), "no raters"
    for name, mask in (("observer_o3", truth), ("observer_o4", other)):
        labels = (mask + 2 * volume.ignore).transpose(2, 1, 0)
        save(root / "additional_annotations" / name / subject / "result.nii.gz", labels, volume.grid.affine)
    assert list(run.raters(subject)) == ["observer_o3", "observer_o4"]

    def scored(members):
        return by_metric(agreement_rows(run, np.stack(members).astype(np.float32), subject, 10, **ABOUT))

    perfect = scored([truth, other])
    assert perfect["energy_distance"] == 0 and perfect["rater_dice"] > 0.9
    assert perfect["risk_area"] == perfect["risk_area_oracle"] == 0 and perfect["risk_area_random"] == 0
    blind = scored([truth * 0, truth * 0])
    share = truth[volume.brain & ~volume.ignore].mean()
    assert blind["risk_area"] == pytest.approx(blind["risk_area_random"]) == pytest.approx(share)
    assert blind["calibration_error"] == pytest.approx(share) and blind["rater_dice"] == 0
    assert blind["energy_distance"] > 1.9


def test_a_risk_curve_counts_the_brain_s_errors_by_rising_variance(networks):
    """The ensemble errs where its members differ, so that half of the brain is kept without an error."""
    run = networks.run
    subject = next(one for one in run.subjects("test") if run.volume(one).ignore.any())
    volume = run.volume(subject)
    truth, inside = volume.mask == 1, volume.brain & ~volume.ignore
    missed = truth & (np.cumsum(truth).reshape(truth.shape) % 2 == 0)
    members = np.stack([truth, truth & ~missed, truth & ~missed]).astype(np.float32)
    members[:, volume.ignore] = np.array([0.0, 1.0, 1.0])[:, None]  # an error of any size there counts for nothing
    curve = risk_curve(run, members, subject, np.array([0.5, 0.0]))
    assert curve.columns.tolist() == ["risk", "oracle", "set_aside"] and curve.set_aside.tolist() == [0.5, 0.0]
    share = missed[inside].mean()
    assert curve.risk.tolist() == pytest.approx([0, share]) == curve.oracle.tolist()
    area = agreement.area_under_risk_coverage(missed[inside], members.var(axis=0)[inside])["risk"]
    rows = agreement_rows(run, members, subject, 10, **ABOUT)
    assert by_metric(rows)["risk_area"] == pytest.approx(area) and rows.nfe.isna().all()

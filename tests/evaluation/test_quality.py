"""The quality score: its features by hand, a fit whose answer is known, when an image is strange, and its file."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from scipy.special import expit

from pdlib.evaluation import quality
from pdlib.evaluation.metrics import score_volume
from pdlib.evaluation.quality import AGREEMENT, IMAGE, Origin, Quality, Seen, agreement, fit, image_statistics

ORIGIN = Origin(networks={"denoiser_0": "12ab"}, phantom=True, members=5, calls=6, threshold=0.5)
HOW = {"folds": 3, "resamples": 100, "confidence": 0.95, "seed": 0}


def table(subjects: int, seed: int = 0, noise: float = 0.0) -> pd.DataFrame:
    """Subjects with random features, whose Dice depends on two of them and on noise."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({name: rng.standard_normal(subjects) for name in (*AGREEMENT, *IMAGE)})
    frame["dice"] = expit(0.4 + 0.8 * frame.pair_dice - 0.3 * frame.mean_variance + noise * rng.normal(size=subjects))
    return frame.assign(subject=[f"training/{k}" for k in range(subjects)])


def features(row: pd.Series) -> dict[str, float]:
    return row.drop(["subject", "dice"]).to_dict()


@pytest.fixture(scope="module")
def fitted() -> Quality:
    return fit(table(40), ORIGIN, **HOW)


def test_agreement_by_hand():
    """Two lesions of 4 and 1 voxels; the second member marks 2 voxels of the first and one elsewhere."""
    members = np.zeros((2, 1, 4, 6), np.float32)
    members[0, 0, 0, :4] = members[0, 0, 3, 5] = 0.9
    members[1, 0, 0, :2] = members[1, 0, 3, 0] = 0.7
    mask = members[0] >= 0.5
    found = agreement(members, mask, threshold=0.5, voxel_ml=0.02)
    mean = members.mean(0)
    by_hand = {
        "pair_dice": 2 * 2 / (5 + 3),
        "expected_dice": 2 * (2 * 0.8 + 3 * 0.45) / (5 + mean.sum()),
        "volume_spread": 1 / 4,
        "log10_ml": -1.0,
        "found_by_all": 1 / 2,
        "mean_variance": (2 * 0.1**2 + 3 * 0.45**2) / 5,
    }
    assert list(found) == list(AGREEMENT)
    assert found == pytest.approx(by_hand, abs=1e-6)


def test_members_that_agree_agree_wholly_and_two_empty_ones_as_well():
    members = np.zeros((3, 2, 4, 4))
    members[:, 0, 1, 1] = 1
    found = agreement(members, members[0], threshold=0.5, voxel_ml=0.001)
    perfect = {"pair_dice": 1, "expected_dice": 1, "volume_spread": 0, "found_by_all": 1, "mean_variance": 0}
    assert {name: found[name] for name in perfect} == perfect
    members[1:] = 0
    found = agreement(members, members[0], threshold=0.5, voxel_ml=0.001)
    assert found["pair_dice"] == pytest.approx(1 / 3) and found["found_by_all"] == 0
    members[:] = 0.4  # a soft vote may mark what no member does
    found = agreement(members, members[0], threshold=0.5, voxel_ml=0.001)
    assert found["pair_dice"] == 1 and np.isnan(found["volume_spread"])


def test_nothing_is_known_of_an_empty_mask_and_little_of_a_single_member(fitted):
    empty = agreement(np.zeros((3, 2, 4, 4)), np.zeros((2, 4, 4)), threshold=0.5, voxel_ml=1)
    assert list(empty) == list(AGREEMENT) and np.isnan(list(empty.values())).all()
    single = agreement(np.ones((1, 2, 4, 4)), np.ones((2, 4, 4)), threshold=0.5, voxel_ml=1)
    assert {name for name, value in single.items() if np.isnan(value)} == {
        "pair_dice",
        "volume_spread",
        "mean_variance",
    }
    for unknown in (empty, single):
        assert np.isnan(fitted.predict(unknown))
        assert not any("Dice" in sentence for sentence in fitted.outside(unknown))


def test_image_statistics_by_hand():
    flair = np.arange(202.0).reshape(2, 101, 1) - 101
    brain = flair >= 0
    found = image_statistics(flair, brain, (3.0, 2.0, 1.0))
    assert list(found) == list(IMAGE)
    assert [found[f"flair_q{q:02d}"] for q in quality.QUANTILES] == list(quality.QUANTILES)
    assert found["brain_ml"] == pytest.approx(101 * 6 / 1000) and found["slice_mm"] == 3


def test_a_fit_finds_a_line_that_is_there(fitted):
    new = table(20, seed=1)
    seen = [
        {n: np.clip(v, fitted.seen[n].low, fitted.seen[n].high) for n, v in features(r).items()}
        for _, r in new.iterrows()
    ]
    truth = expit([0.4 + 0.8 * one["pair_dice"] - 0.3 * one["mean_variance"] for one in seen])
    np.testing.assert_allclose([fitted.predict(features(row)) for _, row in new.iterrows()], truth, atol=0.01)
    slopes = {name: term.coefficient / term.scale for name, term in fitted.terms.items()}
    line = dict.fromkeys(AGREEMENT, 0.0) | {"pair_dice": 0.8, "mean_variance": -0.3}
    assert slopes == pytest.approx(line, abs=0.03)
    held_out = fitted.held_out
    assert held_out.correlation > 0.97 and held_out.low > 0.95 and held_out.high <= 1
    assert held_out.low <= held_out.correlation <= held_out.high
    assert held_out.mean_error < 0.2 * held_out.constant_error
    assert (held_out.subjects, held_out.rows, held_out.folds, held_out.confidence) == (40, 40, 3, 0.95)


def test_where_nothing_predicts_the_dice_the_score_says_so():
    frame = table(60, seed=3)
    frame["dice"] = np.random.default_rng(4).uniform(0.3, 0.9, len(frame))
    held_out = fit(frame, ORIGIN, **HOW).held_out
    assert held_out.low < 0.1 and held_out.mean_error > 0.9 * held_out.constant_error


def test_a_constant_dice_has_no_correlation_and_is_predicted():
    found = fit(table(20).assign(dice=0.7), ORIGIN, **HOW)
    assert found.held_out.correlation is None
    assert found.predict(features(table(1, seed=5).iloc[0])) == pytest.approx(0.7, abs=1e-6)


def test_extreme_dice_stay_finite():
    frame = table(20)
    frame.loc[:4, "dice"], frame.loc[5:9, "dice"] = 0.0, 1.0
    assert 0 < fit(frame, ORIGIN, **HOW).predict(features(frame.iloc[0])) < 1


def test_the_rows_of_a_subject_stay_together():
    """Copies of each row tell nothing new: neither held-out predictions nor their interval change."""
    frame = table(30, noise=0.1)
    once, thrice = (fit(pd.concat([frame] * n), ORIGIN, **HOW).held_out for n in (1, 3))
    assert (once.subjects, once.rows, thrice.subjects, thrice.rows) == (30, 30, 30, 90)
    for name in ("correlation", "low", "high", "mean_error", "constant_error"):
        assert getattr(thrice, name) == pytest.approx(getattr(once, name), abs=0.02), name


def test_a_copy_of_a_subject_does_not_foretell_it():
    """A fit that had seen copies of the left-out subjects would follow their chance (correlation 0.7)."""
    frame = table(14, seed=3).assign(dice=np.random.default_rng(13).uniform(0.2, 0.95, 14))
    assert fit(pd.concat([frame] * 4), ORIGIN, **HOW).held_out.correlation < 0


def test_an_empty_mask_counts_for_the_images_range_alone(fitted):
    more = table(41)
    more.loc[40, list(AGREEMENT)] = np.nan
    more.loc[40, "brain_ml"] = 9.0
    found = fit(more, ORIGIN, **HOW)
    assert found.seen["brain_ml"].high == 9 and found.seen["pair_dice"] == Seen(
        low=more.pair_dice.min(), high=more.pair_dice.max(), scale=more.pair_dice.std(ddof=0)
    )
    assert found.held_out.subjects == 40


def test_the_margin_is_that_of_the_strangest_subject_seen():
    frame = table(10)
    frame[[*AGREEMENT, *IMAGE]] = 0.0
    frame["pair_dice"] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 2.0]
    found = fit(frame, ORIGIN, folds=2, resamples=20, confidence=0.95, seed=0)
    margin = 1.2 / frame.pair_dice[:9].std(ddof=0)  # of the last one: it lies 1.2 above the others
    assert found.margin == pytest.approx(margin)
    most = 2.0 + margin * frame.pair_dice.std(ddof=0)
    none = dict.fromkeys(found.seen, 0.0)
    assert found.outside(none | {"pair_dice": most - 0.01}) == ()
    assert found.outside(none | {"pair_dice": most + 0.01}) == (
        f"The mean Dice between two members is {most + 0.01:.3g}; in training it was 0 to 2",
    )
    assert found.outside({"pair_dice": 1.99 - most}) and not found.outside({"pair_dice": 2.01 - most})
    assert not found.outside({"slice_mm": margin - 0.01}), "where nothing varied, 1 is the scale"
    assert found.outside({"slice_mm": margin + 0.01})


def test_a_volume_is_told_in_ml(fitted):
    (said,) = fitted.outside({"log10_ml": 6.0})
    low, high = (10 ** getattr(fitted.seen["log10_ml"], end) for end in ("low", "high"))
    assert said == f"The lesion volume in ml is 1e+06; in training it was {low:.3g} to {high:.3g}"


def test_rounding_is_no_spread():
    frame = table(20).assign(slice_mm=3.0)
    frame.loc[3, "slice_mm"] = np.float32(3.0000002)
    assert fit(frame, ORIGIN, **HOW).seen["slice_mm"].scale == 1


def test_a_subject_like_those_seen_is_rarely_strange():
    """Exchangeable subjects: about one in n + 1, whatever the number of features; here one in 10."""
    alarms = []
    for seed in range(10):
        frame = table(109, seed=100 + seed)
        found = fit(frame[:9], ORIGIN, folds=2, resamples=1, confidence=0.95, seed=0)
        alarms += [bool(found.outside(features(row))) for _, row in frame[9:].iterrows()]
    assert 0.01 < np.mean(alarms) < 0.13


def test_a_strange_image_is_noticed(fitted):
    assert fitted.outside(features(table(1, seed=1).iloc[0])) == ()
    (said,) = fitted.outside(features(table(1, seed=1).iloc[0]) | {"flair_q95": 9.0})
    assert said.startswith("The 95% quantile of the normalised FLAIR is 9; in training it was -")
    with pytest.raises(ValueError, match="none of those that the quality knows"):
        fitted.outside({})


def test_a_missing_feature_is_named(fitted):
    with pytest.raises(ValueError, match="features: without pair_dice, found_by_all"):
        fitted.predict({name: 0.0 for name in AGREEMENT if name not in ("pair_dice", "found_by_all")})


def test_beyond_the_range_seen_nothing_is_extrapolated(fitted):
    end = dict.fromkeys(AGREEMENT, 0.0) | {"pair_dice": fitted.seen["pair_dice"].high}
    assert fitted.predict(end | {"pair_dice": 1e6}) == fitted.predict(end)


def test_the_file_holds_all_of_it(fitted, tmp_path):
    path = tmp_path / "new" / quality.FILE
    fitted.save(path)
    assert Quality.load(path) == fitted
    assert json.loads(path.read_text())["terms"].keys() == AGREEMENT.keys()


def spoilt(text: str, **changes) -> str:
    return json.dumps(json.loads(text) | changes)


FAULTS = {
    "no JSON": (lambda text: text[:-20], "JSON"),
    "another format": (lambda text: spoilt(text, format=2), "format"),
    "no margin": (lambda text: text.replace('"margin"', '"margins"'), "margin"),
    "not a number": (lambda text: spoilt(text, intercept=float("nan")), "intercept|JSON"),
    "no range": (lambda text: spoilt(text, seen={}), "pair_dice is a term without a range"),
    "no spread": (lambda text: text.replace('"scale": ', '"scale": -'), "scale"),
}


@pytest.mark.parametrize(("spoil", "cause"), FAULTS.values(), ids=FAULTS)
def test_a_file_that_cannot_be_used_is_named(fitted, tmp_path, spoil, cause):
    path = tmp_path / quality.FILE
    fitted.save(path)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match=f"{path}: not a quality score .*({cause})") as caught:
        Quality.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path / quality.FILE}: cannot be read"):
        Quality.load(tmp_path / quality.FILE)


def test_another_ensemble_is_told_apart():
    other = Origin(networks={"denoiser_0": "34cd"}, phantom=True, members=3, calls=6, threshold=0.4)
    assert ORIGIN.differences(ORIGIN) == ()
    assert ORIGIN.differences(other) == ("other networks", "members 3, not 5", "threshold 0.4, not 0.5")


REFUSED = {
    "without dice, brain_ml": lambda frame: frame.drop(columns=["dice", "brain_ml"]),
    "column slice_mm": lambda frame: frame.assign(slice_mm=np.nan),
    "column pair_dice": lambda frame: frame.assign(pair_dice=np.inf),
    "5 subjects .* too few for 3 folds": lambda frame: frame[:5],
}


@pytest.mark.parametrize(("cause", "change"), REFUSED.items(), ids=REFUSED)
def test_a_table_that_cannot_be_fitted_is_refused(cause, change):
    with pytest.raises(ValueError, match=f"table: .*{cause}|table: {cause}"):
        fit(change(table(20)), ORIGIN, **HOW)


def ensemble(rng: np.random.Generator, error: float) -> tuple[dict[str, float], float]:
    """Features and true Dice of an ensemble whose members err about a reference, each its own way and together."""
    smooth = ndimage.gaussian_filter(rng.standard_normal((6, 32, 32)), (0.7, 2, 2))
    level = smooth / smooth.std()
    reference = level > 1.3
    shared, own = (ndimage.gaussian_filter(rng.standard_normal((n, 6, 32, 32)), (0, 0.7, 2, 2)) for n in (1, 5))
    members = expit(4 * (level - 1.3 + error * (shared / shared.std() + own / own.std())))
    mask = members.mean(0) >= 0.5
    return (
        agreement(members, mask, threshold=0.5, voxel_ml=0.003),
        score_volume(reference.astype(int), mask, (3, 1, 1))["dice"],
    )


def test_agreement_foretells_the_dice_of_ensembles():
    """Members share half of their error, which their agreement cannot show; still it ranks subjects."""
    rng, rows = np.random.default_rng(0), []
    for number in range(30):
        found, dice = ensemble(rng, rng.uniform(0.05, 1.0))
        rows.append({"subject": str(number), "dice": dice, **found, **dict.fromkeys(IMAGE, 0.0)})
    held_out = fit(pd.DataFrame(rows), ORIGIN, **HOW).held_out
    assert held_out.correlation > 0.8 and held_out.low > 0.6
    assert held_out.mean_error < 0.6 * held_out.constant_error

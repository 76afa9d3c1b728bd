"""The ledger: the differences it names, and a verdict that follows its interval."""

import numpy as np
import pandas as pd
import pytest
from conftest import rows

from pdlib.evaluation import records
from pdlib.evaluation.stats import mean_interval, signed_rank_sum
from pdlib.paths import Layout
from pdlib.profiles import load_profile
from pdlib.report.tables import table_markdown
from pdlib.study.claims import EVERY_STEP, chosen_t_primes, ledger, read_scores

INTERVAL = {"resamples": 500, "confidence": 0.95, "seed": 0}
JUDGED = load_profile("cpu", {"statistics": {"gain": 0.02, "margin": 0.01, "power": 0.8}}).statistics
HOW = {"presegmenter": "attention_unet", "statistics": JUDGED, "interval": INTERVAL}
BASE = np.linspace(0.5, 0.8, 12)
NOISE = np.random.default_rng(0).normal(0, 0.004, 12)


def results(addpm_calls=8, **gains):
    """Scores in which each row lies that far above 0.5 to 0.8; 0.02 below where it is not named."""
    calls = {"ddpm": 45, "wolleb2021": 45}

    def at(name):
        return BASE + gains.get(name, -0.02) + NOISE * (name != "pd_ddpm")

    names = ["pd_ddpm", "ddpm", "wolleb2021", "attention_unet", "deep_ensemble", "tdpm", "es_ddpm", "x0_jump"]
    table1 = [rows(name, at(name), nfe=calls.get(name, 16)) for name in names]
    table1 += [rows("addpm", at("addpm"), nfe=addpm_calls, t_prime=30, t_stop=25)]
    curve = {5: -0.01, 30: 0.0, 50: 0.0, 100: -0.03}
    spread = {5: 1e-5, 30: 5e-5, 50: 9e-5, 100: 1e-4}
    sweep = [
        rows("pd_ddpm", values, metric, split=split, t_prime=t, ensemble_size=2)
        for split in ("validation", "test")
        for t in curve
        for metric, values in (
            ("dice", BASE + curve[t] + (0.01 if (split, t) == ("validation", 30) else NOISE)),
            ("uncertainty", spread[t] * (1 + NOISE)),
        )
    ]
    members = [
        rows("pd_ddpm", BASE + gain + NOISE * draw, ensemble_size=size, seed=draw, t_prime=30)
        for size, gain in {1: 0.0, 2: 0.02, 4: 0.03}.items()
        for draw in (0, 1)
    ]
    starts = {"empty": -0.3, "checkpoint_1": -0.1, "checkpoint_2": -0.05, "best": 0.0}
    begun = [rows("attention_unet", BASE + gain, start=start) for start, gain in starts.items()]
    begun += [rows("pd_ddpm", BASE + gain / 2 + NOISE, start=start, t_prime=30) for start, gain in starts.items()]
    agreed = [
        rows(name, values * (1 + NOISE), metric)
        for name, found in {
            "pd_ddpm": {"risk_area": 1e-3, "risk_area_random": 4e-3, "energy_distance": 0.3},
            "deep_ensemble": {"risk_area": 4e-3, "risk_area_random": 4e-3, "energy_distance": 0.4},
        }.items()
        for metric, values in found.items()
    ]
    fewer = [rows(values=BASE, nfe=61, calls=30, **EVERY_STEP)]
    solver = {"method": "pd_ddpm", "rule": "dpm_solver"}
    fewer += [rows(values=BASE + NOISE - gap, nfe=2 * n + 1, calls=n, **solver) for n, gap in ((10, 0.03), (5, 0.2))]
    ends = {"t_prime": 30, "t_stop": 25, "nfe": addpm_calls, "rule": "ddim_eta_1"}
    cut = [rows("pd_ddpm", BASE, metric, nfe=16, rule="ddim_eta_1") for metric in ("dice", "lesion_f1")]
    cut += [rows("pd_ddpm", BASE + 0.2, metric, nfe=16, rule="ddim") for metric in ("dice", "lesion_f1")]
    cut += [rows("addpm", at("addpm"), **ends), rows("addpm", at("addpm_f1"), "lesion_f1", **ends)]
    cut += [rows("addpm", at("addpm") + 0.3, **ends | {"t_prime": 50})]
    return {
        "truncation_scores": pd.concat(cut),
        "agreement_scores": pd.concat(agreed),
        "fewer_calls_scores": pd.concat(fewer),
        "table1_scores": pd.concat(table1),
        "t_prime_scores": pd.concat(sweep),
        "ensemble_scores": pd.concat(members),
        "preseg_scores": pd.concat(begun),
    }


def read(**gains):
    return ledger(results(pd_ddpm=0.0, **gains), few_calls=10, **HOW).set_index(["number", "claim"])


def test_differences_are_the_ones_named():
    found = read(ddpm=-0.05, tdpm=0.03, addpm=-0.1).estimate.groupby("number").agg(list)
    shift = NOISE.mean()
    assert found["C1"] == pytest.approx([0.05 - shift, 0.02 - shift]) and found["C2"] == pytest.approx([0.02 - shift])
    assert found["C3"] == pytest.approx([-0.03 - shift, 0.02 - shift]) and found["C8"] == pytest.approx(
        [-0.1 + shift, -0.02 + shift]
    )
    assert found["C4"] == pytest.approx([0.01, 0.03])
    assert found["C5"] == pytest.approx([(9e-5 - 1e-5) * (1 + shift), (2 * 9e-5 - 1e-5 - 1e-4) * (1 + shift)])
    assert found["C6"] == pytest.approx([0.03, 0.01, 0]) and found["C7"] == pytest.approx([0.0375, 0.15])
    assert found["C9"] == pytest.approx([-0.03 + shift])
    assert found["C10"] == pytest.approx([3e-3 * (1 + shift), 0.1 * (1 + shift)])


def test_verdicts_follow_the_interval():
    clear = read(ddpm=-0.05, tdpm=0.03)
    assert clear.verdict["C1"].tolist() == ["holds", "holds"] and clear.verdict["C3"].tolist() == [
        "does not hold",
        "holds",
    ]
    assert (clear.estimate_low <= clear.estimate).all() and (clear.estimate <= clear.estimate_high).all()
    equal = read(ddpm=0.0, wolleb2021=0.05, attention_unet=0.0, addpm=-0.01)
    assert equal.verdict["C1"].tolist() == ["holds", "does not hold"], "not worse: within the margin"
    assert equal.verdict["C2"].tolist() == ["does not hold"], "a difference of zero beats nobody"
    assert equal.verdict["C8"].tolist() == ["undecided", "does not hold"], "at the margin; lesion F1 beyond it"
    assert read(addpm=-0.05, addpm_f1=0.05).verdict["C8"].tolist() == ["does not hold", "holds"]


def test_a_row_beats_another_by_a_gain_that_counts():
    """Without a difference, with a gain below the least that counts, and with one whose interval reaches beyond it."""
    wide = np.where(np.arange(12) % 2, 0.06, -0.06)
    for gain, spread, verdict in ((0.0, 0.0, "does not hold"), (-0.01, 0.0, "holds"), (0.0, wide, "undecided")):
        found = read(attention_unet=gain + spread).loc["C2"].iloc[0]
        assert found.verdict == verdict and (found.estimate_high < 0.02) == (verdict != "undecided")


def test_not_worse_without_fewer_calls_proves_nothing():
    cheap, dear = read(addpm=0.05), read(addpm=0.05, addpm_calls=16)
    assert cheap.verdict["C8"].tolist() == ["holds", "does not hold"]
    assert dear.verdict["C8"].tolist() == ["undecided", "undecided"]
    assert dear.loc["C8"].index[0].endswith("(16 against 16 calls)")


def test_an_interval_alone_decides_nothing():
    """Six subjects that agree: the interval is clear of zero, and Wilcoxon's smallest p for six is 1/32."""
    few = {
        name: scores[scores.subject.isin([f"Utrecht/{i}" for i in range(6)])]
        for name, scores in results(pd_ddpm=0).items()
    }
    found = ledger(few, few_calls=10, **HOW)
    assert (found[found.number == "C2"].estimate_low > 0).all()
    assert (found.corrected_p >= 1 / 32).all() and set(found.verdict) == {"undecided"}


def test_a_mean_that_one_subject_carries_decides_nothing():
    """Ten of twelve subjects are worse, two are far better: the interval and Wilcoxon's test lean to other sides."""
    lean = np.where(np.arange(12) < 10, -0.01, 0.3)
    assert lean.mean() > 0 > signed_rank_sum(lean)
    tables = results(pd_ddpm=0.0)
    others = tables["table1_scores"].query("method not in ['pd_ddpm', 'attention_unet']")
    many = [rows("pd_ddpm", np.tile(BASE, 20)), rows("attention_unet", np.tile(BASE - lean, 20))]
    found = ledger(tables | {"table1_scores": pd.concat([others, *many])}, few_calls=10, **HOW)
    found = found.set_index("number").loc["C2"]
    assert found.estimate_low > 0 and found.corrected_p < 0.05 and found.verdict == "undecided"


def test_the_validation_fold_chooses_and_the_test_fold_is_shown():
    found = read().reset_index()
    assert found[found.number == "C4"].claim.str.contains("T'/T = 0.3, best on validation").all()
    assert (found.n == 12).all()


def test_each_fold_tests_the_t_prime_of_its_own_validation():
    """Fold 0 chooses T' = 30 as above; fold 1 tests six of the subjects and chooses T' = 50."""
    found = results(pd_ddpm=0.0)
    sweep = found["t_prime_scores"].reset_index(drop=True)
    sweep.loc[sweep.subject.isin([f"Utrecht/{i}" for i in range(6)]), "fold"] = 1
    best = (sweep.fold == 1) & (sweep.split == "validation") & (sweep.t_prime == 50) & (sweep.metric == "dice")
    sweep.loc[best, "value"] += 0.1
    sweep.loc[(sweep.split == "test") & (sweep.t_prime == 50) & (sweep.metric == "dice"), "value"] += 0.02
    assert chosen_t_primes(sweep).to_dict() == {0: 30, 1: 50}
    claims = ledger(found | {"t_prime_scores": sweep}, few_calls=10, **HOW)
    least, whole = claims[claims.number == "C4"].itertuples()
    assert least.claim.startswith("T'/T = 0.3 or 0.5, best on validation")
    assert (least.estimate, whole.estimate) == pytest.approx((0.02, 0.04))


def test_rows_are_found_by_columns_beside_others_of_the_same_method():
    """Two solvers, two rules of PD-DDPM and two pairs of ADDPM stand in the tables; the chosen ones are compared."""
    tables = results(pd_ddpm=0.0, addpm=-0.1)
    few, fewer = (ledger(tables, few_calls=calls, **HOW).set_index("number").claim["C9"] for calls in (10, 5))
    assert few.endswith("(21 against 61 calls)") and fewer.endswith("(11 against 61 calls)")
    with pytest.raises(ValueError, match=r"PD-DDPM, DPM-Solver\+\+, 7 calls: no scores"):
        ledger(tables, few_calls=7, **HOW)


def test_claims_come_in_their_order():
    found = list(dict.fromkeys(read().reset_index().number))
    assert found == ["C1", "C2", "C2b", "C3", "C4", "C5", "C6", "C7", "C8", "C9", "C10", "control"]


def with_start_matching(gain, refiner=True):
    """The tables with a start-matched chain that is better by so much in each score than every step of PD-DDPM."""
    tables = results(pd_ddpm=0.0)
    known = {"dice": (BASE, gain), "lesion_f1": (BASE - 0.1, gain), "energy_distance": (1 - BASE, -gain)}
    parts = [tables["fewer_calls_scores"]]
    for metric, (values, better) in known.items():
        ours = {"nfe": 51, "rule": "start_matched"}
        parts.append(rows("start_matched", values + better + NOISE, metric, calls=10, **ours))
        parts.append(rows("start_matched", values - 9, metric, calls=30, **ours))
        if metric != "dice":
            parts.append(rows(values=values, metric=metric, nfe=61, calls=30, **EVERY_STEP))
        if refiner:
            parts.append(rows("refiner", values + better - 0.2 * np.sign(better) + NOISE, metric, nfe=2))
    return tables | {"fewer_calls_scores": pd.concat(parts)}


def test_start_matching_is_claimed_in_six_rows():
    found = ledger(with_start_matching(0.1), few_calls=10, **HOW)
    ours = found[found.number == "C11"]
    assert ours.claim.tolist() == [
        f"start-matched at 10 calls beats {rival}{words}"
        for rival in ("PD-DDPM at every step", "the refiner")
        for words in ("", " in lesion F1", " in energy distance, its less ours")
    ]
    shift = NOISE.mean()
    assert ours.estimate.tolist() == pytest.approx([0.1 + shift, 0.1 + shift, 0.1 - shift, 0.2, 0.2, 0.2])
    assert (ours.verdict == "holds").all() and (ours.n == 12).all()
    worse = ledger(with_start_matching(-0.1), few_calls=10, **HOW).query("number == 'C11'")
    assert (worse.verdict == "does not hold").all(), "reported whatever it says"
    assert found.number.unique().tolist()[-3:] == ["C10", "C11", "control"]
    alone = ledger(with_start_matching(0.1, refiner=False), few_calls=10, **HOW)
    assert (alone.number == "C11").sum() == 3
    with pytest.raises(ValueError, match="no scores"):
        ledger(with_start_matching(0.1), few_calls=7, **HOW)
    assert "C11" not in read().reset_index().number.tolist()


def test_the_matching_alone_is_judged_beside_the_same_recipe():
    tables = with_start_matching(0.1)
    assert (ledger(tables, few_calls=10, **HOW).number == "control").sum() == 1
    unmatched = rows("unmatched", BASE + 0.15 + NOISE, "dice", calls=10, rule="ddim_eta_1", nfe=51)
    tables["fewer_calls_scores"] = pd.concat([tables["fewer_calls_scores"], unmatched])
    found = ledger(tables, few_calls=10, **HOW).query("number == 'control'").iloc[-1]
    assert found.claim == "start-matched beats PD-DDPM by the same recipe, both at 10 calls"
    assert found.estimate == pytest.approx(-0.05) and found.verdict == "does not hold"


def test_more_rows_are_corrected_for_together():
    few, many = read(), ledger(with_start_matching(0.1), few_calls=10, **HOW).set_index(["number", "claim"])
    shared = few.corrected_p[few.corrected_p < 1]
    assert (many.corrected_p[shared.index] > shared).any() and (many.corrected_p[shared.index] >= shared).all()


def test_undecided_rows_say_what_would_decide_them():
    """By (1.96 + 0.84)^2 sd^2 / effect^2 of the difference to the bound, or of what lacks to the gain that counts; rows
    that spread far need too many.
    """
    tables = results(pd_ddpm=0.0)
    even = np.where(np.arange(12) % 2, 0.3, -0.3) + 1e-4
    wide = even - 1e-4 + 0.05
    table1 = tables["table1_scores"]
    drawn = {"tdpm": BASE - wide, "es_ddpm": BASE - even, "x0_jump": BASE - 10 * even}
    others = table1[~table1.method.isin([*drawn])]
    table1 = pd.concat([others, *(rows(name, values) for name, values in drawn.items())])
    found = ledger(tables | {"table1_scores": table1}, few_calls=10, **HOW)
    tdpm, es_ddpm = found[found.number == "C3"].itertuples()
    jump = found[found.claim == "PD-DDPM beats the x0 jump"].iloc[0]
    assert tdpm.verdict == es_ddpm.verdict == jump.verdict == "undecided"
    assert tdpm.decides_at == np.ceil((1.959964 + 0.841621) ** 2 * wide.var(ddof=1) / 0.05**2)
    assert es_ddpm.decides_at == np.ceil((1.959964 + 0.841621) ** 2 * even.var(ddof=1) / (0.02 - 1e-4) ** 2)
    assert np.isinf(jump.decides_at) and found.decides_at[found.verdict != "undecided"].isna().all()
    text = table_markdown(found, "Claims")
    assert "effect too small" in text and f"| undecided | {tdpm.decides_at:.0f} |" in text
    assert "| undecided | no more than these |" in table_markdown(found.assign(n=tdpm.decides_at), "Claims")
    dear = read(addpm=0.05, addpm_calls=16)
    assert dear.loc["C8"].decides_at.isna().all(), "no sample saves calls"


def test_rows_on_different_subjects_are_compared_on_those_of_both():
    """TDPM on six of twelve, of which one is undefined; another row keeps all its subjects."""
    tables = results(pd_ddpm=0.0, tdpm=-0.05)
    table1 = tables["table1_scores"]
    half = table1[(table1.method != "tdpm") | table1.subject.isin([f"Utrecht/{i}" for i in range(6)])].copy()
    half.loc[(half.method == "tdpm") & (half.subject == "Utrecht/0"), "value"] = np.nan
    found = ledger(tables | {"table1_scores": half}, few_calls=10, **HOW)
    tdpm, es_ddpm = found[found.number == "C3"].itertuples()
    assert (tdpm.n, tdpm.estimate_undefined, es_ddpm.n, es_ddpm.estimate_undefined) == (5, 1, 12, 0)
    assert tdpm.estimate == pytest.approx(0.05 - NOISE[1:6].mean())


def test_intervals_resample_the_trainings_that_tested_the_subjects():
    tables = results(pd_ddpm=0.0)
    seeds = {f"Utrecht/{i}": i // 4 for i in range(12)}
    table1 = tables["table1_scores"]
    table1 = table1.assign(seed=table1.subject.map(seeds))
    found = ledger(tables | {"table1_scores": table1}, few_calls=10, **HOW)
    row = found[found.number == "C2"].iloc[0]
    order = sorted(range(12), key=lambda i: f"Utrecht/{i}")
    expected = mean_interval(0.02 - NOISE[order], **INTERVAL, groups=[i // 4 for i in order])
    assert (row.estimate_low, row.estimate_high) == pytest.approx((expected["low"], expected["high"]))
    assert row.corrected_p == read().loc["C2"].corrected_p.iloc[0], "the test is over subjects"


def test_a_confirmation_of_other_networks_is_not_read(tmp_path):
    place, made = Layout(tmp_path, "night"), {"git": {"sha": "a", "dirty": False}}
    for folder, gain, stamp in ((place.results, 0.0, made), (place.confirmation, 0.1, {"networks": made["git"]})):
        for name, table in results(pd_ddpm=gain).items():
            records.write_table(folder / f"{name}.csv", table, stamp)

    def gained():
        scores = read_scores(place)["table1_scores"].query("metric == 'dice'").set_index("method").value
        return scores["pd_ddpm"].mean() - BASE.mean()

    assert gained() == pytest.approx(0.1)
    own = place.results / "table1_scores.csv"
    records.write_table(own, records.read_table(own), {"git": {"sha": "b", "dirty": False}})
    assert gained() == pytest.approx(0.0), "the networks of another run were tested"

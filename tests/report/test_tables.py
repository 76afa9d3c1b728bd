"""What a table shows: the paired statistics of its rows, the settings kept apart, the undefined counted."""

import numpy as np
import pandas as pd
import pytest
from conftest import rows

from pdlib import paths
from pdlib.evaluation.records import read_table
from pdlib.evaluation.stats import holm, paired_comparison
from pdlib.methods import preseg_starts
from pdlib.report import tables
from pdlib.report.values import missed_starts

INTERVAL = {"resamples": 200, "confidence": 0.95, "seed": 0}
HOW = {"baseline": {"method": "pd_ddpm"}, "metrics": ["dice"], "interval": INTERVAL}


def named(*methods):
    return [{"method": method} for method in methods]


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 0.9, 8)
    late = rows("unet", [*(base - 0.05 + rng.normal(0, 0.01, 8))[:7], np.nan])
    return pd.concat(
        [
            rows("pd_ddpm", base, nfe=300, t_prime=300, ensemble_size=5),
            late,
            rows("attention_unet", base - 0.02 + rng.normal(0, 0.01, 8)),
        ]
    )


def values(scores, method):
    return scores[scores.method == method].value.to_numpy()


def test_table1_is_the_paired_statistics(scores):
    methods = ["unet", "attention_unet", "pd_ddpm"]
    table = tables.table1(scores, rows=named(*methods), **HOW)
    table = table.set_index("method")
    pairs = {m: paired_comparison(values(scores, m), values(scores, "pd_ddpm"), **INTERVAL) for m in methods[:2]}
    for method, pair in pairs.items():
        assert table.dice_difference[method] == pair["mean_difference"] < 0
        assert table.dice_difference_low[method] == pair["low"]
        assert table.dice[method] == pytest.approx(np.nanmean(values(scores, method)))
    np.testing.assert_array_equal(table.dice_holm[:2], holm([pair["p_value"] for pair in pairs.values()]))
    assert table.dice_undefined.tolist() == [1, 0, 0] and table.n.tolist() == [8, 8, 8]
    assert np.isnan(table.dice_difference["pd_ddpm"]) and table.nfe["pd_ddpm"] == 300


def test_scores_without_a_cost_have_none_in_the_table(scores):
    """As those of agreement, which are computed from members that were paid for elsewhere."""
    free = scores.assign(nfe=pd.NA, seconds=pd.NA)
    how = {"rows": named("unet", "pd_ddpm"), **HOW}
    with_cost, without = tables.table1(scores, **how), tables.table1(free, **how)
    pd.testing.assert_frame_equal(without, with_cost.drop(columns=["nfe", "seconds"]))


def test_rows_tested_on_some_subjects_are_compared_on_those(scores):
    """Of U-Net's subjects 1 to 7 the last is undefined; what it was not tested on is neither missing nor undefined."""
    scores = scores[(scores.method != "unet") | (scores.subject != "Utrecht/0")]
    table = tables.table1(scores, rows=named("unet", "pd_ddpm"), **HOW)
    assert table.n.tolist() == [7, 8] and table.dice_difference_n[0] == 7
    assert (table.dice_undefined[0], table.dice_difference_undefined[0]) == (1, 1)
    ours, theirs = (values(scores, method) for method in ("unet", "pd_ddpm"))
    assert table.dice_difference[0] == pytest.approx(np.mean(ours[:6] - theirs[1:7]))
    assert table.dice_difference_median[0] == pytest.approx(np.median(ours[:6] - theirs[1:7]))
    assert table.dice[1] == pytest.approx(theirs.mean()), "a row's mean is over its own subjects"
    back = tables.table1(scores, rows=named("pd_ddpm"), **HOW | {"baseline": {"method": "unet"}})
    assert back.dice_difference[0] == pytest.approx(-table.dice_difference[0])
    assert "(n = 7), 1 undefined" in tables.table_markdown(back, "Table 1").splitlines()[4]
    lacking = scores[(scores.method != "unet") | (scores.subject != "Utrecht/1") | (scores.metric != "dice")]
    assert tables.table1(lacking, rows=named("unet"), **HOW).n[0] == 6


def test_intervals_resample_the_trainings(scores):
    seeds = scores.subject.map({f"Utrecht/{i}": i // 4 for i in range(8)})
    table = tables.table1(scores.assign(seed=seeds), rows=named("attention_unet"), **HOW)
    ours, theirs = (values(scores, method) for method in ("attention_unet", "pd_ddpm"))
    pair = paired_comparison(ours, theirs, **INTERVAL, groups=[0] * 4 + [1] * 4)
    assert (table.dice_difference_low[0], table.dice_difference_high[0]) == (pair["low"], pair["high"])
    folds = tables.table1(scores.assign(fold=seeds), rows=named("attention_unet"), **HOW)
    pd.testing.assert_frame_equal(folds, table)


def test_a_start_that_finds_no_lesion_is_a_group_of_its_own(scores):
    """Subject 0: nothing is predicted. Subject 1: all of it is beside the lesions. Subject 2: no lesions, all false."""
    recall = rows("attention_unet", [0, 0, 1, 1, 1, 1, 1, 0.2], "lesion_recall")
    missed = missed_starts(pd.concat([scores, recall]), "attention_unet")
    assert missed == ["Utrecht/0", "Utrecht/1"]
    table = tables.table1(scores, rows=named("unet", "pd_ddpm"), **HOW, missed=missed)
    difference = values(scores, "unet") - values(scores, "pd_ddpm")
    assert table.dice_difference_missed[0] == pytest.approx(difference[:2].mean())
    assert table.dice_difference_rest[0] == pytest.approx(difference[2:7].mean())
    assert (table.dice_difference_missed_n[0], table.dice_difference_rest_n[0]) == (2, 5)
    head, line = (tables.table_markdown(table, "Table 1").splitlines()[i] for i in (2, 4))
    assert head.endswith("| p (Holm) | Median Δ | Δ where the start finds no lesion | Δ elsewhere |")
    assert line.endswith(f"{difference[:2].mean():+.3f} (n = 2) | {difference[2:7].mean():+.3f} (n = 5) |")
    none = tables.table1(scores, rows=named("unet"), **HOW, missed=[])
    assert (none.dice_difference_missed_n[0], none.dice_difference_rest_n[0]) == (0, 7)
    assert "missed" not in tables.table_markdown(none, "Table 1")
    assert "elsewhere" not in tables.table_markdown(none, "Table 1")


def test_a_remark_joins_the_row_s_title(scores):
    table = tables.table1(scores, rows=named("unet", "pd_ddpm"), **HOW).assign(remark=["weak", np.nan])
    titles = [line.split(" | ")[0] for line in tables.table_markdown(table, "Table 1").splitlines()[4:]]
    assert titles == ["| U-Net (weak)", "| PD-DDPM"]


def test_a_subject_belongs_to_one_training(scores):
    twice = pd.concat([scores, rows("unet", [0.5], seed=9)])
    with pytest.raises(ValueError, match="Utrecht/0: segmented under several seeds"):
        tables.table1(twice, rows=named("unet"), **HOW)


def test_rows_are_told_apart_by_columns_and_titled_by_them():
    ways = [("ddim_eta_1", 3, 0.5), ("ddim", 3, 0.6), ("ddpm", 30, 0.7), ("dpm_solver", 1, 0.4), ("x0_jump", 1, 0.3)]
    scores = pd.concat([rows("pd_ddpm", [d, d], rule=rule, calls=calls, t_prime=30) for rule, calls, d in ways])
    asked = [{"method": "pd_ddpm", "rule": rule, "calls": calls, "t_prime": 30} for rule, calls, _ in ways]
    table = tables.table1(scores, rows=asked, baseline=asked[2], metrics=["dice"], interval=INTERVAL)
    assert table.dice.tolist() == [dice for *_, dice in ways] and table.dice_difference.isna().tolist().count(True) == 1
    assert list(table)[:5] == ["method", "rule", "calls", "t_prime", "n"]
    titles = [line.split(" | ")[0] for line in tables.table_markdown(table, "Fewer calls").splitlines()[4:]]
    assert titles == [
        "| PD-DDPM, DDIM, eta 1, 3 calls, T' = 30",
        "| PD-DDPM, DDIM, 3 calls, T' = 30",
        "| PD-DDPM, every step",
        "| PD-DDPM, DPM-Solver++, 1 call, T' = 30",
        "| PD-DDPM, x0 jump, T' = 30",
    ]
    with pytest.raises(ValueError, match=r"PD-DDPM: scores of several settings, .*dpm_solver"):
        tables.table1(scores, rows=named("pd_ddpm"), **HOW)
    with pytest.raises(ValueError, match="seed: a row is told apart by method, start"):
        tables.table1(scores, rows=[{"method": "pd_ddpm", "seed": 1}], **HOW | {"baseline": asked[0]})


@pytest.mark.parametrize(
    ("row", "title"),
    [
        ({"method": "rater"}, "A rater"),
        ({"method": "x0_jump", "rule": "x0_jump", "calls": 1}, "x0 jump"),
        ({"method": "addpm", "t_prime": 30, "t_stop": 25.0}, "ADDPM, T' = 30, t_stop = 25"),
        ({"method": "pd_ddpm", "start": "checkpoint_2", "t_stop": np.nan}, "PD-DDPM from checkpoint 2"),
        ({"method": "pd_ddpm", "start": "", "rule": "ddim_eta_0.5", "calls": pd.NA}, "PD-DDPM, ddim_eta_0.5"),
    ],
)
def test_a_title_says_what_the_row_names(row, title):
    assert tables.row_title(row) == title


def test_a_table_reads_the_same_from_its_file(scores, tmp_path):
    """README is written from the CSV, where a row that names no calls holds NaN."""
    asked = [{"method": "unet"}, {"method": "pd_ddpm", "t_prime": 300}]
    table = tables.table1(scores, rows=asked, baseline=asked[1], metrics=["dice"], interval=INTERVAL)
    tables.save_table(table, "Table 1", tmp_path / "deep" / "table1")
    text = (tmp_path / "deep" / "table1.md").read_text(encoding="utf-8")
    assert tables.table_markdown(pd.read_csv(tmp_path / "deep" / "table1.csv"), "Table 1") == text
    assert "| U-Net |" in text and "| PD-DDPM, T' = 300 |" in text


def test_table2_compares_each_start_with_itself(scores):
    base = values(scores, "pd_ddpm")
    own = {"empty": 0 * base, "checkpoint_1": base - 0.2, "best": base - 0.1}
    parts = [rows("attention_unet", dice, start=start) for start, dice in own.items()]
    parts += [rows("pd_ddpm", base, start=start, nfe=300, t_prime=30, rule="ddim", calls=3) for start in own]
    starts = preseg_starts(2)
    table = tables.table2(
        pd.concat(parts), starts=starts, presegmenter="attention_unet", metrics=["dice"], interval=INTERVAL
    )
    assert table.start.tolist() == starts == ["empty", "checkpoint_1", "best"]
    np.testing.assert_allclose(table.preseg_dice, [0, base.mean() - 0.2, base.mean() - 0.1])
    np.testing.assert_allclose(table.dice_difference, [base.mean(), 0.2, 0.1])
    lines = tables.table_markdown(table, "Table 2").splitlines()
    assert lines[2].startswith("| Pre-segmentation | n | Calls |") and lines[5].startswith("| checkpoint 1 | 8 | 300 |")


def test_the_front_has_no_better_row_for_fewer_calls():
    dice = {("dpm_solver", 2): 0.6, ("ddim", 2): 0.5, ("ddim", 4): 0.55, ("ddpm", 30): 0.7}
    parts = [rows("pd_ddpm", [d, d], rule=rule, calls=calls, nfe=2 * calls + 1) for (rule, calls), d in dice.items()]
    table = tables.front_table(pd.concat(parts), metrics=["dice", "lesion_f1"])
    assert list(zip(table.rule, table.calls, strict=True)) == [*dice]
    assert table.front.tolist() == [True, False, False, True] and table.nfe.tolist() == [5, 5, 9, 61]


def test_site_table_is_the_mean_of_each_site():
    sites = [("GE3T", [0.5, 0.7], 0), ("Utrecht", [0.2, 0.4, 0.9], 2)]
    parts = [
        rows(method, [value + gain], site=site).assign(subject=f"{site}/{first + i}")
        for method, gain in (("unet", 0.0), ("pd_ddpm", 0.1))
        for site, values, first in sites
        for i, value in enumerate(values)
    ]
    table = tables.site_table(pd.concat(parts), rows=named("pd_ddpm", "unet"))
    assert list(table) == ["method", "GE3T (n = 2)", "Utrecht (n = 3)"] and list(table.method) == ["pd_ddpm", "unet"]
    np.testing.assert_allclose(table.iloc[:, 1:].astype(float), [[0.7, 0.6], [0.6, 0.5]])
    fewer = pd.concat(parts).query("method != 'unet' or subject != 'Utrecht/4'")
    table = tables.site_table(fewer, rows=named("pd_ddpm", "unet"))
    assert list(table)[1:] == ["GE3T (n = 2)", "Utrecht (n = 2 or 3)"] and table.iloc[1, 2] == pytest.approx(0.3)


def test_markdown_says_what_is_undefined(scores):
    methods = ["unet", "pd_ddpm"]
    table = tables.table1(scores, rows=named(*methods), **HOW)
    lines = tables.table_markdown(table, "Table 1 (phantom)").splitlines()
    low, high = table.dice_difference_low[0], table.dice_difference_high[0]
    difference = f"{table.dice_difference[0]:+.3f} [{low:+.3f}, {high:+.3f}], 1 undefined"
    assert lines[0] == "Table 1 (phantom)"
    assert lines[2] == "| Method | n | Calls | Seconds | Dice | Δ Dice | p (Holm) |"
    assert lines[4].endswith(f"{table.dice_high[0]:.3f}], 1 undefined | {difference} | {table.dice_holm[0]:.2g} |")
    assert lines[5].endswith(f"{table.dice[1]:.3f} [{table.dice_low[1]:.3f}, {table.dice_high[1]:.3f}] | – | – |")


def test_markdown_compares_the_first_score_only(scores):
    scores = pd.concat([scores, scores.assign(metric="jaccard")])
    how = HOW | {"rows": named("unet", "pd_ddpm"), "metrics": ["dice", "jaccard"]}
    lines = tables.table_markdown(tables.table1(scores, **how), "Table 1").splitlines()
    assert lines[2].endswith("| Dice | Δ Dice | p (Holm) | Jaccard |")


def test_markdown_of_the_ledger_shows_its_p():
    claim = {"claim": "a", "estimate": 0.1, "estimate_low": 0.0, "estimate_high": 0.2, "estimate_undefined": 0}
    lines = tables.table_markdown(pd.DataFrame([claim | {"corrected_p": 0.0123}]), "Claims").splitlines()
    assert lines[2] == "| What is claimed | Difference | p (Holm) |"
    assert lines[4] == "| a | +0.1 [+0, +0.2] | 0.012 |"


def test_small_variances_are_not_rounded_to_nothing():
    scores = pd.concat([rows("pd_ddpm", [2e-5, 4e-5], "uncertainty"), rows("ddpm", [5e-5, 9e-5], "uncertainty")])
    how = HOW | {"rows": named("ddpm", "pd_ddpm"), "metrics": ["uncertainty"]}
    lines = tables.table_markdown(tables.table1(scores, **how), "Table 1").splitlines()
    assert "7.0e-05 [5.0e-05, 9.0e-05]" in lines[4] and "3.0e-05" in lines[5]


def test_tables_refuse_a_mixture(scores):
    how = {"rows": named("unet"), **HOW}
    with pytest.raises(ValueError, match="one split"):
        tables.table1(pd.concat([scores, rows("unet", [0.5], split="validation")]), **how)
    with pytest.raises(ValueError, match="U-Net: scores of several settings"):
        tables.table1(pd.concat([scores, rows("unet", [0.5], t_prime=3)]), **how)
    with pytest.raises(ValueError, match="DDPM: no scores"):
        tables.table1(scores, **how | {"rows": named("ddpm")})


def test_a_row_that_chooses_its_t_prime_may_do_so_in_each_fold(scores):
    how = {"rows": named("tdpm"), **HOW}
    one, two = (rows("tdpm", [0.4, 0.6], fold=fold, t_prime=t, nfe=t) for fold, t in ((0, 3), (1, 5)))
    two["subject"] = ["Utrecht/2", "Utrecht/3"]
    table = tables.table1(pd.concat([scores, one, two]), **how)
    assert table.dice[0] == pytest.approx(0.5) and table.nfe[0] == 4
    with pytest.raises(ValueError, match="TDPM: scores of several settings"):
        tables.table1(pd.concat([scores, one, two.assign(fold=0)]), **how)
    with pytest.raises(ValueError, match="x0 jump: scores of several settings"):
        parts = [part.assign(method="x0_jump") for part in (one, two)]
        tables.table1(pd.concat([scores, *parts]), **how | {"rows": named("x0_jump")})


def test_the_papers_numbers_are_whole_and_consistent():
    """Its Table 1 and Table 2 agree where they meet, and Jaccard follows Dice row by row to what averaging allows."""
    paper = read_table(paths.PAPER_NUMBERS)
    one, two = tables.paper_table(paper, "1"), tables.paper_table(paper, "2")
    assert one.shape == (9, 5) and two.shape == (5, 5) and paper.value.notna().all()
    last = one.set_index("method").loc["pd_ddpm"]
    assert last.tolist() == two.set_index("preseg_dice").loc["0.799"].tolist() == [0.812, 3.494, 0.689, 0.8]
    dice, points = one.set_index("method").dice, paper[paper.table.isin(["fig3", "fig4"])]
    assert points.value.tolist() == [dice.pd_ddpm, dice.ddpm, dice.pd_ddpm]
    assert (one.jaccard - one.dice / (2 - one.dice)).abs().max() < 0.02
    assert "| Pre-segmentation Dice | Dice |" in tables.table_markdown(two, "Paper")
    assert "| PD-DDPM | 0.812 | 3.494 | 0.689 | 0.800 |" in tables.table_markdown(one, "Paper")

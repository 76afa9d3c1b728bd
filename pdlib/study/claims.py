"""The ledger: what the papers claim, what our scores say about it, and no more than the interval allows."""

from collections.abc import Mapping

import pandas as pd

from pdlib.evaluation.stats import holm, mean_interval, paired_comparison
from pdlib.methods import METHODS

TABLES = (
    "table1_scores",
    "t_prime_scores",
    "ensemble_scores",
    "preseg_scores",
    "agreement_scores",
    "fewer_calls_scores",
    "truncation_scores",
)
CHAIN = "pd_ddpm"
AGREEMENT = ("risk_area", "risk_area_random", "energy_distance")
ALL = "PD-DDPM, every step"  # a row of notebook 10
TRUNCATED, WHOLE = METHODS["addpm"].title, METHODS["pd_ddpm"].title  # rows of notebook 08


def caption(whose: str, margin: float, interval: Mapping) -> str:
    """What stands above a ledger: whose claims ("phantom, profile cpu") and how they were judged."""
    return (
        f"The claims ({whose}): paired differences over the test subjects, {interval['confidence']:.0%} intervals, "
        f"of Dice if not said otherwise; p by Wilcoxon, corrected by Holm; not worse: by less than {margin}"
    )


def solver_row(calls: int) -> str:
    """The name of notebook 10's row that makes so many calls from T' by DPM-Solver++."""
    return f"PD-DDPM, DPM-Solver++, {calls} calls"


def chosen_t_primes(scores: pd.DataFrame) -> pd.Series:
    """The T' with the best mean Dice on the validation subjects of each fold. scores: rows of notebook 05."""
    rows = scores[(scores.method == CHAIN) & (scores.metric == "dice") & (scores.split == "validation")]
    return rows.pivot_table(index="fold", columns="t_prime", values="value").idxmax(axis=1).astype(int)


def ledger(
    tables: Mapping[str, pd.DataFrame], *, presegmenter: str, few_calls: int, margin: float, interval: Mapping
) -> pd.DataFrame:
    """A row for each claim: number, claim, estimate (with _low, _high, _undefined), corrected_p, n, verdict, shown.

    tables: rows of `records.COLUMNS` by the name of their file, one of TABLES each. An estimate is a mean paired
    difference over the test subjects, of Dice if the claim does not name another score, with its bootstrap interval. A
    claim of more is held against 0, one of "not worse" against -margin: it holds where the whole interval lies above
    that bound and so does Wilcoxon's test after Holm's correction over the ledger, does not hold where both lie below
    it, and is undecided otherwise, as is "not worse" where no calls were saved.
    """
    score = {name: _by_subject(rows, "dice") for name, rows in tables.items()}
    table1, presegs, calls = score["table1_scores"], score["preseg_scores"], _calls(tables["table1_scores"])
    stepped, spent = score["fewer_calls_scores"], _calls(tables["fewer_calls_scores"])
    cut, cost_cut = score["truncation_scores"], _calls(tables["truncation_scores"])
    cut_f1 = _by_subject(tables["truncation_scores"], "lesion_f1")
    sweep = tables["t_prime_scores"]
    curve, spread = (_curve(sweep, metric, "test") for metric in ("dice", "uncertainty"))
    chosen, first, last = chosen_t_primes(sweep), min(spread), max(spread)
    home = sweep[sweep.split == "test"].groupby("subject").fold.first()
    at_chosen = pd.Series({subject: curve.at[subject, chosen[fold]] for subject, fold in home.items()})
    middle = min(spread, key=lambda t_prime: abs(t_prime - last / 2))
    sizes, drawn = _sizes(tables["ensemble_scores"], "mean"), _sizes(tables["ensemble_scores"], "std")
    one, some, most = min(sizes), sorted(sizes)[len(sizes.columns) // 2], max(sizes)
    begun = presegs[f"{CHAIN} from best"]
    others = presegs[[name for name in presegs if name.startswith(f"{CHAIN} from step")]].mean(axis=1, skipna=False)
    area, random, distance = (_by_subject(tables["agreement_scores"], metric) for metric in AGREEMENT)
    few = solver_row(few_calls)

    def part(*t_primes: int) -> str:
        return f"T'/T = {' or '.join(f'{t_prime / last:g}' for t_prime in t_primes)}"

    def cost(a: float, b: float) -> str:
        return f" ({a:g} against {b:g} calls)"

    higher = [
        ("C2", "PD-DDPM beats its pre-segmenter", table1[CHAIN] - table1[presegmenter], "Table 1"),
        ("C2b", "PD-DDPM beats an ensemble of it", table1[CHAIN] - table1["deep_ensemble"], "Table 1"),
        ("C3", "PD-DDPM beats TDPM, as trained here", table1[CHAIN] - table1["tdpm"], "Table 1"),
        ("C3", "PD-DDPM beats ES-DDPM", table1[CHAIN] - table1["es_ddpm"], "Table 1"),
        *(
            (
                "C4",
                f"{part(*sorted({*chosen}))}, best on validation, beats {part(end)}",
                at_chosen - curve[end],
                "Fig. 3",
            )
            for end in (first, last)
        ),
        ("C5", f"uncertainty grows from {part(first)} to {part(middle)}", spread[middle] - spread[first], "Fig. 3"),
        (
            "C5",
            f"and grows less from there to {part(last)}",
            2 * spread[middle] - spread[first] - spread[last],
            "Fig. 3",
        ),
        ("C6", f"{most} members beat {one}", sizes[most] - sizes[one], "Fig. 4"),
        (
            "C6",
            f"and gain less from {some} on than up to there",
            2 * sizes[some] - sizes[one] - sizes[most],
            "Fig. 4",
        ),
        ("C6", f"{most} members scatter less than {one}", drawn[one] - drawn[most], "Fig. 4"),
        ("C7", "the best start beats weaker ones, on average", begun - others, "Table 2"),
        ("C7", "an empty start loses to the best", begun - presegs[f"{CHAIN} from empty"], "Table 2"),
        (
            "C10",
            "uncertainty ranks the errors: area under the risk, random less ours",
            random[CHAIN] - area[CHAIN],
            "Agreement",
        ),
        (
            "C10",
            "members are nearer to the raters than an ensemble of seeds: energy distance, its less ours",
            distance["deep_ensemble"] - distance[CHAIN],
            "Agreement",
        ),
        ("control", "PD-DDPM beats the x0 jump", table1[CHAIN] - table1["x0_jump"], "Table 1"),
    ]
    cheaper = [
        ("C1", "PD-DDPM is not worse than DDPM", table1, calls, CHAIN, "ddpm", "Table 1"),
        ("C1", "PD-DDPM is not worse than DDPM by Wolleb's recipe", table1, calls, CHAIN, "wolleb2021", "Table 1"),
        ("C8", "ADDPM is not worse than PD-DDPM", cut, cost_cut, TRUNCATED, WHOLE, "Both ends"),
        ("C8", "nor is its lesion F1", cut_f1, cost_cut, TRUNCATED, WHOLE, "Both ends"),
        ("C9", "a solver is not worse than every step from T'", stepped, spent, few, ALL, "Fewer calls"),
    ]
    rows = [(number, claim, 0.0, True, difference, shown) for number, claim, difference, shown in higher]
    rows += [
        (number, claim + cost(nfe[a], nfe[b]), -margin, nfe[a] < nfe[b], dice[a] - dice[b], shown)
        for number, claim, dice, nfe, a, b, shown in cheaper
    ]
    rows.sort(key=lambda row: (row[0] == "control", int("".join(filter(str.isdigit, row[0])) or 0)))
    means = [mean_interval(difference, **interval) for *_, difference, _ in rows]
    tests = [paired_comparison(d - bound, 0 * d, **interval)["p_value"] for _, _, bound, _, d, _ in rows]
    found = []
    for (number, claim, bound, saved, _, shown), mean, p_value in zip(rows, means, holm(tests), strict=True):
        clear = saved and p_value < 1 - interval["confidence"]
        verdict = _verdict(mean["low"], mean["high"], bound) if clear else "undecided"
        parts = {"estimate": mean["mean"]} | {f"estimate_{key}": mean[key] for key in ("low", "high")}
        parts |= {"estimate_undefined": mean["n_undefined"], "corrected_p": p_value, "n": mean["n"]}
        found.append({"number": number, "claim": claim, **parts, "verdict": verdict, "shown": shown})
    return pd.DataFrame(found)


def _verdict(low: float, high: float, bound: float) -> str:
    return "holds" if low > bound else "does not hold" if high < bound else "undecided"


def _calls(scores: pd.DataFrame) -> pd.Series:
    """Network calls of each method."""
    return scores.groupby("method").nfe.mean().astype(float)


def _by_subject(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Scores of the test subjects (rows) by method (columns)."""
    rows = scores[(scores.metric == metric) & (scores.split == "test")]
    return rows.pivot_table(index="subject", columns="method", values="value", dropna=False)


def _sizes(scores: pd.DataFrame, over_draws: str) -> pd.DataFrame:
    """Dice of the test subjects (rows) by ensemble size (columns): mean or std over the random ensembles."""
    rows = scores[(scores.metric == "dice") & (scores.split == "test")]
    return rows.pivot_table(index="subject", columns="ensemble_size", values="value", aggfunc=over_draws, dropna=False)


def _curve(scores: pd.DataFrame, metric: str, split: str) -> pd.DataFrame:
    """Scores of the chain by subject (rows) and T' (columns)."""
    rows = scores[(scores.method == CHAIN) & (scores.metric == metric) & (scores.split == split)]
    return rows.pivot_table(index="subject", columns="t_prime", values="value", dropna=False)

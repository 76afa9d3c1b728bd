"""The ledger: what the papers claim, what our scores say about it, and no more than the interval allows."""

from collections.abc import Mapping

import pandas as pd

from pdlib.stats import mean_interval

TABLES = (
    "table1_scores",
    "t_prime_scores",
    "ensemble_scores",
    "preseg_scores",
    "agreement_scores",
    "fewer_calls_scores",
)
CHAIN = "pd_ddpm"
AGREEMENT = ("risk_area", "risk_area_random", "energy_distance")
ALL = "PD-DDPM, every step"  # rows of notebook 10


def solver_row(calls: int) -> str:
    """The name of notebook 10's row that makes so many calls from T' by DPM-Solver++."""
    return f"PD-DDPM, DPM-Solver++, {calls} calls"


def ledger(
    tables: Mapping[str, pd.DataFrame], *, presegmenter: str, few_calls: int, margin: float, interval: Mapping
) -> pd.DataFrame:
    """A row for each claim: number, claim, estimate (with _low, _high, _undefined), n, verdict, shown (where to look).

    tables: rows of `records.COLUMNS` by the name of their file, one of TABLES each. An estimate is a mean paired
    difference over the test subjects, of Dice if the claim does not name another score; its interval is not corrected
    for the number of claims. A claim of more holds where the interval lies above 0, one of "not worse" where it lies
    above -margin; it does not hold where the whole interval lies on the other side; else it is undecided.
    """
    dice = {name: _by_subject(rows, "dice") for name, rows in tables.items()}
    table1, presegs, sizes = dice["table1_scores"], dice["preseg_scores"], _sizes(tables["ensemble_scores"])
    curve, spread = (_curve(tables["t_prime_scores"], metric, "test") for metric in ("dice", "uncertainty"))
    chosen = int(_curve(tables["t_prime_scores"], "dice", "validation").mean().idxmax())
    first, middle, last = min(spread), min(spread, key=lambda t_prime: abs(t_prime - max(spread) / 2)), max(spread)
    begun = presegs[f"{CHAIN} from best"]
    others = presegs[[name for name in presegs if name.startswith(f"{CHAIN} from step")]].mean(axis=1, skipna=False)
    agreed = {metric: _by_subject(tables["agreement_scores"], metric) for metric in AGREEMENT}
    area, random, distance = (agreed[metric] for metric in AGREEMENT)
    few, all_calls = (_by_subject(tables["fewer_calls_scores"], "dice")[name] for name in (solver_row(few_calls), ALL))
    higher, not_worse = 0.0, -margin
    rows = [
        ("C1", "PD-DDPM is not worse than DDPM", not_worse, table1[CHAIN] - table1["ddpm"], "Table 1"),
        ("C2", "PD-DDPM beats its pre-segmenter", higher, table1[CHAIN] - table1[presegmenter], "Table 1"),
        ("C2b", "PD-DDPM beats an ensemble of it", higher, table1[CHAIN] - table1["deep_ensemble"], "Table 1"),
        ("C3", "PD-DDPM beats TDPM", higher, table1[CHAIN] - table1["tdpm"], "Table 1"),
        ("C3", "PD-DDPM beats ES-DDPM", higher, table1[CHAIN] - table1["es_ddpm"], "Table 1"),
        *(
            ("C4", f"T' = {chosen}, best on validation, beats T' = {end}", higher, curve[chosen] - curve[end], "Fig. 3")
            for end in (min(curve), max(curve))
        ),
        ("C5", f"uncertainty grows from T' = {first} to {middle}", higher, spread[middle] - spread[first], "Fig. 3"),
        (
            "C5",
            f"uncertainty grows less from T' = {middle} to {last}",
            higher,
            2 * spread[middle] - spread[first] - spread[last],
            "Fig. 3",
        ),
        (
            "C6",
            f"{max(sizes)} members beat {min(sizes)}",
            higher,
            sizes[max(sizes)] - sizes[min(sizes)],
            "Fig. 4",
        ),
        ("C7", "the best start beats weaker ones, on average", higher, begun - others, "Table 2"),
        ("C7", "an empty start loses to the best", higher, begun - presegs[f"{CHAIN} from empty"], "Table 2"),
        ("C8", "ADDPM is not worse than PD-DDPM", not_worse, table1["addpm"] - table1[CHAIN], "Table 1"),
        (
            "C9",
            f"{few_calls} calls of a solver are not worse than every step from T'",
            not_worse,
            few - all_calls,
            "Fewer calls",
        ),
        (
            "C10",
            "uncertainty ranks the errors: area under the risk, random less ours",
            higher,
            random[CHAIN] - area[CHAIN],
            "Agreement",
        ),
        (
            "C10",
            "members are nearer to the raters than the pre-segmenter: energy distance, its less ours",
            higher,
            distance[presegmenter] - distance[CHAIN],
            "Agreement",
        ),
        ("control", "PD-DDPM beats the x0 jump", higher, table1[CHAIN] - table1["x0_jump"], "Table 1"),
    ]
    found = []
    for number, claim, bound, difference, shown in rows:
        mean = mean_interval(difference, **interval)
        parts = {"estimate": mean["mean"]} | {f"estimate_{key}": mean[key] for key in ("low", "high")}
        parts |= {"estimate_undefined": mean["n_undefined"], "n": mean["n"]}
        verdict = _verdict(mean["low"], mean["high"], bound)
        found.append({"number": number, "claim": claim, **parts, "verdict": verdict, "shown": shown})
    return pd.DataFrame(found)


def _verdict(low: float, high: float, bound: float) -> str:
    return "holds" if low > bound else "does not hold" if high < bound else "undecided"


def _by_subject(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Scores of the test subjects (rows) by method (columns)."""
    rows = scores[(scores.metric == metric) & (scores.split == "test")]
    return rows.pivot_table(index="subject", columns="method", values="value", dropna=False)


def _sizes(scores: pd.DataFrame) -> pd.DataFrame:
    """Dice of the test subjects (rows) by ensemble size (columns), the mean over random ensembles."""
    rows = scores[(scores.metric == "dice") & (scores.split == "test")]
    return rows.pivot_table(index="subject", columns="ensemble_size", values="value", dropna=False)


def _curve(scores: pd.DataFrame, metric: str, split: str) -> pd.DataFrame:
    """Scores of the chain by subject (rows) and T' (columns)."""
    rows = scores[(scores.method == CHAIN) & (scores.metric == metric) & (scores.split == split)]
    return rows.pivot_table(index="subject", columns="t_prime", values="value", dropna=False)

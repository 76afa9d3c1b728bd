"""The ledger: what the papers claim, what our scores say about it, and no more than the interval allows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from pdlib.evaluation.stats import holm, mean_interval, paired_comparison
from pdlib.methods import CHAIN
from pdlib.report.titles import Row
from pdlib.report.values import select, subject_values

TABLES = (
    "table1_scores",
    "t_prime_scores",
    "ensemble_scores",
    "preseg_scores",
    "agreement_scores",
    "fewer_calls_scores",
    "truncation_scores",
)
EVERY_STEP = {"method": CHAIN, "rule": "ddpm"}  # a row of notebook 10
Scores = Mapping[str, pd.DataFrame]  # rows of `records.COLUMNS` by the name of their file, one of TABLES each


@dataclass(frozen=True)
class Claim:
    """A sentence and the numbers that it stands or falls with.

    Args:
        number: C1, C2, ..., or "control".
        text: what is claimed.
        difference: one value a test subject; the claim says that their mean lies above `bound`.
        shown: the table or figure that it can be read from.
        bound: 0 for a claim of more; minus the margin for one of "not worse".
        cheaper: whether calls were saved; "not worse" says nothing where they were not.
    """

    number: str
    text: str
    difference: pd.Series
    shown: str
    bound: float = 0.0
    cheaper: bool = True


def caption(whose: str, margin: float, interval: Mapping) -> str:
    """What stands above a ledger: whose claims ("phantom, profile cpu") and how they were judged."""
    return (
        f"The claims ({whose}): paired differences over the test subjects, {interval['confidence']:.0%} intervals, "
        f"of Dice if not said otherwise; p by Wilcoxon, corrected by Holm; not worse: by less than {margin}"
    )


def chosen_t_primes(scores: pd.DataFrame) -> pd.Series:
    """The T' with the best mean Dice on the validation subjects of each fold. scores: rows of notebook 05."""
    rows = scores[(scores.method == CHAIN) & (scores.metric == "dice") & (scores.split == "validation")]
    return rows.pivot_table(index="fold", columns="t_prime", values="value").idxmax(axis=1).astype(int)


def ledger(
    tables: Scores, *, presegmenter: str, few_calls: int, margin: float, interval: Mapping[str, float]
) -> pd.DataFrame:
    """A row for each claim: number, claim, estimate (with _low, _high, _undefined), corrected_p, n, verdict, shown.

    An estimate is a mean paired difference over the test subjects, of Dice if the claim does not name another score,
    with its bootstrap interval. A claim of more is held against 0, one of "not worse" against -margin: it holds where
    the whole interval lies above that bound and so does Wilcoxon's test after Holm's correction over the ledger, does
    not hold where both lie below it, and is undecided otherwise, as is "not worse" where no calls were saved.
    """
    table1 = tables["table1_scores"]
    claims = [
        *_against_whole_chains(table1, margin),
        *_in_table1(table1, _beaten(presegmenter)),
        *_of_t_prime(tables["t_prime_scores"]),
        *_of_ensemble_size(tables["ensemble_scores"]),
        *_of_presegs(tables["preseg_scores"]),
        *_of_both_ends(table1, tables["truncation_scores"], margin),
        *_of_solvers(tables["fewer_calls_scores"], few_calls, margin),
        *_of_uncertainty(tables["agreement_scores"]),
        *_in_table1(table1, [("control", "PD-DDPM beats the x0 jump", "x0_jump")]),
    ]
    return _judged(claims, interval)


def _judged(claims: Sequence[Claim], interval: Mapping[str, float]) -> pd.DataFrame:
    """Estimates, corrected tests and verdicts, one row a claim."""
    means = [mean_interval(claim.difference, **interval) for claim in claims]
    tests = [paired_comparison(one.difference - one.bound, 0 * one.difference, **interval)["p_value"] for one in claims]
    found = []
    for claim, mean, p_value in zip(claims, means, holm(tests), strict=True):
        clear = claim.cheaper and p_value < 1 - interval["confidence"]
        verdict = _verdict(mean["low"], mean["high"], claim.bound) if clear else "undecided"
        parts = {"estimate": mean["mean"]} | {f"estimate_{key}": mean[key] for key in ("low", "high")}
        parts |= {"estimate_undefined": mean["n_undefined"], "corrected_p": p_value, "n": mean["n"]}
        found.append({"number": claim.number, "claim": claim.text, **parts, "verdict": verdict, "shown": claim.shown})
    return pd.DataFrame(found)


def _verdict(low: float, high: float, bound: float) -> str:
    return "holds" if low > bound else "does not hold" if high < bound else "undecided"


def _against_whole_chains(table1: pd.DataFrame, margin: float) -> list[Claim]:
    """The shared weights' DDPM and that of its authors' recipe, of which Table 1 has."""
    others = {"ddpm": "DDPM", "wolleb2021": "DDPM by Wolleb's recipe"}
    return [
        _not_worse(
            ("C1", f"PD-DDPM is not worse than {title}", "Table 1"), table1, {"method": CHAIN}, {"method": name}, margin
        )
        for name, title in others.items()
        if name in {*table1.method}
    ]


def _beaten(presegmenter: str) -> list[tuple[str, str, str]]:
    """Number and text of a claim, and the row that PD-DDPM is to beat."""
    return [
        ("C2", "PD-DDPM beats its pre-segmenter", presegmenter),
        ("C2b", "PD-DDPM beats an ensemble of it", "deep_ensemble"),
        ("C3", "PD-DDPM beats TDPM, as trained here", "tdpm"),
        ("C3", "PD-DDPM beats ES-DDPM", "es_ddpm"),
    ]


def _in_table1(table1: pd.DataFrame, claims: list[tuple[str, str, str]]) -> list[Claim]:
    """The claims of more Dice than another row has, where Table 1 has that row."""
    return [
        Claim(number, text, _less(table1, CHAIN, name), "Table 1")
        for number, text, name in claims
        if name in {*table1.method}
    ]


def _of_t_prime(sweep: pd.DataFrame) -> list[Claim]:
    """Fig. 3. Each fold tests the T' that its own validation subjects chose."""
    curve, spread = (_by(sweep, metric, "t_prime", CHAIN) for metric in ("dice", "uncertainty"))
    chosen, first, last = chosen_t_primes(sweep), min(spread), max(spread)
    home = sweep[sweep.split == "test"].groupby("subject").fold.first()
    at_chosen = pd.Series({subject: curve.at[subject, chosen[fold]] for subject, fold in home.items()})
    middle = min(spread, key=lambda t_prime: abs(t_prime - last / 2))

    def part(*t_primes: int) -> str:
        return f"T'/T = {' or '.join(f'{t_prime / last:g}' for t_prime in t_primes)}"

    best = f"{part(*sorted({*chosen}))}, best on validation, beats"
    grows = spread[middle] - spread[first]
    bends = 2 * spread[middle] - spread[first] - spread[last]
    return [
        *(Claim("C4", f"{best} {part(end)}", at_chosen - curve[end], "Fig. 3") for end in (first, last)),
        Claim("C5", f"uncertainty grows from {part(first)} to {part(middle)}", grows, "Fig. 3"),
        Claim("C5", f"and grows less from there to {part(last)}", bends, "Fig. 3"),
    ]


def _of_ensemble_size(draws: pd.DataFrame) -> list[Claim]:
    """Fig. 4: the mean over the random ensembles of a size, and how far they scatter."""
    sizes, drawn = (_by(draws, "dice", "ensemble_size", CHAIN, over) for over in ("mean", "std"))
    one, some, most = min(sizes), sorted(sizes)[len(sizes.columns) // 2], max(sizes)
    flattens = 2 * sizes[some] - sizes[one] - sizes[most]
    return [
        Claim("C6", f"{most} members beat {one}", sizes[most] - sizes[one], "Fig. 4"),
        Claim("C6", f"and gain less from {some} on than up to there", flattens, "Fig. 4"),
        Claim("C6", f"{most} members scatter less than {one}", drawn[one] - drawn[most], "Fig. 4"),
    ]


def _of_presegs(presegs: pd.DataFrame) -> list[Claim]:
    from_start = _by(presegs, "dice", "start", CHAIN)
    others = from_start.drop(columns=["empty", "best"]).mean(axis=1, skipna=False)
    return [
        Claim("C7", "the best start beats weaker ones, on average", from_start["best"] - others, "Table 2"),
        Claim("C7", "an empty start loses to the best", from_start["best"] - from_start["empty"], "Table 2"),
    ]


def _of_both_ends(table1: pd.DataFrame, truncated: pd.DataFrame, margin: float) -> list[Claim]:
    """ADDPM from and to where Table 1 has it, if it does, beside the whole chain of the same rule."""
    if "addpm" not in {*table1.method}:
        return []
    ends = select(table1, {"method": "addpm"}).iloc[0]
    addpm = {"method": "addpm", "t_prime": ends.t_prime, "t_stop": ends.t_stop}
    whole = {"method": CHAIN, "rule": select(truncated, addpm).rule.iloc[0]}
    said = {"dice": "ADDPM is not worse than PD-DDPM", "lesion_f1": "nor is its lesion F1"}
    return [
        _not_worse(("C8", text, "Both ends"), truncated, addpm, whole, margin, metric) for metric, text in said.items()
    ]


def _of_solvers(scores: pd.DataFrame, few_calls: int, margin: float) -> list[Claim]:
    few = {"method": CHAIN, "rule": "dpm_solver", "calls": few_calls}
    about = ("C9", "a solver is not worse than every step from T'", "Fewer calls")
    return [_not_worse(about, scores, few, EVERY_STEP, margin)]


def _of_uncertainty(scores: pd.DataFrame) -> list[Claim]:
    area, random, distance = (_by(scores, name) for name in ("risk_area", "risk_area_random", "energy_distance"))
    ranks = "uncertainty ranks the errors: area under the risk, random less ours"
    nearer = "members are nearer to the raters than an ensemble of seeds: energy distance, its less ours"
    claims = [Claim("C10", ranks, random[CHAIN] - area[CHAIN], "Agreement")]
    if "deep_ensemble" in {*scores.method}:
        claims.append(Claim("C10", nearer, distance["deep_ensemble"] - distance[CHAIN], "Agreement"))
    return claims


def _not_worse(
    about: tuple[str, str, str], scores: pd.DataFrame, ours: Row, theirs: Row, margin: float, metric: str = "dice"
) -> Claim:
    """A claim of "not worse" at fewer calls a slice, which are told. about: number, text, and where it is shown."""
    number, text, shown = about
    (mine, a), (other, b) = (_of_row(scores, row, metric) for row in (ours, theirs))
    return Claim(number, f"{text} ({a:g} against {b:g} calls)", mine - other, shown, bound=-margin, cheaper=a < b)


def _of_row(scores: pd.DataFrame, row: Row, metric: str) -> tuple[pd.Series, float]:
    """A row's scores, NaN for a test subject that it lacks, and its network calls a slice."""
    rows, tested = select(scores, row), sorted(scores[scores.split == "test"].subject.unique())
    mine = rows[(rows.metric == metric) & (rows.split == "test")]
    return subject_values(mine).reindex(tested), float(rows.nfe.mean())


def _less(scores: pd.DataFrame, ours: str, theirs: str) -> pd.Series:
    """Dice of a method less that of another, by test subject."""
    dice = _by(scores, "dice")
    return dice[ours] - dice[theirs]


def _by(
    scores: pd.DataFrame, metric: str, column: str = "method", method: str | None = None, over: str = "mean"
) -> pd.DataFrame:
    """Scores of the test subjects (rows) by the values of a column, of one method if it is named."""
    rows = scores[(scores.metric == metric) & (scores.split == "test")]
    if method is not None:
        rows = rows[rows.method == method]
    return rows.pivot_table(index="subject", columns=column, values="value", aggfunc=over, dropna=False)

"""The ledger: what the papers claim, what our scores say about it, and no more than the interval allows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from pdlib.evaluation import records
from pdlib.evaluation.stats import holm, mean_interval, paired_comparison, signed_rank_sum, subjects_needed
from pdlib.methods import CHAIN
from pdlib.paths import Layout
from pdlib.report.titles import Row
from pdlib.report.values import paired_values, select, trainings
from pdlib.sections.design import Statistics
from pdlib.study.run import Run

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
HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"
TOO_MANY = 10_000  # subjects: an effect that wants more is too small to be decided
Scores = Mapping[str, pd.DataFrame]  # rows of `records.COLUMNS` by the name of their file, one of TABLES each


@dataclass(frozen=True)
class Claim:
    """A sentence and the numbers that it stands or falls with.

    Args:
        number: C1, C2, ..., or "control".
        text: what is claimed.
        difference: one value a test subject; the claim says that their mean lies above `bound`.
        shown: the table or figure that it can be read from.
        methods: the rows compared, keys of `methods.METHODS`, ours first; one where a row is compared with itself.
        metric: of the difference.
        bound: 0 for a claim of more; minus the margin for one of "not worse".
        calls: of both rows, of a claim of "not worse": it says nothing where none were saved.
        planned: the text before a run has chosen anything, where it differs.
        beats: whether it says that a score is better than another: then a gain too small to matter refutes it.
    """

    number: str
    text: str
    difference: pd.Series
    shown: str
    methods: tuple[str, ...] = (CHAIN,)
    metric: str = "dice"
    bound: float = 0.0
    calls: tuple[float, float] | None = None
    planned: str = ""
    beats: bool = False

    @property
    def told(self) -> str:
        """The text, with the calls of both rows where they belong to the claim."""
        return self.text + (f" ({self.calls[0]:g} against {self.calls[1]:g} calls)" if self.calls else "")

    @property
    def cheaper(self) -> bool:
        """Whether calls were saved, or none had to be."""
        return self.calls is None or self.calls[0] < self.calls[1]


def read_scores(place: Layout) -> Scores:
    """What a place's ledger is read from: the subjects of its confirmation, where they were tested, else the run's."""
    folder = place.confirmation if confirmed(place) else place.results
    return {name: records.read_table(folder / f"{name}.csv") for name in TABLES}


def confirmed(place: Layout) -> bool:
    """Whether the ledger has subjects of its own, tested by the networks that made the place's scores."""
    paths = [place.confirmation / f"{name}.csv" for name in TABLES]
    if not all(path.exists() for path in paths):
        return False
    own = records.read_stamp(place.results / "table1_scores.csv")["git"]
    return all(records.read_stamp(path).get("networks") == own for path in paths)


def judged_on(run: Run, scores: Scores) -> str:
    """Whose scores the ledger of a run shows: those of its test subjects, or of the subjects of its confirmation."""
    if not confirmed(run.place):
        return run.whose
    counts = {*scores["table1_scores"].groupby("method").subject.nunique()}
    few = f" ({min(counts)} of some rows)" if len(counts) > 1 else ""
    return f"{run.made_by}, {max(counts)} test subjects of their own{few}"


def caption(whose: str, statistics: Statistics) -> str:
    """What stands above a ledger: whose claims ("phantom, profile cpu") and how they were judged."""
    return (
        f"The claims ({whose}): paired differences over the test subjects, {statistics.confidence:.0%} intervals over "
        f"trainings and subjects, of Dice if not said otherwise (rows trained once, as TDPM, ADDPM's last network and "
        f"the refiner, add no spread of trainings); p by Wilcoxon, corrected by Holm; not worse: by less than "
        f"{statistics.margin:g}; that a row beats another does not hold either where a gain of {statistics.gain:g} is "
        f"excluded, with a p of its own. The subjects that would decide an undecided row show the effect seen at "
        f"{statistics.power:.0%} power, in one test alone, if trainings did not differ; a row that has as many "
        f"already is open because they do, or by the correction. Where a row is shown, it is of the run's test "
        f"subjects, also where the ledger has subjects of its own"
    )


def chosen_t_primes(scores: pd.DataFrame) -> pd.Series:
    """The T' with the best mean Dice on the validation subjects of each fold. scores: rows of notebook 05."""
    rows = scores[(scores.method == CHAIN) & (scores.metric == "dice") & (scores.split == "validation")]
    return rows.pivot_table(index="fold", columns="t_prime", values="value").idxmax(axis=1).astype(int)


def ledger(
    tables: Scores, *, presegmenter: str, few_calls: int, statistics: Statistics, interval: Mapping[str, float]
) -> pd.DataFrame:
    """A row a claim: number, claim, estimate with _low, _high, _undefined, corrected_p, gain_p, n, verdict, decides_at
    and shown.

    An estimate is a mean paired difference over the test subjects of both rows, of Dice if the claim does not name
    another score, with its hierarchical bootstrap interval. A claim of more is held against 0, one of "not worse"
    against -margin: it holds where the whole interval lies above that bound and Wilcoxon's test, after Holm's
    correction over the ledger, leans to that side as well, and does not hold where both lie below it. A claim that one
    row beats another does not hold either where both lie below `statistics.gain`, by a test (gain_p) and a correction
    of their own: what it brings, if anything, is too little. All else is undecided, as is "not worse" where no calls
    were saved. decides_at: of an undecided row, the subjects at which its estimate would be shown to differ from the
    bound or, of a claim that one row beats another, to lie below the gain, whichever are fewer
    (`stats.subjects_needed`: one test alone, and trainings that do not differ), infinite beyond TOO_MANY.
    """
    how = {"presegmenter": presegmenter, "few_calls": few_calls, "margin": statistics.margin}
    table1 = tables["table1_scores"]
    trained = trainings(table1[table1.split == "test"])
    return _judged(registered(tables, **how), trained, statistics, interval)


def registered(tables: Scores, *, presegmenter: str, few_calls: int, margin: float) -> list[Claim]:
    """The claims in their order, as far as there are rows for them."""
    table1, fewer = tables["table1_scores"], tables["fewer_calls_scores"]
    return [
        *_against_whole_chains(table1, margin),
        *_in_table1(table1, _beaten(presegmenter)),
        *_of_t_prime(tables["t_prime_scores"]),
        *_of_ensemble_size(tables["ensemble_scores"]),
        *_of_presegs(tables["preseg_scores"]),
        *_of_both_ends(table1, tables["truncation_scores"], margin),
        *_of_solvers(fewer, few_calls, margin),
        *_of_uncertainty(tables["agreement_scores"]),
        *_of_start_matching(fewer, few_calls),
        *_in_table1(table1, [("control", "PD-DDPM beats the x0 jump", "x0_jump")]),
        *_of_matching_alone(fewer, few_calls),
    ]


def held_against(claims: Sequence[Claim], statistics: Statistics) -> tuple[list[float], list[float]]:
    """The bound of each claim, and the gain whose exclusion refutes it, NaN for one that does not say "beats"."""
    return [one.bound for one in claims], [statistics.gain if one.beats else math.nan for one in claims]


def _judged(
    claims: Sequence[Claim], trained: pd.Series, statistics: Statistics, interval: Mapping[str, float]
) -> pd.DataFrame:
    """Estimates, corrected tests and verdicts, one row a claim. trained: the training that tested each subject."""
    means = [mean_interval(one.difference, **interval, groups=trained.loc[one.difference.index]) for one in claims]
    against_bound, against_gain = (
        holm([_p_value(one, value, interval) for one, value in zip(claims, values, strict=True)])
        for values in held_against(claims, statistics)
    )
    found, alpha = [], 1 - statistics.confidence
    for claim, mean, p_value, p_gain in zip(claims, means, against_bound, against_gain, strict=True):
        side = _side(claim, mean, claim.bound) if p_value < alpha else 0
        verdict = {1: HOLDS, -1: FAILS}.get(side, OPEN) if claim.cheaper else OPEN
        if verdict == OPEN and p_gain < alpha and _side(claim, mean, statistics.gain) < 0:
            verdict = FAILS
        parts = {"estimate": mean["mean"]} | {f"estimate_{key}": mean[key] for key in ("low", "high")}
        parts |= {"estimate_undefined": mean["n_undefined"], "corrected_p": p_value, "gain_p": p_gain, "n": mean["n"]}
        open_at = verdict == OPEN and claim.cheaper
        parts |= {"verdict": verdict, "decides_at": _decides_at(claim, statistics) if open_at else math.nan}
        found.append({"number": claim.number, "claim": claim.told, **parts, "shown": claim.shown})
    return pd.DataFrame(found)


def _p_value(claim: Claim, bound: float, interval: Mapping[str, float]) -> float:
    return paired_comparison(claim.difference - bound, 0 * claim.difference, **interval)["p_value"]


def _decides_at(claim: Claim, statistics: Statistics) -> float:
    mean, how = claim.difference.mean(), {"power": statistics.power, "confidence": statistics.confidence}
    effects = [mean - claim.bound, *([mean - statistics.gain] if claim.beats and mean < statistics.gain else [])]
    n = subjects_needed(claim.difference.std(), max(effects, key=abs), **how)
    return n if n <= TOO_MANY else math.inf if n > TOO_MANY else math.nan


def _side(claim: Claim, mean: Mapping[str, float], bound: float) -> int:
    """On which side of a bound both the whole interval and the lean of Wilcoxon's test lie; 0: neither or not both."""
    lean = signed_rank_sum(claim.difference - bound)
    return int(mean["low"] > bound and lean > 0) - int(mean["high"] < bound and lean < 0)


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
        _more((number, text, "Table 1"), table1, {"method": CHAIN}, {"method": name})
        for number, text, name in claims
        if name in {*table1.method}
    ]


def _of_t_prime(sweep: pd.DataFrame) -> list[Claim]:
    """Fig. 3. Each fold tests the T' that its own validation subjects chose."""
    curve, spread = (_by(sweep, metric, "t_prime") for metric in ("dice", "uncertainty"))
    chosen, first, last = chosen_t_primes(sweep), min(spread), max(spread)
    home = sweep[sweep.split == "test"].groupby("subject").fold.first()
    at_chosen = pd.Series({subject: curve.at[subject, chosen[fold]] for subject, fold in home.items()})
    middle = min(spread, key=lambda t_prime: abs(t_prime - last / 2))

    def part(*t_primes: int) -> str:
        return f"T'/T = {' or '.join(f'{t_prime / last:g}' for t_prime in t_primes)}"

    def beats(end: int) -> Claim:
        text, planned = (
            f"{one}, best on validation, beats {part(end)}" for one in (part(*sorted({*chosen})), "a T'/T")
        )
        return Claim("C4", text, at_chosen - curve[end], "Fig. 3", planned=planned, beats=True)

    grows = spread[middle] - spread[first]
    bends = 2 * spread[middle] - spread[first] - spread[last]
    return [
        *map(beats, (first, last)),
        Claim("C5", f"uncertainty grows from {part(first)} to {part(middle)}", grows, "Fig. 3", metric="uncertainty"),
        Claim("C5", f"and grows less from there to {part(last)}", bends, "Fig. 3", metric="uncertainty"),
    ]


def _of_ensemble_size(draws: pd.DataFrame) -> list[Claim]:
    """Fig. 4: the mean over the random ensembles of a size, and how far they scatter."""
    sizes, drawn = (_by(draws, "dice", "ensemble_size", over) for over in ("mean", "std"))
    one, some, most = min(sizes), sorted(sizes)[len(sizes.columns) // 2], max(sizes)
    flattens = 2 * sizes[some] - sizes[one] - sizes[most]
    return [
        _of_size(f"{most} members beat {one}", sizes[most] - sizes[one], "the most members beat one"),
        _of_size(f"and gain less from {some} on than up to there", flattens, "and gain less from a middle size on"),
        _of_size(f"{most} members scatter less than {one}", drawn[one] - drawn[most], "they scatter less than one"),
    ]


def _of_size(text: str, difference: pd.Series, planned: str) -> Claim:
    return Claim("C6", text, difference, "Fig. 4", planned=planned)


def _of_presegs(presegs: pd.DataFrame) -> list[Claim]:
    from_start = _by(presegs, "dice", "start")
    others = from_start.drop(columns=["empty", "best"]).mean(axis=1, skipna=False)
    return [
        Claim("C7", text, from_start["best"] - weaker, "Table 2", beats=True)
        for text, weaker in (
            ("the start that is best on validation beats weaker ones, on average", others),
            ("an empty start loses to the best", from_start["empty"]),
        )
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
    area, random = (_by(scores, name, "method")[CHAIN] for name in ("risk_area", "risk_area_random"))
    ranks = "uncertainty ranks the errors: area under the risk, random less ours"
    claims = [Claim("C10", ranks, random - area, "Agreement", metric="risk_area")]
    if "deep_ensemble" in {*scores.method}:
        nearer = "members are nearer to the raters than an ensemble of seeds: energy distance, its less ours"
        rows = {"method": CHAIN}, {"method": "deep_ensemble"}
        claims.append(_more(("C10", nearer, "Agreement"), scores, *rows, metric="energy_distance"))
    return claims


def _of_start_matching(scores: pd.DataFrame, few_calls: int) -> list[Claim]:
    """Our own, written down before the run: few calls of the start-matched chain beat every step of PD-DDPM, and its
    refiner's single one. Absent where notebook 10 does not score these rows.
    """
    ours = {"method": "start_matched", "rule": "start_matched", "calls": few_calls}
    if not ((scores.method == ours["method"]) & (scores.calls == few_calls)).any():
        return []
    calls = f"start-matched at {few_calls} calls beats"
    rivals = {"PD-DDPM at every step": EVERY_STEP, "the refiner": {"method": "refiner"}}
    said = {"dice": "", "lesion_f1": " in lesion F1", "energy_distance": " in energy distance, its less ours"}
    return [
        _more(("C11", f"{calls} {title}{words}", "Fewer calls"), scores, ours, theirs, metric=metric)
        for title, theirs in rivals.items()
        if theirs["method"] in {*scores.method}
        for metric, words in said.items()
    ]


def _of_matching_alone(fewer: pd.DataFrame, few_calls: int) -> list[Claim]:
    """C11's control: what start-matching gains on PD-DDPM that was trained by the same recipe, calls alike."""
    ours, theirs = ({"method": name, "calls": few_calls} for name in ("start_matched", "unmatched"))
    if theirs["method"] not in {*fewer.method} or not _of_start_matching(fewer, few_calls):
        return []
    text = f"start-matched beats PD-DDPM by the same recipe, both at {few_calls} calls"
    return [_more(("control", text, "Fewer calls"), fewer, ours, theirs)]


def _more(about: tuple[str, str, str], scores: pd.DataFrame, ours: Row, theirs: Row, metric: str = "dice") -> Claim:
    """A claim of more than another row has; of an energy distance, of less. about: number, text, where it is shown."""
    number, text, shown = about
    less = metric == "energy_distance"
    difference = _difference(scores, theirs, ours, metric) if less else _difference(scores, ours, theirs, metric)
    return Claim(number, text, difference, shown, (ours["method"], theirs["method"]), metric, beats=True)


def _not_worse(
    about: tuple[str, str, str], scores: pd.DataFrame, ours: Row, theirs: Row, margin: float, metric: str = "dice"
) -> Claim:
    """A claim of "not worse" at fewer calls a slice, which are told. about: number, text, and where it is shown."""
    number, text, shown = about
    calls = tuple(float(select(scores, row).nfe.mean()) for row in (ours, theirs))
    difference = _difference(scores, ours, theirs, metric)
    return Claim(number, text, difference, shown, (ours["method"], theirs["method"]), metric, -margin, calls)


def _difference(scores: pd.DataFrame, ours: Row, theirs: Row, metric: str) -> pd.Series:
    """A score less that of another row, for each subject that both were tested on."""
    tested = scores[scores.split == "test"]
    pairs = paired_values(select(tested, ours), select(tested, theirs), metric)
    return pairs.ours - pairs.theirs


def _by(scores: pd.DataFrame, metric: str, column: str, over: str = "mean") -> pd.DataFrame:
    """PD-DDPM's scores of the test subjects (rows) by the values of a column."""
    rows = scores[(scores.metric == metric) & (scores.split == "test") & (scores.method == CHAIN)]
    return rows.pivot_table(index="subject", columns=column, values="value", aggfunc=over, dropna=False)

"""What a run found, in five sentences that change with its tables: what holds, what does not, what costs what, whether
matching the start helps, and what a reader should use. Each says so where the tables cannot tell.
"""

from collections.abc import Mapping

import pandas as pd

from pdlib.evaluation.stats import paired_comparison
from pdlib.methods import CHAIN
from pdlib.report.titles import display_name
from pdlib.report.values import paired_values, select

OURS, ALONE = "C11", "start-matched beats"  # the claim about the start-matched chain; how its control begins
APART = "; what is said of claims: "  # before the ledger's subjects, where they are others than the run's


def findings(
    claims: pd.DataFrame, table1: pd.DataFrame, agreement: pd.DataFrame, *, margin: float, interval: Mapping[str, float]
) -> list[str]:
    """Five sentences from a ledger (`claims.ledger`) and the score rows of Table 1 and of the agreement with raters.

    Rows of Table 1 are compared on the subjects of both; margin is what "not worse" may cost in Dice.
    """
    return [
        _holding(claims),
        _failing(claims),
        _cost(table1, margin, interval),
        _start_matching(claims),
        _advice(table1, agreement, margin, interval),
    ]


def findings_markdown(sentences: list[str], whose: str, judged_on: str) -> str:
    """The sentences as a numbered list under a line that says whose they are, and the ledger where it differs."""
    listed = "".join(f"{i}. {sentence}\n" for i, sentence in enumerate(sentences, start=1))
    ledger = "" if judged_on == whose else f"{APART}{judged_on.rpartition(', ')[2]}"
    return f"What this run found ({whose}{ledger}):\n\n{listed}"


def _holding(claims: pd.DataFrame) -> str:
    held = claims[claims.verdict == "holds"]
    if held.empty:
        return f"What holds: none of the {len(claims)} rows of the ledger."
    return f"What holds, {len(held)} of {len(claims)} rows of the ledger: {_listed(held)}."


def _failing(claims: pd.DataFrame) -> str:
    failed, undecided = (claims[claims.verdict == verdict] for verdict in ("does not hold", "undecided"))
    said = f"What does not hold: {_listed(failed) if len(failed) else 'no row is shown to fail'}"
    if undecided.empty:
        return f"{said}; no row is undecided."
    rows = "rows remain" if len(undecided) > 1 else "row remains"
    return f"{said}; {len(undecided)} {rows} undecided ({_numbers(undecided)}), which speaks neither for nor against."


def _cost(table1: pd.DataFrame, margin: float, interval: Mapping[str, float]) -> str:
    """PD-DDPM beside its rivals: calls, seconds and the difference in Dice of each."""
    ours = select(table1, {"method": CHAIN})
    said = [f"What costs what: {_spent(ours)}"]
    for name in ("ddpm", "deep_ensemble", "refiner"):
        if name in {*table1.method}:
            theirs = select(table1, {"method": name})
            pair = _compared(theirs, ours, interval)
            said.append(f"{_spent(theirs)} and is {_beside(pair, margin)} ({_difference(pair)} Dice)")
    return "; ".join(said) + "."


def _start_matching(claims: pd.DataFrame) -> str:
    """First what the matching alone brings, beside the same recipe without it, then the rows that were claimed."""
    ours = claims[claims.number == OURS]
    alone = claims[(claims.number == "control") & claims.claim.str.startswith(ALONE)]
    if ours.empty:
        return "Whether matching the chain to its start helps: this run has no such rows."
    said = "Matching the chain to its start: "
    if len(alone):
        row = alone.iloc[0]
        told = {
            "holds": "It helps {}",
            "does not hold": "It does not help {}",
            "undecided": "Whether it helps {} is open",
        }
        short = told[row.verdict].format("beside a chain trained alike but for the matching")
        difference = f"{row.estimate:+.3f} [{row.estimate_low:+.3f}, {row.estimate_high:+.3f}] Dice"
        said += f"{short} ({difference}). "
    told = [f"{len(rows)} {what[len(rows) > 1]}" for what, rows in _by_verdict(ours).items() if len(rows)]
    held = ours[ours.verdict == "holds"]
    return f"{said}Of {len(ours)} claims about it {', '.join(told)}" + (f": {_listed(held)}." if len(held) else ".")


def _advice(table1: pd.DataFrame, agreement: pd.DataFrame, margin: float, interval: Mapping[str, float]) -> str:
    """The cheapest row that is shown to be not worse than the best; and the one that is nearest to the raters."""
    calls = table1.groupby("method").nfe.mean()
    dice = table1[table1.metric == "dice"]
    common = set.intersection(*(set(rows.subject) for _, rows in dice.groupby("method")))
    means = dice[dice.subject.isin(common)].groupby("method").value.mean()
    best = means.idxmax()
    top = select(table1, {"method": best})
    enough = {
        name: _compared(select(table1, {"method": name}), top, interval)["low"] > -margin
        for name in means.index.drop(best)
    }
    cheapest = min(
        [best, *(name for name, fine in enough.items() if fine)], key=lambda name: (calls[name], name != best)
    )
    said = f"What to use: {display_name(cheapest)} ({calls[cheapest]:g} calls a slice)"
    if cheapest == best:
        said += (
            f", which has the highest mean Dice on the subjects of all rows ({means[best]:.3f}); no row with fewer "
            f"calls is shown to be as good"
        )
    else:
        said += (
            f" is shown to be worse by less than {margin:g} Dice, if at all, than the row with the highest mean, "
            f"{display_name(best)} ({means[best]:.3f} at {calls[best]:g} calls)"
        )
    distance = agreement[(agreement.metric == "energy_distance") & agreement.value.notna()]
    if distance.empty:
        return f"{said}; there are no raters to say whose uncertainty to trust."
    nearest = _nearest(distance, interval, cheapest)
    return f"{said}; for an uncertainty that looks like the raters' disagreement, {nearest}."


def _nearest(distance: pd.DataFrame, interval: Mapping[str, float], advised: str) -> str:
    """The row with the lowest mean energy distance, and those that are not told apart from it; and whether the row that
    is advised for its Dice has such distances at all."""
    means = distance.groupby("method").value.mean().sort_values()
    name, *others = means.index
    first = select(distance, {"method": name})
    pairs = {
        other: _compared(select(distance, {"method": other}), first, interval, "energy_distance") for other in others
    }
    alike = [f"{display_name(other)} ({means[other]:.3f})" for other, pair in pairs.items() if pair["low"] <= 0]
    said = f"{display_name(name)} has the lowest mean energy distance of the {len(means)} rows that were rated"
    said += "" if advised in means else f", {display_name(advised)} not among them"
    said += f" ({means.iloc[0]:.3f}"
    said += f"; PD-DDPM {means[CHAIN]:.3f})" if CHAIN in others else ")"
    return said + (f", not told apart from {' and '.join(alike)}" if alike else "")


def _compared(
    ours: pd.DataFrame, theirs: pd.DataFrame, interval: Mapping[str, float], metric: str = "dice"
) -> dict[str, float]:
    pairs = paired_values(ours, theirs, metric)
    return paired_comparison(pairs.ours, pairs.theirs, **interval, groups=pairs.training)


def _beside(pair: Mapping[str, float], margin: float) -> str:
    """What an interval says of a row beside another, and no more."""
    if pair["low"] > 0:
        return "better"
    if pair["high"] < 0:
        return "worse"
    return (
        "as good within the margin" if pair["low"] > -margin and pair["high"] < margin else "not told apart in the mean"
    )


def _difference(pair: Mapping[str, float]) -> str:
    return f"{pair['mean_difference']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}]"


def _spent(rows: pd.DataFrame) -> str:
    calls, name = rows.nfe.mean(), display_name(rows.method.iloc[0])
    return f"{name} takes {calls:g} call{'s' if calls > 1 else ''} a slice, {rows.seconds.mean():.1f} s a subject"


def _by_verdict(claims: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """Rows by what one of them does, and several do."""
    said = {("is undecided", "are undecided"): "undecided", ("fails", "fail"): "does not hold"}
    said |= {("holds", "hold"): "holds"}
    return {words: claims[claims.verdict == verdict] for words, verdict in said.items()}


def _listed(claims: pd.DataFrame) -> str:
    return "; ".join(f"{number}, {claim}" for number, claim in zip(claims.number, claims.claim, strict=True))


def _numbers(claims: pd.DataFrame) -> str:
    return ", ".join(dict.fromkeys(claims.number))

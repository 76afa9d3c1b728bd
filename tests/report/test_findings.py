"""Five sentences that follow the tables, whatever those say."""

import pandas as pd
import pytest
from conftest import rows

from pdlib.report.findings import findings, findings_markdown

HOW = {"margin": 0.01, "interval": {"resamples": 300, "confidence": 0.95, "seed": 0}}
DICE = [0.6, 0.7, 0.8, 0.65, 0.75, 0.7]


def ledger(**verdicts):
    """Rows of a ledger: a number and the verdicts of its rows."""
    lines = [(number, verdict) for number, given in verdicts.items() for verdict in given]
    return pd.DataFrame([{"number": n, "claim": f"claim {i} of {n}", "verdict": v} for i, (n, v) in enumerate(lines)])


def table1(**gains):
    calls = {"pd_ddpm": 16, "ddpm": 45, "deep_ensemble": 5, "attention_unet": 1, "refiner": 2}
    parts = [rows("pd_ddpm", DICE, nfe=16, seconds=5.0)]
    parts += [rows(name, [d + g for d in DICE], nfe=calls[name]) for name, g in gains.items()]
    return pd.concat(parts)


def told(claims=None, scores=None, agreement=None):
    claims = ledger(C1=["holds"]) if claims is None else claims
    agreement = rows("pd_ddpm", [0.4, 0.5], "energy_distance") if agreement is None else agreement
    return findings(claims, table1() if scores is None else scores, agreement, **HOW)


def test_what_holds_and_what_does_not_are_the_ledgers_rows():
    held, failed, *_ = told(ledger(C1=["holds"], C2=["does not hold"], C3=["undecided", "undecided", "holds"]))
    assert held == "What holds, 2 of 5 rows of the ledger: C1, claim 0 of C1; C3, claim 4 of C3."
    assert failed.startswith("What does not hold: C2, claim 1 of C2; 2 rows remain undecided (C3)")
    held, failed, *_ = told(ledger(C1=["undecided"]))
    assert held == "What holds: none of the 1 rows of the ledger."
    assert "no row is shown to fail; 1 row remains undecided (C1)" in failed
    assert told()[1] == "What does not hold: no row is shown to fail; no row is undecided."


@pytest.mark.parametrize(
    ("gain", "word"),
    [(0.05, "better (+0.050"), (-0.05, "worse (-0.050"), (0.0, "as good within the margin (+0.000")],
)
def test_what_costs_what_says_calls_seconds_and_the_difference(gain, word):
    cost = told(scores=table1(ddpm=gain))[2]
    assert cost.startswith("What costs what: PD-DDPM takes 16 calls a slice, 5.0 s a subject; DDPM takes 45 calls")
    assert f"and is {word}" in cost and "Refiner" not in cost


def test_a_wide_interval_tells_nothing_apart():
    scores = pd.concat([table1(), rows("ddpm", [0.2, 0.9, 0.5, 0.9, 0.4, 0.95], nfe=45)])
    assert "DDPM takes 45 calls a slice, 2.0 s a subject and is not told apart" in told(scores=scores)[2]


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([], "this run has no such rows."),
        (["holds"] * 2, "Of 2 claims about it 2 hold: C11, claim 1 of C11; C11, claim 2 of C11."),
        (["undecided"] * 6, "Of 6 claims about it 6 are undecided."),
        (
            ["holds", "does not hold", "undecided"],
            "Of 3 claims about it 1 is undecided, 1 fails, 1 holds: C11, claim 1",
        ),
    ],
)
def test_start_matching_is_told_as_it_is(verdicts, said):
    assert said in told(ledger(C1=["holds"], C11=verdicts))[3]


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("holds", "It helps {}"), ("does not hold", "It does not help {}"), ("undecided", "Whether it helps {} is open")],
)
def test_the_matching_alone_is_told_first(verdict, said):
    """Not by the rows that differ from their rivals in more than the matching."""
    alone = {"number": "control", "claim": "start-matched beats the same recipe", "verdict": verdict}
    alone |= {"estimate": 0.01, "estimate_low": -0.02, "estimate_high": 0.04}
    claims = pd.concat([ledger(control=["undecided"], C11=["holds"]), pd.DataFrame([alone])])
    assert told(claims)[3].startswith(
        f"Matching the chain to its start: {said.format('beside a chain trained alike but for the matching')} (+0.010 "
        f"[-0.020, +0.040] Dice). Of 1 claims about it 1 holds: "
    )


def test_the_cheapest_row_that_is_shown_to_be_as_good_is_advised():
    assert told(scores=table1(refiner=-0.005, ddpm=-0.2))[4].startswith(
        "What to use: Refiner (2 calls a slice) is shown to be worse by less than 0.01 Dice, if at all, than the row "
        "with the highest mean, PD-DDPM (0.700 at 16 calls)"
    )
    alone = told(scores=table1(refiner=-0.05, ddpm=0.05))[4]
    assert alone.startswith(
        "What to use: DDPM (45 calls a slice), which has the highest mean Dice on the subjects of all rows (0.750); no"
    )


def test_rows_on_fewer_subjects_are_ranked_on_the_subjects_of_all():
    """DDPM has seen the three easiest subjects only; on those PD-DDPM is better."""
    scores = pd.concat([table1(), rows("ddpm", [0.59, 0.69, 0.79], nfe=45)])
    assert told(scores=scores)[4].startswith("What to use: PD-DDPM (16 calls a slice), which has the highest mean Dice")


def test_the_uncertainty_advised_is_the_one_nearest_to_the_raters():
    both = pd.concat([rows(n, [d] * 3, "energy_distance") for n, d in (("pd_ddpm", 0.5), ("deep_ensemble", 0.3))])
    best = "Pre-segmenter, ensemble of seeds has the lowest mean energy distance of the {} rows that were rated{} "
    best += "(0.300; PD-DDPM 0.500)"
    assert told(agreement=both)[4].endswith(f"{best.format(2, '')}.")
    wide = pd.concat([both, rows("ddpm", [0.1, 0.6, 0.4], "energy_distance")])
    assert told(agreement=wide)[4].endswith(f"{best.format(3, '')}, not told apart from DDPM (0.367).")
    unrated = told(scores=table1(refiner=-0.005, ddpm=-0.2), agreement=both)[4]
    assert unrated.endswith(f"{best.format(2, ', Refiner not among them')}.")
    assert "there are no raters" in told(agreement=both.assign(value=float("nan")))[4]


def test_the_list_says_whose_it_is():
    text = findings_markdown(told(), "phantom, profile x", "phantom, profile x")
    assert text.startswith("What this run found (phantom, profile x):\n\n1. What holds") and text.count("\n5. ") == 1
    text = findings_markdown(told(), "phantom, profile x", "phantom, profile x, 3 test subjects of their own")
    assert text.startswith(
        "What this run found (phantom, profile x; what is said of claims: 3 test subjects of their own):"
    )

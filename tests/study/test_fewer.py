"""With which chains each method of the table of fewer calls is scored."""

import pandas as pd
import pytest

from pdlib.methods import METHODS
from pdlib.profiles import load_profile
from pdlib.study.fewer import METRICS, chain_changes, fewer_rows, fewer_scores

PROFILE = load_profile("paper")
FEW = PROFILE.fewer_calls


def test_each_method_makes_the_calls_that_mean_something_to_it():
    assert chain_changes(PROFILE, "refiner") == [{}]
    assert chain_changes(PROFILE, "distilled") == [{"calls": calls} for calls in (1, 2, 4, 8)]
    own = [{"calls": calls} for calls in (1, *FEW.calls)]
    assert chain_changes(PROFILE, "noise_level") == own
    several = chain_changes(PROFILE, "ddpm")
    assert several[0] == {"rule": "ddpm", "eta": 1.0, "calls": 1} and several[1]["calls"] is None
    assert [one["calls"] for one in several[2:]] == list(FEW.noise_calls) * len(FEW.rules)
    once_more = load_profile("paper", {"fewer_calls": {"every_step": [*FEW.every_step, "start_matched"]}})
    assert chain_changes(once_more, "start_matched") == [*own, {"stride": 1, "calls": None}]


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.start])
def test_no_two_chains_of_a_method_are_the_same(name):
    changes = chain_changes(PROFILE, name)
    assert len({tuple(one.items()) for one in changes}) == len(changes)


def test_scores_have_the_distance_to_the_raters_beside_those_of_every_row(trained, calls):
    rows = [row for row in fewer_rows(trained.run, "pd_ddpm") if row.chain.calls < 3][:2]
    assert rows[0].chain.finish == "x0_jump"
    scores = fewer_scores(rows, "test")
    made = calls.since()
    assert {*scores.metric} <= {*METRICS} and {"dice", "lesion_f1", "uncertainty"} <= {*scores.metric}
    assert scores.groupby(["rule", "calls"]).nfe.nunique().eq(1).all()
    pd.testing.assert_frame_equal(fewer_scores(rows, "test"), scores)
    assert made and not calls.since(), "the members are sampled once"

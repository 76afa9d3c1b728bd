"""A plan says before a run what it can show: closed forms on the spreads of the committed one."""

import numpy as np
import pytest

from pdlib.evaluation import records
from pdlib.paths import ROOT, Layout
from pdlib.profiles import load_profile
from pdlib.study import plan
from pdlib.study.claims import TABLES

REPEATS = {"seeds": [0, 1, 2], "further_per_site": 66, "others_per_site": 20, "key_methods": ["pd_ddpm", "ddpm"]}


@pytest.fixture(scope="module")
def tables():
    return {name: records.read_table(Layout(ROOT, "cpu").results / f"{name}.csv") for name in TABLES}


def test_the_detectable_difference_follows_from_spread_subjects_and_seeds(tables):
    profile = load_profile("cpu", {"repeats": REPEATS, "statistics": {"seed_share": 0.05}})
    found = plan.plan(profile, tables, load_profile("cpu"))
    dice = tables["table1_scores"].query("metric == 'dice'").pivot(index="subject", columns="method", values="value")
    for number, other, subjects in (("C1", "ddpm", 198), ("C2", "attention_unet", 60)):
        row = found[found.number == number].iloc[0]
        assert (row.subjects, row.seeds) == (subjects, 3), "key rows have all, the others a part"
        assert row.spread == pytest.approx((dice.pd_ddpm - dice[other]).std())
        alone = (1.959964 + 0.841621) * row.spread / subjects**0.5
        assert row.detectable_subjects == pytest.approx(alone, rel=1e-6)
        assert row.detectable == pytest.approx(alone * (1 + (subjects / 3 - 1) * 0.05) ** 0.5, rel=1e-6)
        assert row.spread_from == "cpu, 12 subjects" and '"further_per_site": 66' in row.taken_out
    assert found.bound.tolist()[:2] == [-0.01, 0] and "C11" not in set(found.number)
    assert not found.claim.str.contains(r"calls\)|T'/T = 0\.2").any(), "nothing that a run has to find out first"


def test_one_training_and_the_test_fold_as_the_profile_stands(tables):
    found = plan.plan(load_profile("cpu"), tables, load_profile("cpu"))
    assert (found.subjects == 12).all() and (found.taken_out == "nothing").all()
    np.testing.assert_array_equal(found.detectable, found.detectable_subjects)


def test_rows_that_the_earlier_run_lacks_borrow_the_nearest_spread_and_say_so(tables):
    found = plan.plan(load_profile("night"), tables, load_profile("cpu"))
    ours = found[found.number == "C11"]
    assert ours.metric.tolist() == ["dice", "lesion_f1", "energy_distance"] * 2
    assert ours.spread_from.str.contains("in place of PD-DDPM, start-matched: ").all()
    solver = found[found.number == "C9"].spread.iloc[0]
    assert ours.spread.iloc[0] == solver and ours.spread_from.iloc[0].endswith("PD-DDPM, DPM-Solver++, 10 calls")
    distance = {name: tables[name].query("metric == 'energy_distance'") for name in TABLES}
    every = distance["fewer_calls_scores"].query("method == 'pd_ddpm' and rule == 'ddpm'").set_index("subject").value
    seeds = distance["agreement_scores"].query("method == 'deep_ensemble'").set_index("subject").value
    (told,) = found[(found.metric == "energy_distance") & found.claim.str.contains("every step")].spread
    assert told == pytest.approx((seeds - every).std()), "an ensemble of seeds stands in for the distance"


@pytest.mark.fault("bad settings and parameters")
@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("nonsense",), "unknown profile 'nonsense'"),
        (("smoke", "{a: b}"), "a: no such setting"),
        (("smoke", "{"), "CHANGES={: "),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_line(given, told, capsys):
    assert plan.main(*given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("make plan: ") and told in line


def test_the_plan_is_stamped_with_what_it_was_computed_from(tables, tmp_path, monkeypatch):
    monkeypatch.setenv("PDLIB_OUT", str(tmp_path))
    written = plan.write_plan("night", {"statistics": {"seed_share": 0.0}})
    (path,) = tmp_path.rglob("plan.csv")
    stamp = records.read_stamp(path)
    assert stamp["profile"] == "night" and set(stamp["spreads"]) == set(TABLES) and "changed" in path.parts
    np.testing.assert_allclose(written.detectable, written.detectable_subjects)

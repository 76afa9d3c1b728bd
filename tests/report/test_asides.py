"""What is told beside the tables follows from them."""

import pandas as pd
import pytest
from conftest import rows

from pdlib.evaluation import records
from pdlib.paths import Layout
from pdlib.report import asides, tables


@pytest.fixture
def place(tmp_path):
    return Layout(tmp_path, "night")


def test_a_start_that_is_weaker_on_validation_alone_is_named(place):
    table = pd.DataFrame({"start": ["empty", "checkpoint_1", "best"], "preseg_dice": [0.0, 0.58, 0.57]})
    tables.save_table(table, "Table 2", place.figures / "table2")
    assert "on the test subjects checkpoint 1 (0.580) lies above the best (0.570)" in asides.aside(place, "table2")
    tables.save_table(table.assign(preseg_dice=[0.0, 0.5, 0.57]), "Table 2", place.figures / "table2")
    assert asides.aside(place, "table2") == ""


def test_subjects_with_an_empty_start_are_a_group_of_their_own(place):
    told = {"dice_difference_missed": 0.4, "dice_difference_missed_n": 3}
    told |= {"dice_difference_rest": -0.01, "dice_difference_rest_n": 57}
    table = pd.DataFrame([{"method": "ddpm"} | told, {"method": "pd_ddpm"}])
    tables.save_table(table, "Table 1", place.figures / "table1")
    said = asides.aside(place, "table1")
    assert "| DDPM | +0.400 (n = 3) | -0.010 (n = 57) |" in said and "| PD-DDPM |" not in said
    tables.save_table(table.assign(dice_difference_missed_n=0), "Table 1", place.figures / "table1")
    assert asides.aside(place, "table1") == ""


def test_every_number_of_calls_has_its_column(place):
    chain = {"t_prime": 30, "start": "best"}
    scores = [
        rows("pd_ddpm", [0.5, 0.7], rule="ddpm", calls=30, **chain),
        rows("pd_ddpm", [0.4, 0.6], rule="dpm_solver", calls=2, **chain),
        rows("pd_ddpm", [0.9, 0.9], rule="dpm_solver", calls=2, **chain | {"split": "validation"}),
        rows("start_matched", [0.2, 0.4], rule="start_matched", calls=2, **chain),
    ]
    records.write_table(place.results / "fewer_calls_scores.csv", pd.concat(scores), {})
    said = asides.aside(place, "fewer_calls").splitlines()
    assert "| Row | 2 | 30 |" in said and "| PD-DDPM, every step | – | 0.600 |" in said
    assert "| PD-DDPM, DPM-Solver++ | 0.500 | – |" in said and "| PD-DDPM, start-matched | 0.300 | – |" in said


def test_a_training_says_whether_more_updates_might_have_helped(place):
    for name, dice in (("denoiser_0", [0.5, 0.6, 0.7]), ("unet_0", [0.5, 0.6, 0.55])):
        looks = pd.DataFrame({"metric": "dice", "value": dice, "step": [10, 20, 30]})
        records.write_table(place.results / "training" / f"{name}.csv", looks, {})
    records.write_table(place.results / "training" / "autoencoder.csv", looks.assign(metric="loss"), {})
    said = asides.trained(place)
    assert "| denoiser_0 | 30 | 0.700 at the last look | 0.700 |" in said
    assert "| unet_0 | 30 | 0.600 at 20 | 0.550 |" in said and "autoencoder" not in said
    assert asides.aside(place, "table1_by_site") == "" and asides.trained(Layout(place.out, "cpu")) == ""

"""docs/scan.md's tables: means over the held-out heads alone, each patient as it was scored."""

import pandas as pd
import pytest

from pdlib.evaluation import records
from pdlib.methods import CHAIN
from pdlib.paths import Layout
from pdlib.report import scan

STAMP = {"git": {"sha": "a", "dirty": False}, "phantom": True}


@pytest.fixture
def place(tmp_path) -> Layout:
    place = Layout(tmp_path, "scan")
    place.results.mkdir(parents=True)
    about = {"fold": 0, "seed": 0, "site": "Utrecht"}
    rows = [
        records.score_rows(
            {"dice": dice, "lesion_f1": 0.5, "avd_percent": 20.0}, method=method, subject=subject, split=split, **about
        )
        for subject, split in (("a", "test"), ("b", "test"), ("c", "validation"))
        for method, dice in ((CHAIN, 0.9 if split == "validation" else 0.4), ("flair_threshold", 0.2))
    ]
    records.write_table(place.results / scan.HEADS, pd.concat(rows), STAMP)
    scores = {name: 0.25 for name in scan.SCORES}
    patient = {"subject": "Utrecht/7", "lesion_ml": 1.5, "reference_ml": 0.909, **scores}
    told = {"predicted_dice": 0.61, "seconds": 70.0, "peak_memory_mb": 900.0}
    labelled = pd.DataFrame([{"method": "flair_threshold", **patient}, {"method": CHAIN, **patient, **told}])
    records.write_table(place.results / scan.LABELLED, labelled, STAMP)
    place.figures.mkdir(parents=True)
    (place.figures / "labelled_Utrecht_7.png").write_bytes(b"")
    return place


def test_heads_are_those_of_the_test_split_the_best_mask_last(place):
    table = scan.parts(place)["heads"].splitlines()
    assert table[0].startswith("2 painted heads") and "(phantom)" in table[0]
    assert [line.split(" | ")[0].strip("| ") for line in table[4:]] == ["Best threshold on FLAIR", "PD-DDPM"]
    assert "| PD-DDPM | 0.400 |" in table[5]


def test_a_patient_has_a_line_for_each_mask_and_a_cited_picture(place):
    made = scan.parts(place)
    lines = made["patients"].splitlines()[4:]
    assert len(lines) == 2 and "| 0.610 | 70.0 | 900 |" in lines[1] and lines[0].endswith("– | – | – |")
    assert "(../figures/scan/labelled_Utrecht_7.png)" in made["pictures"] and "CC BY" in made["pictures"]


def test_what_nobody_has_measured_says_so(tmp_path):
    assert {*scan.parts(Layout(tmp_path, "scan")).values()} == {"Not measured yet."}

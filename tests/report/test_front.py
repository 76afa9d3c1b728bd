"""README's computed parts answer a stranger from a run's own tables, and name every notebook."""

import pandas as pd
import pytest

from pdlib.evaluation import records
from pdlib.paths import NOTEBOOKS, Layout
from pdlib.report import front, tables

CLAIM = {"estimate": -0.0232, "estimate_low": -0.13, "estimate_high": 0.05, "verdict": "undecided"}


def ledger(place, *claims):
    tables.save_table(pd.DataFrame([CLAIM | claim for claim in claims]), "The claims", place.figures / "claims")


@pytest.fixture
def place(tmp_path):
    place = Layout(tmp_path, "cpu")
    place.figures.mkdir(parents=True)
    said = "1. What holds.\n4. Matching it: it helps.\n5. What to use: that.\n"
    (place.figures / "findings.md").write_text(
        f"What this run found (phantom, profile cpu):\n\n{said}", encoding="utf-8"
    )
    return place


def test_a_question_is_answered_by_its_claims_and_verdicts(place):
    distance = "members are nearer: energy distance, its less ours"
    ledger(
        place,
        {"number": "C1", "claim": "PD-DDPM is not worse"},
        {"number": "C10", "claim": distance, "verdict": "does not hold"},
        {"number": "C3", "claim": "PD-DDPM beats TDPM", "verdict": "holds"},
    )
    said = front.found(place)
    assert said.startswith(
        "Phantom, profile cpu. Of 3 claims, the papers' and ours, 1 held, 1 failed, 1 stayed undecided"
    )
    numbers = "-0.023 [-0.13, +0.050]"
    assert f"1. **As good as longer chains?** PD-DDPM is not worse: *undecided* ({numbers})." in said
    assert f"Members are nearer: *does not hold* (energy distance, its less ours: {numbers})." in said
    areas = pd.DataFrame({"method": ["pd_ddpm", "ddpm", "unet", "tdpm"], "risk_area": [2.0, 1.0, 3.0, float("nan")]})
    areas.to_csv(place.figures / "agreement.csv", index=False)
    assert "1 of the 2 [rows beside it](docs/results.md#members-and-raters) ranks them better.\n" in front.found(place)
    ledger(place, {"number": "C8", "claim": "ADDPM is not worse", "estimate_high": -0.01})
    assert "ADDPM is not worse: *worse, but by how much is undecided* (" in front.found(place)
    assert "3. **What to use:** that." in said and "Matching" not in said and "TDPM" not in said


def test_a_reader_is_told_that_the_claims_have_other_subjects(place):
    ledger(place, {"number": "C1", "claim": "a"})
    assert "others than those" not in front.found(place)
    path = place.figures / "findings.md"
    whose = "profile cpu, 9 test subjects; what is said of claims: 180 test subjects of their own (60 of some rows))"
    path.write_text(path.read_text().replace("profile cpu)", whose))
    said = "The claims have 180 test subjects of their own (60 of some rows), others than those of the tables and"
    assert f"{said} figures." in front.found(place) and front.found(place).startswith(
        "Phantom, profile cpu. Of 1 claims"
    )


def test_our_own_chain_is_told_of_where_it_was_judged(place):
    ledger(place, {"number": "C1", "claim": "a"}, {"number": "C11", "claim": "start-matched beats it"})
    assert "2. **Matching it:** it helps.\n3. **What to use:** that." in front.found(place)


def test_some_rows_are_shown_with_their_subjects_where_these_differ(place):
    line = {"n": 12, "nfe": 4.0, "seconds": 1.5, "dice": 0.5, "dice_low": 0.4, "dice_high": 0.6, "dice_undefined": 0}
    table = pd.DataFrame([line | {"method": name} for name in ("pd_ddpm", "ddpm", "tdpm")])
    caption = "Table 1, ours (phantom, profile cpu): Δ to PD-DDPM"
    tables.save_table(table, caption, place.figures / "table1")
    said = front.rows(place)
    assert said.startswith("Table 1, ours (phantom, profile cpu): some of its rows")
    assert "| Method | Dice | Calls | Seconds |" in said and "| PD-DDPM | 0.500 [0.400, 0.600] | 4 | 1.5 |" in said
    assert "TDPM" not in said
    tables.save_table(table.assign(n=[198, 60, 60]), caption, place.figures / "table1")
    assert "| PD-DDPM | 198 | 0.500" in front.rows(place)


def test_every_notebook_has_its_question_and_what_is_known_of_it(place, tmp_path, monkeypatch):
    assert [*front.LESSONS] == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    monkeypatch.setattr(front, "RUN_TIMES", tmp_path / "run_times.csv")
    bare = front.notebooks(place)
    assert bare.startswith("| Notebook | The question it answers |\n") and "Minutes" not in bare
    assert all(f"(notebooks/{name}.ipynb)" in bare for name in front.LESSONS)
    times = {"profile": ["lesson", "cpu"], "notebook": ["00_tour", "00_tour"], "seconds": [90.0, 900.0]}
    pd.DataFrame(times).to_csv(tmp_path / "run_times.csv", index=False)
    (place.figures / "fig3.png").touch()
    course, _, further = front.notebooks(place).partition("<details>")
    assert "| Notebook | The question it answers | Minutes | Picture |" in course and "| 1.5 |" in course
    assert 'src="figures/cpu/fig3.png"' in course and "Picture" not in further and "12_wolleb2021" in further


def test_a_teacher_is_told_the_minutes_that_were_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(front, "RUN_TIMES", tmp_path / "run_times.csv")
    assert front.times() == "The notebooks' minutes at `lesson` values have not been measured yet."
    times = {"profile": ["lesson", "cpu"], "notebook": ["05_sweep_t_prime", "00_tour"], "seconds": [75.0, 900.0]}
    stamp = {"device": "2 cores", "processor": {"name": "One", "vectors": ["avx2", "avx512_bf16"]}}
    records.write_table(tmp_path / "run_times.csv", pd.DataFrame(times), stamp)
    caption, _, head, _, row = front.times().splitlines()
    of = "(profile lesson, 2 cores of One, with bfloat16): "
    assert caption.startswith(f"Minutes of each notebook, one after the other in a new clone {of}")
    assert head == "| Notebook | Question | Minutes |"
    assert row == "| [05_sweep_t_prime](../notebooks/05_sweep_t_prime.ipynb) | How far to diffuse? | 1.2 |"


def test_the_picture_is_left_out_until_it_is_drawn(place):
    assert front.picture(place) == ""
    (place.figures / "fig1.png").touch()
    assert front.picture(place).endswith("(figures/cpu/fig1.png)")

"""The phantom of a profile: where it lies, what is written, and who of it is trained on and tested."""

import pandas as pd
import pytest

from pdlib.paths import Layout
from pdlib.profiles import ProfileError, load_profile
from pdlib.study import preparation

FURTHER = {"repeats": {"seeds": [0, 1], "further_per_site": 2, "others_per_site": 1}}


def written(monkeypatch, profile):
    calls = {}
    monkeypatch.setattr(preparation.phantom, "write_phantom", lambda root, **how: calls.update({str(root): how}))
    preparation.write_phantom("/phantom", profile)
    return calls


def test_further_subjects_are_written_beside_a_phantom_that_stays_what_it_was(monkeypatch):
    before = written(monkeypatch, load_profile("smoke"))["/phantom"]
    calls = written(monkeypatch, load_profile("smoke", FURTHER))
    assert list(calls) == ["/phantom/further", "/phantom"], "the table at the root is written when all are there"
    base, further = calls["/phantom"], calls["/phantom/further"]
    assert {name: base[name] for name in before if name != "progress"} == {
        name: value for name, value in before.items() if name != "progress"
    }
    assert further["cases_per_site"] == 2 and further["seed"] != base["seed"]
    same = ("grid_scale", "label2_fraction", "parameters")
    assert {name: further[name] for name in same} == {name: base[name] for name in same}
    other = written(monkeypatch, load_profile("smoke", FURTHER | {"seed": 1}))["/phantom/further"]
    assert other["seed"] not in (0, 1, further["seed"])


def test_a_phantom_with_further_subjects_lies_elsewhere(tmp_path):
    place = Layout(tmp_path, "cpu")
    assert preparation.phantom_folder(place, load_profile("cpu")).name == "phantom-ec4e5e50", "as it ever did"
    folders = {
        preparation.phantom_folder(place, load_profile("cpu", {"repeats": {"further_per_site": more}}))
        for more in (0, 1, 2)
    }
    assert len(folders) == 3


def test_other_cases_have_no_further_subjects(tmp_path):
    place = Layout(tmp_path, "smoke")
    assert preparation.data_root(place, load_profile("smoke"), str(tmp_path)) == str(tmp_path)
    with pytest.raises(ProfileError, match="further subjects are drawn from the phantom"):
        preparation.data_root(place, load_profile("smoke", FURTHER), str(tmp_path))


def test_subjects_in_the_folder_of_further_ones_belong_to_no_fold():
    names = [f"training/S{site}/{i}" for site in range(3) for i in range(4)]
    names += [f"further/training/S{site}/{i}" for site in range(3) for i in range(2)]
    cases = pd.DataFrame({"subject": names, "site": [name.split("/")[-2] for name in names], "lesion_ml": 1.0})
    table = preparation.subject_table(cases, load_profile("smoke", FURTHER)).set_index("subject")
    assert (table.part != "fold").tolist() == [name.startswith("further/") for name in table.index]
    assert table.fold.isna().equals(table.part != "fold") and table.part.value_counts().to_dict() == {
        "fold": 12,
        "test": 3,
        "key": 3,
    }
    plain = preparation.subject_table(cases, load_profile("smoke"))
    assert set(plain.columns) == {"subject", "site", "lesion_ml", "fold"} and plain.fold.notna().all()

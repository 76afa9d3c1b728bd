"""A clone segments a phantom's case by the networks that come with it, with nothing trained."""

import json

import pytest

from pdlib.__main__ import main
from pdlib.data import wmh
from pdlib.paths import COMMITTED
from pdlib.profiles import load_profile
from pdlib.study import preparation

STREAM = 7  # of the profile's seed: subjects that no study has drawn


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The files of the one with most lesion of three, and the Dice of the best threshold on its FLAIR."""
    root, profile = tmp_path_factory.mktemp("drawn"), load_profile("night", {"machine": {"workers": 1}})
    preparation.write_drawn(root, "drawn", profile, 1, STREAM)
    read = {one: wmh.read_case(one, clip_percentiles=profile.data.clip_percentiles) for one in wmh.find_cases(root)}
    largest = max(read, key=lambda one: read[one].lesion_ml)
    return largest, preparation.best_threshold_dice(read[largest])


@pytest.mark.parametrize(("weights", "members"), [(COMMITTED, 5), (COMMITTED / "scan", 1)], ids=["night", "scan"])
def test_better_than_the_best_threshold(weights, members, case, tmp_path, capsys):
    (files, threshold), out = case, tmp_path / "out"
    given = ["--flair", files.flair, "--t1", files.t1, "--out", out, "--weights", weights, "--members", members]
    assert main(["segment", *map(str, given)]) == 0
    capsys.readouterr()
    assert main(["score", str(files.wmh), str(out / "mask.nii.gz")]) == 0
    assert json.loads(capsys.readouterr().out)["dice"] > threshold

"""The networks that the repository comes with: small, whole, and as good on a phantom as their table says."""

import shutil
import subprocess

import pandas as pd
import pytest

from pdlib.evaluation import records
from pdlib.paths import COMMITTED, committed_scores, committed_weights
from pdlib.profiles import load_profile
from pdlib.study import committed
from pdlib.study.committed import DIGITS, LARGEST, SUMS, digests, drawn, names, scores
from pdlib.training.weights import load_weights

there = pytest.mark.skipif(not committed_scores().exists(), reason="no networks are committed yet: `make weights`")


def test_a_profile_commits_the_networks_of_its_first_repeat():
    seeds = [f"attention_unet_{seed}" for seed in range(5)]
    others = ["unet_0", "unet_plus_plus_0", "bayesian_unet_0"]
    assert names(load_profile("cpu")) == [*seeds, *others, "denoiser_0", "one_step_0250"]
    assert names(load_profile("smoke"))[-3:] == ["start_matched_0", "refiner", "noise_level"]


@pytest.mark.parametrize("kept_as", ["", "scan"], ids=["the reference's", "for a scan"])
def test_the_committed_networks_are_small_and_of_one_training(kept_as):
    if not committed_scores(kept_as).exists():
        pytest.skip("these are not committed yet: `make weights`")
    profile = load_weights(committed_weights("denoiser_0", kept_as)).card["profile"]
    paths = [*(COMMITTED / kept_as).glob("*/best.safetensors")]
    found = {path.parent.name: load_weights(path) for path in paths}
    assert sorted(found) == sorted(names(load_profile(profile)))
    assert sum(path.stat().st_size for path in paths) <= {"": LARGEST, "scan": 5_000_000}[kept_as]
    assert all(one.finished and one.card["profile"] == profile for one in found.values())
    assert kept_as in ("", profile)


@there
def test_every_file_is_the_one_that_was_committed(tmp_path, monkeypatch):
    assert subprocess.run(["sha256sum", "--check", "--quiet", SUMS.name], cwd=COMMITTED).returncode == 0
    assert SUMS.read_text() == digests()
    folder = shutil.copytree(COMMITTED, tmp_path / "weights")
    (path, *_) = sorted(folder.glob("*/best.safetensors"))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    monkeypatch.setattr(committed, "COMMITTED", folder)
    assert len({*digests().splitlines()} - {*SUMS.read_text().splitlines()}) == 1


@there
def test_the_committed_networks_score_what_the_table_says(tmp_path):
    printed = records.read_table(committed_scores())
    profile = load_weights(committed_weights("denoiser_0")).card["profile"]
    found = scores(drawn(profile, tmp_path, COMMITTED))
    pd.testing.assert_frame_equal(found[["method", "subject"]], printed[["method", "subject"]])
    assert found.dice.to_numpy() == pytest.approx(printed.dice.to_numpy(), abs=10**-DIGITS)

"""Training on two processes of `fabric run`: the curve of one, and checkpoints that either goes on from."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from pdlib.paths import PACKAGE, ROOT, layout
from pdlib.training.weights import Weights

SMALL, DENOISER = (Path(__file__).with_name(f"{name}_training.py") for name in ("small", "denoiser"))
OURS = PACKAGE / "study" / "train.py"
TOLERANCE = 1e-4  # relative: the same crops, t and noise, their gradients added up in another order
OF_A_DENOISER = 1e-3  # the same, of its first updates: such roundings grow faster in it


def fabric_run(processes: int, script: Path, *words: object) -> subprocess.CompletedProcess:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    how = ["--accelerator=cpu", f"--devices={processes}", f"--main-port={port}"]
    command = [Path(sys.executable).with_name("fabric"), "run", *how, script, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def trained(folder: Path, *legs: tuple[int, int]) -> Weights:
    """The checkpoint of a training in legs: on how many processes, and after how many updates they die (0: at none)."""
    for processes, dies_after in legs:
        ended = fabric_run(processes, SMALL, folder, dies_after)
        assert (ended.returncode == 0) == (dies_after == 0), ended.stderr[-4000:]
    return Weights.read(folder / "last.safetensors")


def curve(checkpoint: Weights) -> pd.Series:
    return pd.DataFrame(checkpoint.card["history"]).set_index(["metric", "step"]).value


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("alone") / "small", (1, 0))


@pytest.mark.parametrize(
    "legs",
    [[(2, 0)], [(2, 15), (1, 0)], [(1, 15), (2, 0)]],
    ids=["two processes", "two, then one", "one, then two"],
)
def test_two_processes_give_the_curve_and_the_weights_of_one(tmp_path, alone, legs):
    together = trained(tmp_path / "small", *legs)
    assert together.card["recipe"] == alone.card["recipe"] and together.card["done"] == alone.card["done"]
    expected = curve(alone)
    assert expected["train_loss"].iloc[-1] < 0.9 * expected["train_loss"].iloc[0], "it learns"
    assert curve(together).to_dict() == pytest.approx(expected.to_dict(), rel=TOLERANCE)
    for name, tensor in alone.tensors.items():
        assert torch.allclose(together.tensors[name], tensor, rtol=1e-3, atol=1e-4), name


def test_processes_that_cannot_share_a_batch_say_so(tmp_path):
    ended = fabric_run(3, SMALL, tmp_path / "small", 0)
    assert ended.returncode and "batch_size 4: 3 processes cannot share it equally" in ended.stderr


def test_a_denoiser_of_the_study_has_the_first_losses_of_one_process(finished, tmp_path):
    losses = []
    for processes in (1, 2):
        ended = fabric_run(processes, DENOISER, tmp_path / str(processes), finished)
        assert ended.returncode == 0, ended.stderr[-4000:]
        losses.append(curve(Weights.read(tmp_path / str(processes) / "last.safetensors"))["train_loss"].to_dict())
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=OF_A_DENOISER)


@pytest.mark.hours
def test_a_denoiser_of_the_study_trains_on_two_processes_and_the_notebook_s_own_goes_on_from_it(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    folder = layout("smoke", str(out)).weights("denoiser_0")
    notebook = Weights.read(folder / "last.safetensors")
    shutil.rmtree(folder)
    ended = fabric_run(2, OURS, "denoiser_0", "smoke", "--out", out)
    assert ended.returncode == 0, ended.stderr[-4000:]
    ours = Weights.read(folder / "last.safetensors")
    assert ours.card["recipe"] == notebook.card["recipe"], "the notebook would go on from it"
    assert curve(ours).index.equals(curve(notebook).index)
    written = (folder / "last.safetensors").stat().st_mtime_ns
    assert fabric_run(1, OURS, "denoiser_0", "smoke", "--out", out).returncode == 0
    assert (folder / "last.safetensors").stat().st_mtime_ns == written, "it is trained"


def test_a_name_that_is_no_network_s_is_one_line(tmp_path):
    ended = subprocess.run([sys.executable, OURS, "unet", "smoke"], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("train: unet: should be one of denoiser, ")
    assert ended.stderr.count("\n") == 1

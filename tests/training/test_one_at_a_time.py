"""Two trainings in one folder exclude each other, and a checkpoint of another network is refused by name."""

import threading

import pytest
import torch
from safetensors.torch import load_file
from test_fit import PLAN, Killed, fit_small, kill_after, silent

from pdlib.training.weights import Weights, write_weights


def test_a_second_training_in_a_folder_says_for_whom_it_waits_and_then_finds_the_work_done(tmp_path, capsys):
    folder, begun, go_on, results, done = tmp_path / "unet_0", threading.Event(), threading.Event(), {}, []

    def hold(step, losses):
        begun.set()
        assert go_on.wait(60)

    def train(name, on_step):
        results[name] = fit_small(folder, on_step=on_step)

    first = threading.Thread(target=train, args=("first", hold))
    second = threading.Thread(target=train, args=("second", lambda step, losses: done.append(step)))
    first.start()
    assert begun.wait(60)
    second.start()
    told = ""
    while not told:
        told = capsys.readouterr().err
        second.join(0.05)
    assert told.startswith("training unet_0: waiting for training unet_0 (process ") and not done
    go_on.set()
    first.join()
    second.join()
    assert not done and results["second"].equals(results["first"])
    assert Weights.read(folder / "best.safetensors").finished


@pytest.mark.fault("bad weights")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("average.0.weight"), "1 of the network's tensors are missing, 0.weight"),
        (lambda tensors: tensors.update({"network.0.weight": torch.zeros(1)}), r"0.weight has shape \[1\]"),
        (lambda tensors: tensors.update({"optimizer.0.exp_avg": torch.zeros(1)}), r"0.exp_avg has shape \[1\]"),
        (lambda tensors: tensors.update({"optimizer.99.exp_avg": torch.zeros(1)}), "index out of range"),
        (lambda tensors: tensors.update({"optimizer.x.exp_avg": torch.zeros(1)}), "invalid literal"),
        (lambda tensors: tensors.update({"else": torch.zeros(1)}), "else"),
    ],
)
def test_a_checkpoint_that_is_not_the_training_s_is_refused_by_name(tmp_path, change, told):
    with pytest.raises(Killed):
        fit_small(tmp_path / "unet_0", on_step=kill_after(3))
    last = tmp_path / "unet_0" / "last.safetensors"
    card, tensors = dict(Weights.read(last).card), load_file(last)
    change(tensors)
    write_weights(last, tensors, card)
    with pytest.raises(ValueError, match=f"^{last}: not a checkpoint of this training .*{told}"):
        fit_small(tmp_path / "unet_0", on_step=silent)


@pytest.mark.fault("bad weights")
def test_a_checkpoint_that_does_not_say_how_far_it_is_is_refused_by_name(tmp_path):
    with pytest.raises(Killed):
        fit_small(tmp_path / "unet_0", on_step=kill_after(PLAN.validate_every + 1))
    last = tmp_path / "unet_0" / "last.safetensors"
    card, tensors = dict(Weights.read(last).card), load_file(last)
    del card["since_best"]
    write_weights(last, tensors, card)
    with pytest.raises(ValueError, match=f"^{last}: its card does not say its since_best"):
        fit_small(tmp_path / "unet_0")

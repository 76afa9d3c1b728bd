"""Weights from anywhere: a pickle is never opened, and what a file claims is checked before it is used."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save

from pdlib.training.weights import BUILDERS, Weights, load_weights, write_weights

NETWORK = {"name": "unet", "in_channels": 2, "out_channels": 1, "channels": [4, 8], "strides": [2], "num_res_units": 0}
NETWORK |= {"norm": "batch", "dropout": 0.0}
CPU = torch.device("cpu")


class Trap:
    """A pickle of it makes a file where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.fault("bad weights")
@pytest.mark.parametrize("name", ["best.safetensors", "best.pt", "best.pth", "best.pkl"])
@pytest.mark.parametrize("how", ["torch", "torch before 1.6", "bare", "protocol 0"])
def test_a_pickle_is_refused_with_the_reason_and_never_opened(tmp_path, name, how):
    path, sprung = tmp_path / name, tmp_path / "sprung"
    if how.startswith("torch"):
        torch.save({"a": Trap(sprung)}, path, _use_new_zipfile_serialization=how == "torch")
    else:
        path.write_bytes(pickle.dumps(Trap(sprung), protocol=0 if how == "protocol 0" else None))
    for read in (Weights.read, load_weights):
        with pytest.raises(ValueError, match=f"^{path}: not a readable weights file") as caught:
            read(path)
        told = "a pickle, as torch.save writes it: reading one can run code"
        assert told in str(caught.value) or (how, name) == ("protocol 0", "best.safetensors")
        assert "\n" not in str(caught.value)
    assert not sprung.exists()


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(0)
    return BUILDERS["segmenter"](**NETWORK).state_dict()


def changed(tensors, change):
    tensors = dict(tensors)
    change(tensors)
    return tensors


FIRST, COUNT = "network.model.0.conv.weight", "network.model.0.adn.N.num_batches_tracked"


def unfit(name, value):
    return lambda tensors: tensors.update({name: value(tensors[name])})


@pytest.mark.fault("bad weights")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.popitem(), "1 of the network's tensors are missing, network.model."),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "1 tensors are none of the network's, more for one"),
        (unfit(FIRST, lambda one: one[:, :1]), f"{FIRST} has shape [4, 1, 3, 3], the network's [4, 2, 3, 3]"),
        (unfit(FIRST, lambda one: one.reshape(2, 4, 3, 3)), f"{FIRST} has shape [2, 4, 3, 3]"),
        (unfit(FIRST, lambda one: one.to(torch.int32)), f"{FIRST} holds torch.int32, the network's torch.float32"),
        (unfit(FIRST, lambda one: one.to(torch.complex64)), f"{FIRST} holds torch.complex64"),
        (unfit(COUNT, lambda one: one.float()), f"{COUNT} holds torch.float32, the network's torch.int64"),
        (unfit(FIRST, lambda one: one.log()), f"{FIRST} holds numbers that are not finite"),
    ],
)
def test_tensors_that_are_not_the_network_s_are_refused_in_a_line(tmp_path, tensors, change, told):
    path = tmp_path / "best.safetensors"
    write_weights(path, changed(tensors, change), {"kind": "segmenter", "network": NETWORK})
    with pytest.raises(ValueError) as caught:
        Weights.read(path).build(CPU, "segmenter")
    assert str(caught.value).startswith(f"{path}: weights and card do not fit together ({told}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_of_the_same_numbers_builds_the_network(tmp_path, tensors, dtype):
    path = tmp_path / "best.safetensors"
    kept = {name: one.to(dtype) if one.is_floating_point() else one for name, one in tensors.items()}
    write_weights(path, kept, {"kind": "segmenter", "network": NETWORK})
    built = Weights.read(path).build(CPU, "segmenter").state_dict()
    assert all(torch.equal(built[name], one.to(built[name].dtype)) for name, one in kept.items())


@pytest.mark.fault("bad weights")
@pytest.mark.parametrize(
    "network",
    [
        *({"channels": [10**9, 8]}, {"num_res_units": 10**9}, {"channels": [4] * 10_000, "strides": [1] * 9_999}),
        *(
            {"channels": [4096, 4096]},
            {"in_channels": 1e300},
            {"channels": [4, -8]},
            {"strides": [0]},
            {"norm": "eval"},
        ),
        *({"name": "__import__"}, {"name": ["unet"]}, {"channels": {"4": 8}}, {"dropout": "much"}),
    ],
    ids=lambda network: str(network)[:40],
)
def test_a_card_that_claims_too_much_takes_no_memory(tmp_path, tensors, network, monkeypatch):
    """The network that it describes is laid out without its numbers first."""
    path = tmp_path / "best.safetensors"
    write_weights(path, tensors, {"kind": "segmenter", "network": NETWORK | network})
    taken, zeros = [], torch.empty

    def watched(*shape, **how):
        one = zeros(*shape, **how)
        taken.append(0 if one.is_meta else one.numel())
        return one

    monkeypatch.setattr(torch, "empty", watched)
    with pytest.raises(ValueError, match=f"^{path}: ") as caught:
        Weights.read(path).build(CPU, "segmenter")
    assert sum(taken) < 10_000 and "\n" not in str(caught.value)


@pytest.mark.fault("bad weights")
@pytest.mark.parametrize(
    ("card", "told"),
    [
        ("[1, 2]", "its card is no mapping"),
        ("null", "its card is no mapping"),
        ("{", "Expecting"),
        ("[" * 100_000, "recursion"),
        ('{"t_max": 1e9}', "its card's t_max is no number from 0 to"),
        ('{"t_max": 1000000000000}', "its card's t_max is no number from 0 to"),
        ('{"t_stop": -1}', "its card's t_stop is no number"),
        ('{"step": true}', "its card's step is no number"),
    ],
    ids=lambda text: text[:20],
)
def test_a_card_that_is_none_is_refused_in_a_line(tmp_path, card, told):
    path = tmp_path / "best.safetensors"
    path.write_bytes(save({"a": torch.zeros(1)}, metadata={"card": card}))
    with pytest.raises(ValueError, match=f"^{path}: not a readable weights file .*{told}") as caught:
        Weights.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.fault("bad weights")
def test_what_a_card_does_not_say_is_named_with_the_file(tmp_path, record_property):
    record_property("faults", 3)
    path = tmp_path / "best.safetensors"
    write_weights(path, {"a": torch.zeros(1)}, {"kind": "denoiser", "data": {"phantom": True}})
    weights = Weights.read(path)
    for ask, told in (
        (lambda: weights.card["diffusion"], "its card does not say its diffusion"),
        (lambda: weights.data, "its card does not say what it was trained on"),
        (lambda: weights.build(CPU, "denoiser"), "its card does not say its network"),
    ):
        with pytest.raises(ValueError, match=f"^{path}: .*{told}"):
            ask()


@pytest.mark.fault("bad weights")
def test_no_damage_gets_past_and_none_is_a_traceback(tmp_path, tensors, record_property):
    """Cuts and flipped bits: refused in a line that names the file, or the very same tensors under another card."""
    path, rng = tmp_path / "best.safetensors", np.random.default_rng(0)
    write_weights(path, tensors, {"kind": "segmenter", "network": NETWORK})
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    assert json.loads(whole[8:header])["__metadata__"]
    places = [*range(16), *rng.integers(0, header, 400), *rng.integers(header, len(whole), 20)]
    record_property("faults", len(places))
    outcomes = {"refused": 0, "built": 0}
    for place in places:
        cut = bytearray(whole[:place] if rng.random() < 0.2 else whole)
        if len(cut) > place:
            cut[place] ^= 1 << rng.integers(0, 8)
        path.write_bytes(cut)
        try:
            Weights.read(path).build(CPU, "segmenter")
            outcomes["built"] += 1
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error), error
            outcomes["refused"] += 1
    assert outcomes["refused"] > 300, outcomes

"""Weights files: what is refused and by which name, that each is read once, and that a write is whole or not at all."""

import hashlib
import json
import os
import resource
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from pdlib.training.weights import BUILDERS, Weights, export_weights, load_weights, same_data, write_weights

DATA = {"fingerprint": "a", "phantom": True, "train": ["Utrecht/1", "Utrecht/2"]}
NETWORK = {"name": "unet", "in_channels": 2, "out_channels": 1, "channels": [4, 8], "strides": [2], "num_res_units": 0}
NETWORK |= {"norm": "batch", "dropout": 0.0}
CPU = torch.device("cpu")


def written(path, **card):
    path.parent.mkdir(exist_ok=True)
    tensors = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.tensor([1, 2])}
    write_weights(path, tensors, {"kind": "segmenter", "network": NETWORK, "data": DATA} | card)
    return tensors


def test_tensors_card_and_digest_come_back(tmp_path):
    tensors = written(tmp_path / "best.safetensors", t_max=10)
    weights = Weights.read(tmp_path / "best.safetensors")
    assert weights.tensors.keys() == tensors.keys()
    assert all(torch.equal(weights.tensors[name], tensors[name]) for name in tensors)
    assert weights.card == {"kind": "segmenter", "network": NETWORK, "data": DATA, "t_max": 10}
    assert weights.digest == hashlib.sha256((tmp_path / "best.safetensors").read_bytes()).hexdigest()


def test_weights_are_equal_where_their_files_are(tmp_path):
    for name, kind in (("a", "segmenter"), ("b", "segmenter"), ("c", "one_step")):
        written(tmp_path / name, kind=kind)
    a, b, c = (Weights.read(tmp_path / name) for name in "abc")
    assert a == b and hash(a) == hash(b) and a != c and len({a, b, c}) == 2


@pytest.mark.fault("bad weights")
def test_bad_files_are_named(tmp_path, record_property):
    record_property("faults", 6)
    path = tmp_path / "best.safetensors"
    written(path)
    whole = path.read_bytes()

    def no_card():
        save_file({"a": torch.zeros(1)}, path)

    def cut():
        path.write_bytes(whole[:-4])

    for damage in (lambda: path.write_text("text"), lambda: path.write_bytes(b""), no_card, cut, path.unlink):
        damage()
        for read in (Weights.read, load_weights):
            with pytest.raises(ValueError, match=f"{path}: not a readable weights file"):
                read(path)
    path.mkdir()
    with pytest.raises(ValueError, match=f"{path}: not a readable weights file"):
        load_weights(path)


def test_a_file_is_read_once_for_as_long_as_it_does_not_change(tmp_path, monkeypatch):
    path, reads = tmp_path / "best.safetensors", []
    written(path, kind="segmenter")
    read = Weights.read

    def counted(path):
        reads.append(path)
        return read(path)

    monkeypatch.setattr(Weights, "read", counted)
    first = load_weights(path)
    assert load_weights(str(path)) is first and len(reads) == 1
    before = path.stat()
    written(path, kind="one_step")  # another file of the same name, size and time
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_weights(path).card["kind"] == "one_step" and len(reads) == 2


@pytest.mark.fault("bad weights")
def test_another_kind_is_refused_by_name(tmp_path):
    written(tmp_path / "best.safetensors")
    weights = Weights.read(tmp_path / "best.safetensors")
    assert weights.require_kind("segmenter", "generator") is weights
    with pytest.raises(ValueError, match=f"{weights.path}: holds a segmenter, not a denoiser or one_step"):
        weights.build(CPU, "denoiser", "one_step")


@pytest.mark.fault("bad weights")
@pytest.mark.parametrize(
    "card",
    [
        {},
        {"network": NETWORK | {"name": "no such"}},
        {"network": NETWORK | {"wide": 3}},
        {"network": None},
        {"kind": "no such"},
    ],
    ids=["tensors", "name", "argument", "nothing", "kind"],
)
def test_a_card_that_does_not_fit_is_refused_by_name_in_a_line(tmp_path, card):
    path = tmp_path / "best.safetensors"
    written(path, **card)
    weights = Weights.read(path)
    with pytest.raises(ValueError, match=f"^{path}: weights and card do not fit together") as caught:
        weights.build(CPU, weights.card["kind"])
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.fault("bad weights")
def test_an_unfinished_training_is_refused_with_the_cause(tmp_path, record_property):
    record_property("faults", 2)
    path = tmp_path / "best.safetensors"
    for card in ({"finished": False, "step": 120}, {"step": 120}):
        written(path, **card)
        with pytest.raises(ValueError, match=f"{path}: its training has not ended, these weights are of update 120"):
            Weights.read(path).require_finished()
    written(path, finished=True)
    assert Weights.read(path).require_finished().finished


def test_weights_of_other_data_are_not_combined(tmp_path):
    def of(name, **changes):
        written(tmp_path / name, data=DATA | changes)
        return Weights.read(tmp_path / name)

    one = of("one", watched=["x"])
    same_data(one)
    same_data(one, of("two"), of("three"))
    changed = {"fingerprint": "b", "phantom": False, "train": ["Utrecht/1", "Utrecht/3"]}
    said = {"fingerprint": "data", "phantom": "kind of data", "train": "subjects"}
    for key, value in changed.items():
        with pytest.raises(ValueError, match=f"{one.path} and {tmp_path}/other: trained on different {said[key]}"):
            same_data(one, of("two"), of("other", **{key: value}))
    foreign = replace(one, card={"data": ["recipe"]}, path=tmp_path / "foreign")
    for pair in ((one, foreign), (foreign, one)):
        with pytest.raises(ValueError, match="foreign: its card does not say what it was trained on"):
            same_data(*pair)


@pytest.mark.fault("full disk")
def test_a_full_disk_names_the_file_and_leaves_the_one_of_before(tmp_path):
    """A limit on the size of files stands in for the disk's end."""
    path = tmp_path / "best.safetensors"
    written(path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=f"{path}: cannot be written .*too large"):
            write_weights(path, {"a": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [one.name for one in tmp_path.iterdir()] == [path.name] and path.read_bytes() == before


def test_a_card_is_plain_json(tmp_path):
    written(tmp_path / "a", score=0.5)
    content = (tmp_path / "a").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header["__metadata__"]["card"])["score"] == 0.5


def test_half_precision_keeps_vectors_and_integers_and_builds_a_network_in_full_precision(tmp_path):
    torch.manual_seed(0)
    network = BUILDERS["segmenter"](**NETWORK)
    source = tmp_path / "run" / "unet_0" / "best.safetensors"
    write_weights(source, network.state_dict(), {"kind": "segmenter", "network": NETWORK, "finished": True})
    written = export_weights(tmp_path / "run", ["unet_0"], tmp_path / "out", "night")
    half = Weights.read(tmp_path / "out" / "unet_0" / "best.safetensors")
    assert written == half.path.stat().st_size < source.stat().st_size
    full = Weights.read(source)
    for name, one in full.tensors.items():
        kept = half.tensors[name]
        assert kept.dtype == (torch.float16 if one.ndim > 1 else one.dtype)
        torch.testing.assert_close(kept.to(one.dtype), one, rtol=2**-11, atol=2**-25)
    assert half.card["profile"] == "night" and half.card["full_precision"] == full.digest and half.finished
    built = half.build(CPU, "segmenter").state_dict()
    assert {one.dtype for one in built.values()} == {torch.float32, torch.int64}


def test_a_number_beyond_half_precision_and_an_unfinished_training_are_not_exported(tmp_path):
    path = tmp_path / "run" / "net" / "best.safetensors"
    for tensor, finished, said in (
        (torch.full((1, 1), 1e5), True, "a holds numbers beyond"),
        (torch.ones(1, 1), False, "ended"),
    ):
        write_weights(path, {"a": tensor}, {"kind": "segmenter", "finished": finished})
        with pytest.raises(ValueError, match=f"{path}.*{said}"):
            export_weights(tmp_path / "run", ["net"], tmp_path / "out", "night")
    assert not (tmp_path / "out").exists()

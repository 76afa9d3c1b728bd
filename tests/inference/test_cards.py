"""A denoiser's card says how to sample, or what is wrong with it is told before anything is sampled."""

import json
from functools import reduce

import pytest

from pdlib.inference.trained import Changes, Trained
from pdlib.paths import committed_weights
from pdlib.sections.cards import card_fault
from pdlib.training.weights import load_weights

FORGED = [  # entries, and what cannot stand there
    ("sampling.presegmenter", ["../../../etc/passwd", "unet\0", ["unet"], 1]),
    ("sampling.chain", [{}, "x", []]),
    ("sampling.chain.t_prime", [0, 1001, "300", 2.5]),
    ("sampling.ensemble", [{}, [], None]),
    ("sampling.ensemble.size", [0, -5, 2.5, "5", 10**9]),
    ("sampling.ensemble.threshold", [0, 1, 5, "x", float("nan")]),
    ("sampling.ensemble.vote", ["hack", 1]),
    ("sampling.voxel_tolerance", [-1, "x"]),
    ("sampling.seed", [-1, 10**40, "x", 0.5]),
    ("sampling.batch_size", [0, -1, "x", 10**30]),
    ("data.clip_percentiles", [[1], "ab", [99, 1], [0.5, 101]]),
    ("data.in_plane_mm", [0, "x", [1, 2, 3, 4], {"low": [1, 1]}]),
    ("data.in_plane_mm.median", [[0, 1], [-1, 1], ["x", 1], [1e30, 1]]),
    ("data.multiple", [0, "x", 10**6]),
    ("data.phantom", ["no", 1]),
    ("data.t1_dropped", ["x", 2]),
    ("diffusion.schedule", [{}, {"name": "os.system"}]),
    ("diffusion.schedule.steps", [0, "x", 10**9]),
    ("diffusion.codec", ["hack", {}]),
    ("diffusion.prediction", ["hack", None]),
    ("profile", [["a"], 5]),
]
CASES = [(place, value) for place, values in FORGED for value in values]


@pytest.fixture
def card() -> dict:
    return json.loads(json.dumps(load_weights(committed_weights("denoiser_0")).card))


@pytest.mark.fault("bad weights")
@pytest.mark.parametrize(("place", "value"), CASES, ids=str)
def test_what_cannot_be_sampled_with_is_told_by_its_place(card, place, value):
    *sections, last = place.split(".")
    assert card_fault(card) is None
    reduce(dict.__getitem__, sections, card)[last] = value
    told = card_fault(card)
    assert told.startswith(place.rpartition(".")[0]) and last in told
    assert "\n" not in told and "http" not in told


@pytest.mark.fault("bad weights")
@pytest.mark.parametrize("place", [place for place, _ in FORGED if place not in ("profile", "data.t1_dropped")])
def test_what_is_not_said_is_told(card, place):
    *sections, last = place.split(".")
    del reduce(dict.__getitem__, sections, card)[last]
    assert place.rpartition(".")[0] in card_fault(card)


@pytest.mark.parametrize("kept_as", ["", "scan"])
def test_the_committed_networks_say_how_to_sample(kept_as):
    path = committed_weights("denoiser_0", kept_as)
    assert Trained.read(path.parents[1]).how(Changes()).members >= 1

"""Why members agree: the variance that is due, and one cause changed at a time."""

import shutil
from itertools import product

import numpy as np
import pandas as pd
import pytest

from pdlib.inference.slices import silent
from pdlib.methods import CHAIN
from pdlib.study.comparison import Row
from pdlib.study.members import starts
from pdlib.study.spread import causes, spread, spread_table, variants


def test_the_variance_that_is_due_is_that_of_draws_like_the_reference():
    """All outcomes of two members and a reference that are fair coins, a voxel each: both are the coin's variance."""
    first, second, reference = np.array(list(product((0.0, 1.0), repeat=3))).T
    assert spread(np.array([first, second]), reference) == {"variance": 0.25, "due": 0.25}


def test_means_instead_of_draws_show_less_than_is_due():
    half, reference = np.full((3, 4), 0.5), np.array([0.0, 1.0, 0.0, 1.0])
    assert spread(half, reference) == {"variance": 0.0, "due": 0.125}


def test_one_cause_is_changed_at_a_time(trained):
    run, subject = trained.run, trained.run.subjects("validation")[0]
    made = {name: members(subject, silent) for name, members in variants(run, 2).items()}
    row = Row.of(run, CHAIN, 2)
    np.testing.assert_array_equal(made["as_printed"], row.members(subject).values)
    np.testing.assert_array_equal(made["from_noise"], Row.of(run, "ddpm", 2).members(subject).values)
    assert len({one.tobytes() for one in made.values()}) == len(made)
    masks = [starts(run, run.weights(f"attention_unet_{seed}"), subject, 1).values for seed in (0, 1)]
    assert not np.array_equal(*masks)
    np.testing.assert_array_equal(made["start_mask"][0], made["as_printed"][0])
    assert not np.array_equal(*made["start_mask"])


def test_members_that_share_noise_and_mask_are_one(trained):
    shutil.copy(trained.preseg, trained.place.weights("attention_unet_1") / "best.safetensors")
    run, subject = trained.run, trained.run.subjects("validation")[0]
    table = spread_table(run, variants(run, 2), [subject]).set_index("variant")
    assert table.variance["start_mask"] == 0 < table.due["start_mask"]
    volume = run.volume(subject)
    inside = volume.brain & ~volume.ignore
    members = Row.of(run, CHAIN, 2).members(subject).values[:, inside].astype(float)
    assert table.variance["as_printed"] == pytest.approx(np.mean((members[0] - members[1]) ** 2) / 2)


def test_causes_are_told_by_what_they_do_to_the_variance():
    values = {"as_printed": [1.0, 3.0], "every_step": [4.0, 4.0], "start_noise": [1.0, 1.0]}
    values |= {"start_mask": [0.0, 2.0], "from_noise": [9.0, 11.0]}
    parts = [pd.DataFrame({"variant": name, "subject": ["a", "b"], "variance": each}) for name, each in values.items()]
    assert causes(pd.concat(parts)).to_dict() == {"from_noise": 5.0, "every_step": 2.0, "start_mask": 1.5}
    assert list(causes(pd.concat(parts)).index) == ["from_noise", "every_step", "start_mask"]

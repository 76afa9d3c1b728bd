"""Doubts about FLAIR and T1: each is said of what it is about, and of nothing sound."""

import os

import numpy as np
import pytest
from heads import head

from pdlib.data import wmh
from pdlib.data.doubts import doubts, noise_share
from pdlib.data.scan import read_scan

REAL = os.environ.get("PDLIB_REAL_DATA")
SPACING = (4.0, 3.0, 3.0)
FLAIR, BRAIN = head(skull=False)
T1 = head(flair=False, skull=False, seed=1)[0]


def z_scored(*images: np.ndarray) -> np.ndarray:
    return np.stack([np.where(BRAIN, (one - one[BRAIN].mean()) / one[BRAIN].std(), 0) for one in images])


def said(flair=FLAIR, t1=T1, *, has_t1=True) -> tuple[str, ...]:
    return doubts(z_scored(flair, t1), flair, BRAIN, SPACING, has_t1=has_t1)


def noisy(image: np.ndarray) -> np.ndarray:
    return image + 3 * image[BRAIN].std() * np.random.default_rng(2).standard_normal(image.shape)


def bright_csf(image: np.ndarray) -> np.ndarray:
    return np.where(BRAIN, 500 - image, 0)


DOUBTFUL = {
    "low contrast": ({"flair": noisy(FLAIR) + 2000}, "low contrast in the FLAIR: noise is"),
    "low contrast in the T1": ({"t1": noisy(T1)}, "low contrast in the T1"),
    "a T2 for a FLAIR": ({"flair": bright_csf(FLAIR)}, "CSF, dark on the T1, is bright on the FLAIR"),
    "a T2 for a T1": ({"t1": bright_csf(T1)}, "what is dark on the FLAIR is bright on the T1"),
    "swapped": ({"flair": T1, "t1": FLAIR}, "FLAIR and T1 look swapped"),
    "negative": ({"flair": FLAIR - 60 * BRAIN}, "of the brain is negative in the FLAIR"),
    "a T1 for a FLAIR": ({"flair": T1, "has_t1": False}, "the FLAIR looks like a T1"),
}


@pytest.mark.parametrize(("images", "doubt"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_each_doubt_is_said(images, doubt):
    assert any(doubt in note for note in said(**images))


def test_sound_images_raise_none():
    assert said() == () == said(has_t1=False)


@pytest.mark.skipif(not REAL, reason="PDLIB_REAL_DATA does not name a folder of real cases")
def test_real_images_raise_none_and_swapped_ones_do():
    for case in wmh.find_cases(REAL):
        read = {"clip_percentiles": (0.5, 99.5)}
        assert read_scan(case.flair, case.t1, **read).notes == ()
        assert read_scan(case.flair, None, **read).notes == ("no T1 was given: the networks see the FLAIR alone",)
        assert any("look swapped" in note for note in read_scan(case.t1, case.flair, **read).notes)
        assert any("looks like a T1" in note for note in read_scan(case.t1, None, **read).notes)


def test_noise_is_measured_against_the_spread():
    rng = np.random.default_rng(0)
    brain = np.ones((4, 60, 60), bool)
    noise = rng.standard_normal(brain.shape)
    assert noise_share(noise, brain) == pytest.approx(1, abs=0.05)
    smooth = np.broadcast_to(np.linspace(-3, 3, 60), brain.shape)
    assert noise_share(smooth + 0.1 * noise, brain) == pytest.approx(0.1 / np.hypot(smooth.std(), 0.1), rel=0.1)
    assert np.isnan(noise_share(noise, np.eye(60, dtype=bool)[None].repeat(4, 0)))

"""A strip shows each mask under its title, and the case's reference beside them."""

import numpy as np
import pandas as pd
import pytest

from pdlib.report.scene import Scene
from pdlib.report.strips import Panel, outlines_figure, strips_figure
from pdlib.report.verdicts import VERDICTS, verdicts_figure


@pytest.fixture
def scene():
    flair = np.ones((2, 20, 16))
    reference = np.zeros((2, 20, 16))
    reference[1, 8:11, 6:9] = 1
    return Scene("a", flair + np.arange(16), reference, place=1, numbers=[3, 4], pixel_aspect=1.0, note="")


def test_panels_of_one_title_share_a_column(scene):
    mask = scene.reference
    whole, single = [Panel("jump", mask, "Dice 1"), Panel("4 steps", mask)], [Panel("4 steps", mask)]
    figure = strips_figure(scene, {"PD-DDPM": whole, "DDPM": single})
    titles = np.array([ax.get_title() for ax in figure.axes]).reshape(2, 3)
    assert titles.tolist() == [["FLAIR", "jump", "4 steps"], ["reference", "", "4 steps"]]
    assert figure.axes[1].get_xlabel() == "Dice 1"
    assert [figure.axes[i].get_ylabel() for i in (1, 4)] == ["PD-DDPM", "DDPM"]


def test_a_single_strip_has_its_reference_beside_it(scene):
    figure = strips_figure(scene, {"": [Panel("empty", 0 * scene.reference)]})
    assert [ax.get_title() for ax in figure.axes] == ["FLAIR", "reference", "empty"]


def test_outlines_go_round_each_class_that_is_there():
    masks = np.zeros((2, 12, 12))
    masks[0, 3:9, 3:9] = 1  # a disc, and no cup
    figure = outlines_figure([np.random.default_rng(0).random((3, 12, 12))], {"a method": [masks]}, ("disc", "cup"))
    assert [len(ax.collections) for ax in figure.axes] == [0, 1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["disc", "cup"]


def test_a_verdict_lies_on_its_side_of_the_bound():
    claims = pd.DataFrame(
        {
            "number": ["C1", "C2"],
            "claim": ["not worse", "more"],
            "estimate": [0.0, -0.4],
            "estimate_low": [-0.005, -0.5],
            "estimate_high": [0.005, -0.3],
            "verdict": ["holds", "does not hold"],
        }
    )
    ax = verdicts_figure(claims, [-0.01, 0.0]).axes[0]
    bars = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]]
    holds, fails = (line.get_xdata() for line in bars)
    assert min(holds) > 0 > max(fails)
    assert [line.get_color() for line in bars] == [VERDICTS["holds"], VERDICTS["does not hold"]]

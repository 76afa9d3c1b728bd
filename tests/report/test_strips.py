"""A strip shows each mask under its title, and the case's reference beside them."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from pdlib.report.scene import Scene
from pdlib.report.slices import REFERENCE
from pdlib.report.strips import OPINION, Panel, opinions_figure, outlines_figure, strips_figure
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


def test_a_longer_caption_makes_a_taller_figure(scene):
    short, long = (
        strips_figure(scene, {"": [Panel("a", scene.reference, text)]}) for text in ("Dice 1", "Dice 1\n2 calls")
    )
    assert long.get_figheight() > short.get_figheight()


def test_an_opinion_is_an_outline_in_the_reference_s_and_a_group_its_share(scene):
    """Two raters, of whom one marks half of what the other does; three members, of whom two find nothing."""
    half, nothing = scene.reference.copy(), 0 * scene.reference
    half[1, :, 7:] = 0
    raters = {"reference": scene.reference, "observer": half}
    members = {"member 1": half, "member 2": nothing, "member 3": nothing}
    figure = opinions_figure(scene, {"raters": raters, "PD-DDPM": members}, most=2)
    axes = np.array(figure.axes[:6]).reshape(2, 3)
    titles = [[ax.get_title() for ax in row] for row in axes]
    assert titles == [["reference", "observer", "share of 2"], ["member 1", "member 2", "share of 3"]]
    assert [row[0].get_ylabel() for row in axes] == ["raters", "PD-DDPM"]
    colours = [[to_hex(one.get_edgecolor()[0]).upper() for one in ax.collections] for ax in axes[:, :2].flat]
    assert colours == [[REFERENCE, OPINION]] * 3 + [[REFERENCE]], "an empty opinion has no outline"
    shares = [np.unique(row[-1].images[-1].get_array().compressed()).tolist() for row in axes]
    assert shares == [[0.5, 1.0], [pytest.approx(1 / 3)]], "what nobody marks shows FLAIR"


def test_a_group_with_fewer_opinions_leaves_places_empty(scene):
    one, two = {"a": scene.reference}, {"b": scene.reference, "c": scene.reference}
    figure = opinions_figure(scene, {"few": one, "more": two}, most=4)
    assert [len(ax.images) for ax in figure.axes[:6]] == [1, 0, 2, 1, 1, 2]


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
    ax = verdicts_figure(claims, [-0.01, 0.0], [0.01, -0.35]).axes[0]
    bars = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]]
    holds, fails = (line.get_xdata() for line in bars)
    assert min(holds) > 0 > max(fails)
    assert [line.get_color() for line in bars] == [VERDICTS["holds"], VERDICTS["does not hold"]]
    (tick,) = [line for line in ax.lines if line.get_marker() == "|"]
    assert tick.get_xdata()[0] == pytest.approx(0.02 / 0.005), "a bar that was moved to the edge has none"

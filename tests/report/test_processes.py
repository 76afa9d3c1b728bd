"""In Fig. 1 a state stands at its own time."""

import numpy as np
import pytest

from pdlib.report.processes import Process, processes_figure, spaced


def process(method, times, visited, preseg=None):
    states = {t: np.full((20, 16), t / 100) for t in times}
    calls = 4 * len(visited) + (preseg is not None)  # four members
    return Process(method, states, visited, preseg, dice=0.5, mean_dice=0.7, calls=calls)


@pytest.fixture
def drawn():
    flair, reference = np.ones((20, 16)), np.zeros((20, 16))
    reference[4:9, 4:9] = 1
    rows = [process("ddpm", (100, 60, 30, 0), range(1, 101)), process("pd_ddpm", (30, 0), (30, 1), reference)]
    return processes_figure(flair, reference, rows, pixel_aspect=1.0, note="phantom")


def test_states_of_both_rows_stand_on_one_true_axis(drawn):
    centres = {}
    for ax in drawn.axes:
        if ax.get_title().startswith("t = "):
            box = ax.get_position()
            centres.setdefault(int(ax.get_title()[4:]), []).append((box.x0 + box.x1) / 2)
    times = sorted(centres)
    assert times == [0, 30, 60, 100] and all(len(set(np.round(of, 9))) == 1 for of in centres.values())
    x = np.array([centres[t][0] for t in times])
    np.testing.assert_allclose((x[0] - x) / (x[0] - x[-1]), np.array(times) / 100, atol=1e-9)
    axis = drawn.axes[-1]
    ends = axis.get_position()
    assert axis.get_xlim() == (100, 0) and np.allclose((ends.x0, ends.x1), (x[-1], x[0]))


def test_all_states_have_one_grey_scale_and_skipped_steps_are_said(drawn):
    greys = {ax.images[0].get_clim() for ax in drawn.axes if ax.get_title().startswith("t = ")}
    assert greys == {(-0.25, 1.25)}
    words = [text.get_text() for text in (*drawn.axes[0].texts, *drawn.texts)]
    assert "70 of 100 steps skipped" in words and {"4 × 100 calls", "4 × 2 + 1 calls"} <= {*words}


def test_a_chain_without_an_end_is_refused():
    with pytest.raises(ValueError, match="its start and its end"):
        processes_figure(np.ones((9, 9)), np.ones((9, 9)), [process("ddpm", (5,), (5,))], pixel_aspect=1.0)


def test_as_many_states_are_shown_as_have_room():
    assert spaced([100, 75, 50, 25, 0], 13) == [100, 75, 50, 25, 0]
    assert spaced([100, 94, 88, 81, 75, 69, 63, 57, 51, 44, 38, 32, 26, 20, 13, 7, 0], 13) == [100, 81, 63, 38, 20, 0]
    assert spaced([30, 23, 15, 8, 0], 13) == [30, 15, 0] and spaced([6, 1, 0], 9) == [6, 0]

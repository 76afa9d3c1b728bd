"""Fig. 1: reverse chains on one true time axis, each with what it began with and what came of it.

Slices are [H, W] = [Y, X] in canonical orientation: anterior is up, the patient's left is on the left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pdlib.report.slices import _brain_box, _lesion_box, _show_image
from pdlib.report.style import DOUBLE, PaperFigure, method_colour, paper_style
from pdlib.report.titles import display_name

EDGE, SIDE, GAP, WORDS = 0.12, 0.17, 0.03, 0.84  # inches: left of all, beside the chain, between panels, at a row's end
MARGIN = 0.25  # of grey beyond a mask's 0 and 1, so that noise shows on both
LABEL, RUG, AXIS = 0.34, 0.13, 0.42  # above a row, below it, below the last


@dataclass(frozen=True)
class Process:
    """One row of Fig. 1.

    Args:
        method: a key of `methods.METHODS`.
        states: x_t [H, W] by paper time t, from the chain's start down to 0.
        visited: the paper times of its network calls.
        preseg: the mask {0, 1} that was diffused to the first state, [H, W]; None: it begins with noise.
        dice: volume Dice of the subject shown.
        mean_dice: that of all test subjects.
        calls: network calls a slice, those of all members and of the start included.
    """

    method: str
    states: Mapping[int, NDArray]
    visited: Sequence[int]
    preseg: NDArray | None
    dice: float
    mean_dice: float
    calls: float


@dataclass(frozen=True)
class _Frame:
    """Where things stand, in inches from the lower left corner: panels of one size, centred at their t."""

    steps: int
    rows: int
    width: float
    height: float
    length: float

    @classmethod
    def of(cls, processes: Sequence[Process], aspect: float) -> "_Frame":
        """As wide as two columns; the nearest states of a row just do not touch."""
        steps = max(max(process.states) for process in processes)
        nearest = min(a - b for process in processes for a, b in pairwise(process.states)) / steps
        room = DOUBLE - WORDS - EDGE - 2 * SIDE
        width = min((room - GAP / nearest) / (3 + 1 / nearest), 0.8)
        return cls(steps, len(processes), width, width * aspect, room - 3 * width)

    @property
    def total(self) -> float:
        """The height of the figure."""
        return self.rows * (LABEL + self.height + RUG) + AXIS + 0.12

    def x(self, t: float) -> float:
        """The centre of a panel."""
        return EDGE + 1.5 * self.width + SIDE + self.length * (1 - t / self.steps)

    def y(self, row: int) -> float:
        """The lower edge of a row's panels."""
        return AXIS + RUG + (self.rows - 1 - row) * (LABEL + self.height + RUG)

    def axes(self, figure: PaperFigure, left: float, bottom: float, width: float, height: float) -> Axes:
        return figure.add_axes((left / DOUBLE, bottom / self.total, width / DOUBLE, height / self.total))

    def panel(self, figure: PaperFigure, centre: float, row: int, title: str) -> Axes:
        ax = self.axes(figure, centre - self.width / 2, self.y(row), self.width, self.height)
        ax.set_axis_off()
        ax.set_title(title, fontsize=6, pad=2)
        return ax


@paper_style
def processes_figure(
    flair: NDArray, reference: NDArray, processes: Sequence[Process], *, pixel_aspect: float
) -> PaperFigure:
    """Fig. 1: a chain a row, each state centred at its t, which runs from the earliest start down to 0 on the right.

    Left of a chain stands what it is given, at its end the reference {0, 1} [H, W] with Dice and calls. A mark below a
    row is a network call; what lies before the start of a chain is skipped, and grey. All states have one grey scale.
    ValueError: a chain of fewer than two states.
    """
    if any(len(process.states) < 2 for process in processes):
        raise ValueError("processes_figure: a chain needs its start and its end")
    box = _lesion_box(reference, _brain_box(flair))
    height, width = (side.stop - side.start for side in box)
    frame = _Frame.of(processes, pixel_aspect * height / width)
    figure = PaperFigure(figsize=(DOUBLE, frame.total))
    figure.set_layout_engine("none")
    back = frame.axes(figure, 0, 0, DOUBLE, frame.total)
    back.set(xlim=(0, DOUBLE), ylim=(0, frame.total))
    back.set_axis_off()
    ends = np.concatenate([process.states[min(process.states)].ravel() for process in processes])
    clean = (round(float(ends.min())), max(round(float(ends.max())), round(float(ends.min())) + 1))
    for row, process in enumerate(processes):
        _draw_row(figure, frame, row, process, clean, box)
        _show_ends(figure, frame, row, process, flair[box], reference[box])
        _mark_calls(back, frame, row, process)
    _time_axis(figure, frame)
    return figure


def spaced(times: Sequence[int], least: float) -> list[int]:
    """As many of falling times as can be taken about evenly, both ends among them, with no two nearer than least."""
    for parts in range(len(times) - 1, 0, -1):
        wanted = np.linspace(times[0], times[-1], parts + 1)
        found = [min(times, key=lambda t, one=one: abs(t - one)) for one in wanted]
        if min(-np.diff(found)) >= least:
            return found
    return [times[0], times[-1]]


def _draw_row(
    figure: PaperFigure, frame: _Frame, row: int, process: Process, clean: tuple[int, int], box: tuple[slice, slice]
) -> None:
    """The states of a chain, each at its t. clean: what a mask's 0 and 1 are in the chain."""
    margin = MARGIN * (clean[1] - clean[0])
    for t, x_t in process.states.items():
        ax = frame.panel(figure, frame.x(t), row, f"t = {t}")
        ax.imshow(x_t[box], cmap="gray", vmin=clean[0] - margin, vmax=clean[1] + margin, aspect="auto")
    if process.preseg is not None:
        ax = frame.panel(figure, EDGE + frame.width / 2, row, "")
        ax.set_title("pre-segmentation", fontsize=6, pad=2, loc="left")  # wider than its panel
        ax.imshow(process.preseg[box], cmap="gray", vmin=-MARGIN, vmax=1 + MARGIN, aspect="auto")


def _show_ends(
    figure: PaperFigure, frame: _Frame, row: int, process: Process, flair: NDArray, reference: NDArray
) -> None:
    """The image where no pre-segmentation stands, the reference, and the row's score and cost."""
    if process.preseg is None:
        _show_image(frame.panel(figure, EDGE + frame.width / 2, row, "FLAIR"), flair, "auto")
    right = frame.x(0) + frame.width + SIDE
    ax = frame.panel(figure, right, row, "reference")
    ax.imshow(reference, cmap="gray", vmin=-MARGIN, vmax=1 + MARGIN, aspect="auto")
    edge, middle = right + frame.width / 2 + 0.07, frame.y(row) + frame.height / 2
    words = {"x": edge / DOUBLE, "ha": "left", "va": "center"}
    visited, begun = len(process.visited), process.preseg is not None
    spent = f"{(process.calls - begun) / visited:g} × {visited}{' + 1' * begun} calls"  # members, levels, and the start
    lines = (f"Dice {process.dice:.2f}", f"mean {process.mean_dice:.2f}", spent)
    for line, (up, look) in zip(lines, ((0.15, {"weight": "bold"}), (0, {"color": "0.35"}), (-0.15, {})), strict=True):
        size = {"fontsize": 8 if "weight" in look else 7, "color": method_colour(process.method)}
        figure.text(y=(middle + up) / frame.total, s=line, **words | size | look)


def _mark_calls(back: Axes, frame: _Frame, row: int, process: Process) -> None:
    """A row's name, a mark for each call, and in grey the steps that its chain leaves out at the beginning."""
    colour, low, start = method_colour(process.method), frame.y(row), max(process.states)
    top, middle = low + frame.height + LABEL - 0.06, low + frame.height / 2
    back.text(EDGE, top, display_name(process.method), color=colour, weight="bold", va="top")
    back.plot([frame.x(start), frame.x(0)], [low - 0.06] * 2, color=colour, linewidth=0.6)
    back.vlines([frame.x(t) for t in process.visited], low - 0.1, low - 0.02, color=colour, linewidth=0.8)
    if start == frame.steps:
        return
    left, right = frame.x(frame.steps) - frame.width / 2, frame.x(start) - frame.width / 2
    back.fill_between([left, right - 0.02], low - 0.1, low + frame.height, color="0.92", linewidth=0)
    words = {"x": (left + right) / 2, "ha": "center", "fontsize": 7}
    back.text(y=middle + 0.06, s=f"noise is added at once, to $t$ = $T'$ = {start}", va="bottom", **words)
    skipped = f"{frame.steps - start} of {frame.steps} steps skipped"
    back.text(y=middle - 0.06, s=skipped, va="top", color="0.35", **words)
    arrow = {"arrowstyle": "-|>", "linestyle": (0, (3, 1.5)), "color": colour, "shrinkA": 0, "shrinkB": 0}
    ends = {"xy": (right, middle), "xytext": (EDGE + frame.width + 0.03, middle)}
    back.annotate("", **ends, arrowprops=arrow | {"mutation_scale": 8})


def _time_axis(figure: PaperFigure, frame: _Frame) -> None:
    ax = frame.axes(figure, frame.x(frame.steps), AXIS - 0.04, frame.length, 0.001)
    ax.set(xlim=(frame.steps, 0), yticks=[])
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(f"$t$ of $T$ = {frame.steps}: noise on the left, the mask on the right; a mark is a network call")

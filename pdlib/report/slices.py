"""Slices in, pictures out: the chain's states (Fig. 1), masks side by side (Fig. 2), a subject at a glance.

Slices are [H, W] = [Y, X] in canonical orientation: anterior is up, the patient's left is on the left.
Every figure takes a `note` that is printed in its corner, such as "phantom": no picture may pass for another's data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pdlib.report.style import DOUBLE, EXTRA, HIT, MISSED, PaperFigure, paper_style
from pdlib.report.titles import display_name

Box = tuple[slice, slice]


class State(NamedTuple):
    """One panel of Fig. 1: what stands above it, x_t [H, W], and whether noise (forward) or the network led to it."""

    title: str
    x_t: NDArray
    forward: bool = False


@dataclass(frozen=True)
class Example:
    """One row of Fig. 2, slices [H, W]: two images, the reference {0, 1}, predictions {0, 1} by method, variance.

    dice holds the subject's volume Dice by method; pixel_aspect is a pixel's height over its width.
    """

    subject: str
    flair: NDArray
    t1: NDArray
    reference: NDArray
    predictions: Mapping[str, NDArray]
    variance: NDArray
    dice: Mapping[str, float]
    pixel_aspect: float

    @property
    def box(self) -> Box:
        """The part that is shown."""
        return _brain_box(self.flair)


@paper_style
def processes_figure(flair: NDArray, chains: Mapping[str, Sequence[State]]) -> PaperFigure:
    """Fig. 1: reverse chains side by side, one a row; the image they see stands at the left, the mask at the right.

    flair [H, W]; chains: row title -> the states visited, in order. Rows end in the same column. A dashed arrow is the
    forward process (noise is added), a solid one the reverse process (the network removes it).
    """
    columns = 1 + max(len(states) for states in chains.values())
    box = _brain_box(flair)
    height, width = (side.stop - side.start for side in box)
    panel = DOUBLE / (columns + 0.25 * (columns - 1))
    figure = PaperFigure(figsize=(DOUBLE, len(chains) * (panel * height / width + 0.42) + 0.25))
    axes = figure.subplots(len(chains), columns, squeeze=False)
    figure.get_layout_engine().set(wspace=0.18)
    for row, (title, states) in zip(axes, chains.items(), strict=True):
        for ax in row:
            ax.set_axis_off()
        _show_image(row[0], flair[box])
        row[0].set_title(title, weight="bold")
        last = None
        for ax, state in zip(row[columns - len(states) :], states, strict=True):
            low, high = min(0, np.percentile(state.x_t, 1)), max(1, np.percentile(state.x_t, 99))
            ax.imshow(state.x_t[box], cmap="gray", vmin=low, vmax=high)
            ax.set_title(state.title)
            if last is not None:
                _arrow(last, ax, state.forward)
            last = ax
    return figure


@paper_style
def pictures_figure(
    pictures: Mapping[str, NDArray] | Sequence[Mapping[str, NDArray]], *, limits: tuple[float, float] = (0, 1)
) -> PaperFigure:
    """Slices side by side, each below its title: {title: [H, W]}, or several of them, one a row.

    limits: the values that are black and white, of all pictures.
    """
    lines = [pictures] if isinstance(pictures, Mapping) else list(pictures)
    columns = max(len(line) for line in lines)
    first = next(iter(lines[0].values()))
    panel = DOUBLE / columns
    figure = PaperFigure(figsize=(DOUBLE, len(lines) * (panel * first.shape[0] / first.shape[1] + 0.2)))
    for row, line in zip(figure.subplots(len(lines), columns, squeeze=False), lines, strict=True):
        for ax in row:
            ax.set_axis_off()
        for ax, (title, picture) in zip(row, line.items(), strict=False):
            ax.imshow(picture, cmap="gray", vmin=limits[0], vmax=limits[1])
            ax.set_title(title)
    return figure


@paper_style
def examples_figure(examples: Sequence[Example]) -> PaperFigure:
    """Fig. 2: test images in rows; images, reference, predictions and the variance between members in columns.

    In the predictions a voxel is a hit, extra or missed against the reference. The variance has one scale for all rows.
    """
    titles = ["FLAIR", "T1", "Reference", *(display_name(method) for method in examples[0].predictions), "Variance"]
    shapes = [[side.stop - side.start for side in example.box] for example in examples]
    ratios = [height * one.pixel_aspect / width for (height, width), one in zip(shapes, examples, strict=True)]
    panel = (DOUBLE - 0.55) / len(titles)
    figure = PaperFigure(figsize=(DOUBLE, panel * sum(ratios) + 0.16 * len(examples) + 0.75))
    axes = figure.subplots(len(examples), len(titles), squeeze=False, gridspec_kw={"height_ratios": ratios})
    figure.get_layout_engine().set(wspace=0.01, hspace=0.01, w_pad=0.01, h_pad=0.02)
    highest = max(float(np.max(example.variance)) for example in examples) or 1.0
    for row, example in zip(axes, examples, strict=True):
        _show_example(row[:-1], example)
        variance, aspect = example.variance[example.box], example.pixel_aspect
        shown = row[-1].imshow(variance, cmap="inferno", vmin=0, vmax=highest, aspect=aspect)
        _bare(row[-1])
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=7)
    figure.colorbar(shown, ax=axes[:, -1], fraction=0.08, pad=0.04, aspect=40, label="Variance over members")
    figure.legend(handles=_overlay_patches(), loc="outside lower center", ncols=3)
    return figure


@paper_style
def overlay_figure(
    image: NDArray,
    reference: NDArray | None,
    mask: NDArray,
    variance: NDArray,
    *,
    spacing_mm: Sequence[float],
    columns: int,
) -> PaperFigure:
    """A subject at a glance: the `columns` slices with most predicted lesion, with FLAIR, mask and members' variance.

    image [2, Z, Y, X] (FLAIR, T1); reference (or None), mask, variance [Z, Y, X]; spacing_mm (z, y, x). Without a
    reference the prediction is drawn in the colour of a hit.
    """
    slices = np.sort(np.lexsort([(part != 0).sum((1, 2)) for part in (image[0], mask)])[-columns:])
    box = _brain_box(np.abs(image[0]).max(0))
    height, width = (side.stop - side.start for side in box)
    aspect = spacing_mm[1] / spacing_mm[2]
    figure = PaperFigure(figsize=(DOUBLE, 3 * (DOUBLE - 0.6) / columns * height * aspect / width + 0.65))
    axes = figure.subplots(3, len(slices), squeeze=False)
    figure.get_layout_engine().set(wspace=0.01, hspace=0.01, w_pad=0.01, h_pad=0.02)
    highest = float(np.max(variance)) or 1.0
    truth = mask != 0 if reference is None else reference
    for z, (top, middle, bottom) in zip(slices, axes.T, strict=True):
        _show_image(top, image[0, z][box], aspect)
        _show_overlay(middle, image[0, z][box], mask[z][box], truth[z][box], aspect)
        top.set_title(f"slice {z + 1}", fontsize=7)
        shown = bottom.imshow(variance[z][box], cmap="inferno", vmin=0, vmax=highest, aspect=aspect)
        for ax in (top, middle, bottom):
            _bare(ax)
    for ax, title in zip(axes[:, 0], ("FLAIR", "mask", "variance"), strict=True):
        ax.set_ylabel(title, fontsize=7)
    figure.colorbar(shown, ax=axes[2], fraction=0.02, pad=0.01)
    patches = [Patch(color=HIT, label="prediction")] if reference is None else _overlay_patches()
    figure.legend(handles=patches, loc="outside lower center", ncols=3)
    return figure


def _arrow(last: Axes, ax: Axes, forward: bool) -> None:
    style = {"arrowstyle": "-|>", "color": "C1" if forward else "C0", "shrinkA": 1, "shrinkB": 1}
    style |= {"linestyle": (0, (2, 1.2)) if forward else "-", "mutation_scale": 6}
    places = {"xycoords": ax.transAxes, "textcoords": last.transAxes}
    ax.annotate("", xy=(0, 0.5), xytext=(1, 0.5), arrowprops=style, **places)


def _show_example(row: Sequence[Axes], example: Example) -> None:
    """The images, the reference and the predictions of one row of Fig. 2, each prediction with its Dice."""
    box, aspect = example.box, example.pixel_aspect
    flair, reference = example.flair[box], example.reference[box]
    for ax, image in zip(row[:2], (example.flair, example.t1), strict=True):
        _show_image(ax, image[box], aspect)
    _show_overlay(row[2], flair, reference, reference, aspect)
    for ax, (method, mask) in zip(row[3:], example.predictions.items(), strict=True):
        _show_overlay(ax, flair, mask[box], reference, aspect)
        if method in example.dice:
            ax.set_xlabel(f"{example.dice[method]:.3f}", labelpad=2, fontsize=7)
    row[0].set_ylabel("/".join(example.subject.split("/")[-2:]), labelpad=2, fontsize=7)
    row[2].set_xlabel("Dice", labelpad=2, fontsize=7)
    for ax in row:
        _bare(ax)


def _brain_box(flair: NDArray) -> Box:
    """The rows and columns of a slice that hold brain (the background is zero), with two pixels of margin."""
    inside = np.argwhere(flair != 0)
    if len(inside) == 0:
        return slice(0, flair.shape[0]), slice(0, flair.shape[1])
    (y0, x0), (y1, x1) = inside.min(0), inside.max(0)
    return slice(max(y0 - 2, 0), y1 + 3), slice(max(x0 - 2, 0), x1 + 3)


def _show_image(ax: Axes, image: NDArray, aspect: float = 1.0) -> None:
    inside = image[image != 0] if image.any() else image
    low, high = np.percentile(inside, (0.5, 99.8))
    ax.imshow(np.where(image == 0, low, image), cmap="gray", vmin=low, vmax=high, aspect=aspect)


def _show_overlay(ax: Axes, flair: NDArray, mask: NDArray, reference: NDArray, aspect: float) -> None:
    _show_image(ax, flair, aspect)
    mask, reference = mask != 0, reference == 1
    for colour, where in ((HIT, mask & reference), (EXTRA, mask & ~reference), (MISSED, ~mask & reference)):
        paint = np.zeros((*mask.shape, 4))
        paint[where] = to_rgba(colour)
        ax.imshow(paint, aspect=aspect)


def _overlay_patches() -> list[Patch]:
    return [Patch(color=HIT, label="hit"), Patch(color=EXTRA, label="extra"), Patch(color=MISSED, label="missed")]


def _bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)

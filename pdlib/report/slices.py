"""Slices in, pictures out: masks around lesions (Fig. 2), a subject at a glance, slices side by side.

Slices are [H, W] = [Y, X] in canonical orientation: anterior is up, the patient's left is on the left.
Every figure takes a `note` that is printed in its corner, such as "phantom": no picture may pass for another's data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from scipy import ndimage

from pdlib.report.style import DOUBLE, EXTRA, HIT, MISSED, PaperFigure, paper_style
from pdlib.report.titles import display_name

Box = tuple[slice, slice]
REFERENCE, PREDICTION = "#0072B2", "#D55E00"  # of outlines: blue and vermilion, on grey
ZOOM_MARGIN, ZOOM_LEAST = 3, 24  # pixels about the largest lesion, and what is shown at least
FINE = 8  # points a pixel along an outline
HEAT_FROM = 0.02  # of the highest variance: what is less shows the image


@dataclass(frozen=True)
class Example:
    """One row of Fig. 2, slices [H, W]: FLAIR, the reference {0, 1}, predictions {0, 1} by method, and the variance
    between the members of the last of these.

    dice holds the subject's volume Dice by method; pixel_aspect is a pixel's height over its width.
    """

    subject: str
    flair: NDArray
    reference: NDArray
    predictions: Mapping[str, NDArray]
    variance: NDArray
    dice: Mapping[str, float]
    pixel_aspect: float

    @property
    def box(self) -> Box:
        """The brain."""
        return _brain_box(self.flair)

    @property
    def zoom(self) -> Box:
        """A square, in millimetres, about the largest lesion of the slice, or about the brain's centre."""
        parts, count = ndimage.label(self.reference == 1, np.ones((3, 3)))
        sizes = np.bincount(parts.ravel(), minlength=2)[1:]
        sides = ndimage.find_objects(parts)[sizes.argmax()] if count else self.box
        heights = (1.0, 1 / self.pixel_aspect)  # of a pixel's height, in units of its width
        reach = max((side.stop - side.start) / one for side, one in zip(sides, heights[::-1], strict=True))
        half = max(0.5 * reach + ZOOM_MARGIN, ZOOM_LEAST / 2)
        found = []
        for side, most, scale in zip(sides, self.flair.shape, (1 / self.pixel_aspect, 1.0), strict=True):
            middle, length = (side.start + side.stop) / 2, min(round(2 * half * scale), most)
            start = int(np.clip(round(middle - length / 2), 0, most - length))
            found.append(slice(start, start + length))
        return found[0], found[1]


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
    title_lines = 1 + max(title.count("\n") for line in lines for title in line)
    tall = DOUBLE / columns * first.shape[0] / first.shape[1] + 0.05 + 0.15 * title_lines
    figure = PaperFigure(figsize=(DOUBLE, len(lines) * tall))
    for row, line in zip(figure.subplots(len(lines), columns, squeeze=False), lines, strict=True):
        for ax in row:
            ax.set_axis_off()
        for ax, (title, picture) in zip(row, line.items(), strict=False):
            ax.imshow(picture, cmap="gray", vmin=limits[0], vmax=limits[1])
            ax.set_title(title)
    return figure


@paper_style
def examples_figure(examples: Sequence[Example]) -> PaperFigure:
    """Fig. 2: test images in rows. First the slice, then about its largest lesion: the reference, each prediction with
    the reference around it, and the variance between the last one's members, on FLAIR.

    Below a prediction stands the Dice of the subject's whole volume. The variance has one scale for all rows.
    """
    titles = ["FLAIR", "Reference", *(display_name(method) for method in examples[0].predictions), "Variance"]
    panel = (DOUBLE - 0.6) / len(titles)
    figure = PaperFigure(figsize=(DOUBLE, (panel + 0.1) * len(examples) + 0.5))
    axes = figure.subplots(len(examples), len(titles), squeeze=False)
    figure.get_layout_engine().set(wspace=0.01, hspace=0.01, w_pad=0.01, h_pad=0.02)
    highest = max(float(np.max(example.variance[example.zoom])) for example in examples) or 1.0
    for row, example in zip(axes, examples, strict=True):
        _show_example(row[:-1], example)
        zoom, aspect = example.zoom, example.pixel_aspect
        _show_image(row[-1], example.flair[zoom], aspect)
        variance = example.variance[zoom]
        heat = np.ma.masked_less(variance, HEAT_FROM * highest)
        shown = row[-1].imshow(heat, cmap="plasma", vmin=0, vmax=highest, aspect=aspect)
        _outline(row[-1], example.reference[zoom] == 1, REFERENCE, 0.7)
        for ax in row:
            _bare(ax)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=7)
    figure.colorbar(shown, ax=axes[:, -1], fraction=0.08, pad=0.04, aspect=40, label="Variance over members")
    lines = {"reference": REFERENCE, "prediction": PREDICTION}
    handles = [Line2D([], [], color=colour, label=name) for name, colour in lines.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
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


def _show_example(row: Sequence[Axes], example: Example) -> None:
    """The slice with its cut-out, the reference and the predictions of one row of Fig. 2, each with its volume Dice."""
    box, zoom, aspect = example.box, example.zoom, example.pixel_aspect
    reference = example.reference[zoom] == 1
    _show_image(row[0], example.flair[box], aspect)
    corner = [part.start - whole.start - 0.5 for part, whole in zip(zoom, box, strict=True)][::-1]
    sides = [part.stop - part.start for part in zoom][::-1]
    row[0].add_patch(Rectangle(corner, *sides, fill=False, edgecolor="w", linewidth=0.8))
    for ax in row[1:]:
        _show_image(ax, example.flair[zoom], aspect)
        _outline(ax, reference, REFERENCE, 1.5)
    for ax, (method, mask) in zip(row[2:], example.predictions.items(), strict=True):
        _outline(ax, mask[zoom] != 0, PREDICTION, 0.8)
        if method in example.dice:
            ax.set_xlabel(f"{example.dice[method]:.3f}", labelpad=2, fontsize=7)
    row[0].set_ylabel("/".join(example.subject.split("/")[-2:]), labelpad=2, fontsize=7)
    row[1].set_xlabel("volume Dice", labelpad=2, fontsize=7)


def _outline(ax: Axes, mask: NDArray, colour: str, width: float) -> None:
    """The edge of a mask [H, W], along the pixels' own edges."""
    if not mask.any():
        return
    height, across = mask.shape
    fine = np.pad(np.kron(mask, np.ones((FINE, FINE))), FINE)  # a border of one pixel closes what touches the edge
    y, x = ((np.arange((n + 2) * FINE) + 0.5) / FINE - 1.5 for n in (height, across))
    ax.contour(x, y, fine, levels=[0.5], colors=colour, linewidths=width)
    ax.set(xlim=(-0.5, across - 0.5), ylim=(-0.5, height - 0.5))


def _brain_box(flair: NDArray) -> Box:
    """The rows and columns of a slice that hold brain (the background is zero), with two pixels of margin."""
    inside = np.argwhere(flair != 0)
    if len(inside) == 0:
        return slice(0, flair.shape[0]), slice(0, flair.shape[1])
    (y0, x0), (y1, x1) = inside.min(0), inside.max(0)
    return slice(max(y0 - 2, 0), y1 + 3), slice(max(x0 - 2, 0), x1 + 3)


def _lesion_box(mask: NDArray, brain: Box) -> Box:
    """The part of a brain's box about all lesions of a mask, with a margin: at least half of it each way."""
    found = []
    for whole, along in zip(brain, ((mask == 1).any(1), (mask == 1).any(0)), strict=True):
        inside = np.flatnonzero(along)
        first, last = (inside[0], inside[-1] + 1) if len(inside) else (whole.start, whole.stop)
        length = min(max(last - first + 2 * ZOOM_MARGIN, (whole.stop - whole.start) // 2), whole.stop - whole.start)
        start = int(np.clip((first + last - length) // 2, whole.start, whole.stop - length))
        found.append(slice(start, start + length))
    return found[0], found[1]


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

"""One case's masks in strips, a column for each start, number of calls or method; several opinions on one slice, in
outlines; photographs with theirs.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pdlib.report.scene import Scene
from pdlib.report.slices import REFERENCE, Box, _bare, _outline, _overlay_patches, _show_image, _show_overlay
from pdlib.report.style import DOUBLE, PaperFigure, paper_style

MARGIN = 0.08  # about the lesions, in parts of the slice
LEAST = 0.4  # of the slice that is shown, in each direction
OUTLINES = ("#F0E442", "#0072B2")  # of a photograph's classes, optic disc and cup
OPINION = "#F0E442"  # of an outline beside the reference's
OPINION_SIDE = 1.25  # inches of a panel with one, at most
LINE = 0.14  # inches of a line of text


class Panel(NamedTuple):
    """A mask of a scene, [N, H, W] in {0, 1}, with what stands above it and below it."""

    title: str
    mask: NDArray
    caption: str = ""


@paper_style
def strips_figure(scene: Scene, strips: Mapping[str, Sequence[Panel]]) -> PaperFigure:
    """Masks over FLAIR on the slice with most lesion, near the lesions: a strip for each title, below one another.

    Panels of one title stand in one column. A voxel is a hit, extra or missed against the reference. FLAIR stands at
    the left of the first strip and the reference at the left of the second, or beside it where there is one alone.
    """
    titles = list(dict.fromkeys(panel.title for panels in strips.values() for panel in panels))
    first = 1 + (len(strips) == 1)
    box = _lesion_box(scene, [panel.mask for panels in strips.values() for panel in panels])
    height, width = (side.stop - side.start for side in box)
    tall = (DOUBLE - 0.3) / (first + len(titles)) * height * scene.pixel_aspect / width
    captions = [panel.caption for panels in strips.values() for panel in panels]
    lines = sum(1 + max(text.count("\n") for text in texts) for texts in (titles, captions))
    figure = PaperFigure(figsize=(DOUBLE, len(strips) * (tall + LINE * lines) + 0.4))
    axes = figure.subplots(len(strips), first + len(titles), squeeze=False)
    figure.get_layout_engine().set(wspace=0.02, hspace=0.04, w_pad=0.01, h_pad=0.02)
    for ax in axes.flat:
        _bare(ax)
    flair, reference = (array[scene.place][box] for array in (scene.flair, scene.reference))
    for row, (title, panels) in zip(axes, strips.items(), strict=True):
        for panel in panels:
            ax = row[first + titles.index(panel.title)]
            _show_overlay(ax, flair, panel.mask[scene.place][box], reference, scene.pixel_aspect)
            ax.set_title(panel.title)
            ax.set_xlabel(panel.caption, labelpad=2, fontsize=7)
        row[first].set_ylabel(title, labelpad=3, fontsize=8, weight="bold")
    _show_image(axes.flat[0], flair, scene.pixel_aspect)
    axes.flat[0].set_title("FLAIR")
    truth = axes[0, 1] if first == 2 else axes[1, 0]
    _show_overlay(truth, flair, reference, reference, scene.pixel_aspect)
    truth.set_title("reference")
    figure.legend(handles=_overlay_patches(), loc="outside lower center", ncols=3)
    return figure


@paper_style
def opinions_figure(scene: Scene, groups: Mapping[str, Mapping[str, NDArray]], *, most: int) -> PaperFigure:
    """Several opinions on the slice with most lesion, near the lesions: a strip for each group, with the first `most`
    of its masks, and at the right the share of the whole group that marks a voxel.

    groups: by title, masks [N, H, W] in {0, 1} by title. An opinion is an outline, and the reference another below it.
    """
    shown = min(most, max(len(group) for group in groups.values()))
    box = _lesion_box(scene, [mask for group in groups.values() for mask in group.values()])
    height, width = (side.stop - side.start for side in box)
    side = min((DOUBLE - 1.0) / (shown + 1), OPINION_SIDE)
    tall = side * height * scene.pixel_aspect / width
    figure = PaperFigure(figsize=(1.0 + (shown + 1) * side, len(groups) * (tall + LINE) + 0.4))
    axes = figure.subplots(len(groups), shown + 1, squeeze=False)
    figure.get_layout_engine().set(wspace=0.02, hspace=0.02, w_pad=0.01, h_pad=0.02)
    for row, (title, group) in zip(axes, groups.items(), strict=True):
        heat = _show_opinions(row, scene, box, group)
        row[0].set_ylabel(title, labelpad=3, fontsize=8, weight="bold")
    figure.colorbar(heat, ax=axes[:, -1], fraction=0.08, pad=0.04, aspect=30)
    lines = {"reference": REFERENCE, "this opinion": OPINION}
    handles = [Line2D([], [], color=colour, label=name) for name, colour in lines.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@paper_style
def outlines_figure(
    photographs: Sequence[NDArray], outlines: Mapping[str, Sequence[NDArray]], classes: Sequence[str]
) -> PaperFigure:
    """Photographs in rows, [3, H, W] each, and on them outlines of masks [C, H, W], a column for each title.

    A photograph may have any units: it is drawn from its first percentile to its last. classes: names of the C masks.
    """
    titles, panel = ["photograph", *outlines], DOUBLE / (1 + len(outlines))
    figure = PaperFigure(figsize=(DOUBLE, len(photographs) * panel + 0.5))
    axes = figure.subplots(len(photographs), len(titles), squeeze=False)
    figure.get_layout_engine().set(wspace=0.02, hspace=0.02, w_pad=0.01, h_pad=0.02)
    for number, (row, photograph) in enumerate(zip(axes, photographs, strict=True)):
        low, high = np.percentile(photograph, (1, 99))
        for ax in row:
            ax.imshow(np.clip((photograph.transpose(1, 2, 0) - low) / (high - low), 0, 1))
            _bare(ax)
        for ax, masks in zip(row[1:], outlines.values(), strict=True):
            _outline_classes(ax, masks[number])
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title)
    lines = [Line2D([], [], color=colour, label=name) for colour, name in zip(OUTLINES, classes, strict=True)]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    return figure


def _show_opinions(row: Sequence[Axes], scene: Scene, box: Box, group: Mapping[str, NDArray]) -> AxesImage:
    """A group's first masks, one an axis, and on the last axis the share of all of them."""
    flair, reference = (array[scene.place][box] for array in (scene.flair, scene.reference))
    masks = {name: mask[scene.place][box] != 0 for name, mask in group.items()}
    for ax in row:
        _bare(ax)
    for ax, (name, mask) in zip(row[:-1], masks.items(), strict=False):
        _show_image(ax, flair, scene.pixel_aspect)
        _outline(ax, reference == 1, REFERENCE, 1.6)
        _outline(ax, mask, OPINION, 0.8)
        ax.set_title(name, fontsize=7)
    _show_image(row[-1], flair, scene.pixel_aspect)
    row[-1].set_title(f"share of {len(masks)}", fontsize=7)
    share = np.ma.masked_equal(np.mean(list(masks.values()), axis=0), 0)
    return row[-1].imshow(share, cmap="plasma", vmin=0, vmax=1, aspect=scene.pixel_aspect)


def _outline_classes(ax: Axes, masks: NDArray) -> None:
    for colour, mask in zip(OUTLINES, masks, strict=True):
        if mask.any() and not mask.all():
            ax.contour(mask, levels=[0.5], colors=colour, linewidths=1)


def _lesion_box(scene: Scene, masks: Sequence[NDArray]) -> Box:
    """The rows and columns about all that is marked on the slice with most lesion, within the brain's."""
    marked = np.any([array[scene.place] != 0 for array in (scene.reference, *masks)], axis=0)
    found = np.argwhere(marked) if marked.any() else np.argwhere(np.ones_like(marked))
    sides = []
    for low, high, side in zip(found.min(axis=0), found.max(axis=0), scene.box, strict=True):
        whole = side.stop - side.start
        missing = max(LEAST * whole - (high - low), 0) / 2
        reach = round(MARGIN * whole + missing)
        sides.append(slice(max(low - reach, side.start), min(high + reach + 1, side.stop)))
    return tuple(sides)

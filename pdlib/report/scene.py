"""What a slider looks at: a case as networks see it, what chains and methods make of it, and how a frame is laid out.

A frame has a fixed size and fixed axes, so that moving a slider changes what is in the picture and nothing else, and so
that it is drawn quickly. Slices are [H, W] of a `Scene`.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image

from pdlib.report.slices import _bare, _brain_box, _overlay_patches
from pdlib.report.style import DOUBLE, PaperFigure

DPI = 110  # of a frame: enough for a screen, and quick


@dataclass(frozen=True)
class Scene:
    """A case as networks see it: the slices that hold brain, cut to the brain's window.

    Args:
        subject: its name.
        flair: [N, H, W], zero outside the brain.
        reference: [N, H, W] in {0, 1}.
        place: the slice with most lesion, an index along N.
        numbers: [N] of the slices in the volume.
        pixel_aspect: a pixel's height over its width.
        note: what stands in the corner of each picture, such as "phantom".
    """

    subject: str
    flair: NDArray
    reference: NDArray
    place: int
    numbers: Sequence[int]
    pixel_aspect: float
    note: str

    @property
    def box(self) -> tuple[slice, slice]:
        """The rows and columns that are shown, the same of all slices."""
        return _brain_box(np.abs(self.flair).max(axis=0))

    def cut(self, array: NDArray) -> NDArray:
        """What is shown of the slice with most lesion: [N, H, W] or [H, W] -> [h, w]."""
        return (array[self.place] if array.ndim == 3 else array)[self.box]


class Diffused(NamedTuple):
    """Two masks [H, W] diffused to paper time t with the same noise: x_t = signal mask + sigma noise."""

    t: int
    signal: float
    sigma: float
    reference: NDArray
    preseg: NDArray


class Call(NamedTuple):
    """A network call of a chain at paper time t: the state it sees and the x_start it predicts, [H, W] each."""

    t: int
    x_t: NDArray
    x_start: NDArray


class Result(NamedTuple):
    """What a method makes of a scene: members [E, N, H, W] in 0..1, and with them combined mean, variance and mask.

    method is a key of METHODS, dice that of the volume; calls (on a slice) and seconds are those of all members.
    """

    method: str
    t_prime: int | None
    members: NDArray
    mean: NDArray
    variance: NDArray
    mask: NDArray
    dice: float
    calls: int
    seconds: float


class Trial(NamedTuple):
    """An op computed twice from the same inputs, by its reference and as `kernels.ops` chooses.

    Two results [H, W], with the milliseconds of each.
    """

    reference: NDArray
    chosen: NDArray
    reference_ms: float
    chosen_ms: float


def png(figure: PaperFigure) -> bytes:
    """A figure as the bytes of a PNG."""
    return figure._repr_png_()


def sheet(pictures: Sequence[bytes]) -> bytes:
    """PNGs of one width, one below the other, as one PNG: what stands for a slider where nothing can be moved."""
    images = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    whole = Image.new("RGB", (max(one.width for one in images), sum(one.height for one in images)), "white")
    top = 0
    for one in images:
        whole.paste(one, (0, top))
        top += one.height
    stream = io.BytesIO()
    whole.save(stream, format="png")
    return stream.getvalue()


def panels(scene: Scene, titles: Sequence[str], wide: int = 0) -> tuple[PaperFigure, NDArray]:
    """A figure of three panels of a scene's shape; the last `wide` of them have axes of their own."""
    height, width = scene.cut(scene.flair).shape
    tall = min((DOUBLE / len(titles)) * height * scene.pixel_aspect / width, 2.6)
    figure = PaperFigure(figsize=(DOUBLE, tall + 0.75), dpi=DPI, layout="none")
    edges = {"left": 0.01, "right": 0.94 if wide else 0.99, "wspace": 0.06 if wide else 0.02}
    edges |= {"bottom": (0.4 if wide else 0.27) / (tall + 0.75), "top": 1 - 0.42 / (tall + 0.75)}
    axes = figure.subplots(1, len(titles), gridspec_kw=edges)
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
    for ax in axes[: len(titles) - wide]:
        _bare(ax)
    if scene.note:
        figure.text(0.995, 0.99, scene.note, ha="right", va="top", style="italic", color="0.35", fontsize=7)
    return figure, axes


def show_heat(ax: Axes, flair: NDArray, values: NDArray, highest: float, aspect: float) -> None:
    """Values over a darkened FLAIR, the more opaque and bright the higher they are."""
    ax.imshow(grey(flair, flair) / 2, aspect=aspect)
    share = share_of(values, highest)
    ax.imshow(share, cmap="inferno", vmin=0, vmax=1, alpha=share, aspect=aspect)


def share_of(values: NDArray, highest: float) -> NDArray:
    """The square root of values in parts of the highest, which lets small ones be seen."""
    return np.sqrt(np.clip(values / highest, 0, 1))


def grey(flair: NDArray, of: NDArray) -> NDArray:
    """FLAIR [H, W] as colours in 0..1, [H, W, 3]; `of`: the slices that say what is black and what is white."""
    inside = of[of != 0] if of.any() else of
    low, high = np.percentile(inside, (0.5, 99.8))
    shade = np.clip((np.where(flair == 0, low, flair) - low) / max(high - low, 1e-6), 0, 1)
    return np.repeat(shade[..., None], 3, axis=-1)


def legend(figure: PaperFigure) -> None:
    figure.legend(handles=_overlay_patches(), loc="lower center", ncols=3, borderaxespad=0.1, fontsize=7)

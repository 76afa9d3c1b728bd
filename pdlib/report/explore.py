"""Pictures for looking around: one frame for each position of a slider. Slices are [H, W] of a `scene.Scene`."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image

from pdlib.methods import METHODS
from pdlib.report.scene import DPI, Call, Diffused, Result, Scene, Trial, grey, legend, panels, png, share_of, show_heat
from pdlib.report.slices import _bare, _overlay_patches, _show_image, _show_overlay
from pdlib.report.style import DOUBLE, EXTRA, HIT, MISSED, PaperFigure, method_colour, paper_style

REACH = (-1.0, 2.0)  # of noisy masks in {0, 1}: what is black and what is white
BINS = 40
CURRENT, OTHERS = "#D55E00", "0.7"  # the point that a slider stands at, and those that it does not


# --- a case, and what noise does to it -------------------------------------------------------------------------------


@paper_style
def case_figure(scene: Scene, preseg: NDArray, dice: float) -> PaperFigure:
    """FLAIR, the reference and a pre-segmentation [N, H, W] on the slice with most lesion."""
    figure, axes = panels(scene, ["FLAIR", "the reference", f"the pre-segmentation, Dice {dice:.2f}"])
    flair, reference = scene.cut(scene.flair), scene.cut(scene.reference)
    _show_image(axes[0], flair, scene.pixel_aspect)
    _show_overlay(axes[1], flair, reference, reference, scene.pixel_aspect)
    _show_overlay(axes[2], flair, scene.cut(preseg), reference, scene.pixel_aspect)
    legend(figure)
    return figure


@paper_style
def forward_figure(scene: Scene, preseg: NDArray, state: Diffused, steps: int) -> PaperFigure:
    """Reference and pre-segmentation under the same noise, and how far lesion pixels stand out of it."""
    titles = ["the reference, diffused", "the pre-segmentation, diffused", "the latter's pixels"]
    figure, axes = panels(scene, titles, wide=1)
    for ax, x_t in zip(axes, (state.reference, state.preseg), strict=False):
        ax.imshow(scene.cut(x_t), cmap="gray", vmin=REACH[0], vmax=REACH[1], aspect=scene.pixel_aspect)
    lesion, values = scene.cut(preseg) != 0, scene.cut(state.preseg)
    bins = np.linspace(-3.5, 4.5, BINS)
    for where, colour, label in ((~lesion, "0.6", "no lesion"), (lesion, HIT, "lesion")):
        share = np.histogram(values[where], bins)[0] / max(where.sum(), 1)
        axes[2].stairs(share, bins, fill=True, color=colour, alpha=0.7, label=label)
    axes[2].set(xlim=(-3.5, 4.5), yticks=[], xlabel="$x_t$")
    axes[2].legend(loc="upper right")
    figure.suptitle(
        f"t = {state.t} of {steps}:  $x_t$ = {state.signal:.2f} mask + {state.sigma:.2f} noise;  "
        f"a lesion pixel stands {state.signal / state.sigma:.1f} deviations out of the noise",
        fontsize=8,
    )
    return figure


# --- a chain ---------------------------------------------------------------------------------------------------------


@paper_style
def film_figure(scene: Scene, calls: Sequence[Call], columns: int) -> PaperFigure:
    """A chain as a strip of film, at most so many calls of it: what the network sees, and what it predicts."""
    shown = [calls[i] for i in np.unique(np.linspace(0, len(calls) - 1, min(columns, len(calls))).round().astype(int))]
    height, width = scene.cut(scene.flair).shape
    panel = (DOUBLE - 0.2) / max(len(shown), 4)
    figure = PaperFigure(figsize=(DOUBLE, 2 * panel * height * scene.pixel_aspect / width + 0.4))
    axes = figure.subplots(2, max(len(shown), 4), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for (above, below), call in zip(axes.T, shown, strict=False):
        above.imshow(scene.cut(call.x_t), cmap="gray", vmin=REACH[0], vmax=REACH[1], aspect=scene.pixel_aspect)
        below.imshow(scene.cut(call.x_start), cmap="gray", vmin=0, vmax=1, aspect=scene.pixel_aspect)
        above.set_title(f"$x_t$, t = {call.t}")
        below.set_title("predicted $x_0$")
    return figure


@paper_style
def call_figure(scene: Scene, calls: Sequence[Call], number: int) -> PaperFigure:
    """One call of a chain (numbers count from 0): the state, the predicted x_start, and that as a mask."""
    call, threshold = calls[number], 0.5
    titles = ["what the network sees: $x_t$", "what it predicts: $x_0$", "that as a mask"]
    figure, axes = panels(scene, titles)
    axes[0].imshow(scene.cut(call.x_t), cmap="gray", vmin=REACH[0], vmax=REACH[1], aspect=scene.pixel_aspect)
    axes[1].imshow(scene.cut(call.x_start), cmap="gray", vmin=0, vmax=1, aspect=scene.pixel_aspect)
    mask, reference = scene.cut(call.x_start) >= threshold, scene.cut(scene.reference)
    _show_overlay(axes[2], scene.cut(scene.flair), mask, reference, scene.pixel_aspect)
    figure.suptitle(f"call {number + 1} of {len(calls)}, t = {call.t}", fontsize=8)
    legend(figure)
    return figure


@paper_style
def t_prime_figure(scene: Scene, results: Sequence[Result], number: int, steps: int) -> PaperFigure:
    """The results of one T' among those of several: mask, variance, and its place on the curve of Dice."""
    result = results[number]
    figure, axes = panels(scene, ["mask", "variance of the members", "Dice of the volume"], wide=1)
    flair, reference = scene.cut(scene.flair), scene.cut(scene.reference)
    _show_overlay(axes[0], flair, scene.cut(result.mask), reference, scene.pixel_aspect)
    highest = max(float(one.variance.max()) for one in results) or 1.0
    show_heat(axes[1], flair, scene.cut(result.variance), highest, scene.pixel_aspect)
    times, dice = [one.t_prime for one in results], [one.dice for one in results]
    axes[2].plot(times, dice, "o-", color=OTHERS)
    axes[2].plot(times[number], dice[number], "o", color=CURRENT, markersize=7)
    axes[2].set(xlabel="$T'$", xlim=(0, steps * 1.03))
    axes[2].margins(y=0.15)
    axes[2].yaxis.tick_right()
    axes[2].spines[["left", "right"]].set_visible([False, True])
    figure.suptitle(
        f"$T'$ = {result.t_prime} of {steps}:  Dice {result.dice:.3f},  "
        f"{result.calls} network calls a slice,  {result.seconds:.1f} s",
        fontsize=8,
    )
    legend(figure)
    return figure


# --- members and volumes ---------------------------------------------------------------------------------------------


@paper_style
def members_figure(scene: Scene, result: Result) -> PaperFigure:
    """Each member on the slice with most lesion, and over FLAIR their mean, their variance and where the mask errs."""
    count, flair, aspect = len(result.members), scene.cut(scene.flair), scene.pixel_aspect
    columns = -(-(count + 3) // 2)
    height, width = flair.shape
    panel = (DOUBLE - 0.2) / columns
    figure = PaperFigure(figsize=(DOUBLE, 2 * panel * height * aspect / width + 0.6))
    axes = figure.subplots(2, columns)
    for ax in axes.flat:
        ax.set_axis_off()
    for number, (ax, member) in enumerate(zip(axes.flat, result.members, strict=False), 1):
        ax.imshow(scene.cut(member), cmap="gray", vmin=0, vmax=1, aspect=aspect)
        ax.set_title(f"member {number}")
    mean, variance, errors = axes.flat[count : count + 3]
    show_heat(mean, flair, scene.cut(result.mean), 1.0, aspect)
    spread = scene.cut(result.variance)
    show_heat(variance, flair, spread, float(spread.max()) or 1.0, aspect)
    _show_overlay(errors, flair, scene.cut(result.mask), scene.cut(scene.reference), aspect)
    for ax, title in ((mean, "mean"), (variance, f"variance, up to {spread.max():.2g}"), (errors, "errors")):
        ax.set_title(title, weight="bold")
    figure.legend(handles=_overlay_patches(), loc="outside lower center", ncols=3)
    return figure


@dataclass(frozen=True)
class Browser:
    """The slices of a scene beside a result's masks and variance. Of a picture only the slices are drawn anew.

    Args:
        scene: what is looked at.
        result: of whose members.
        page: the picture without slices.
        corners: of the three slices on the page, in pixels from the upper left.
        size: of a slice on the page, width and height in pixels.
    """

    scene: Scene
    result: Result
    page: Image.Image
    corners: Sequence[tuple[int, int]]
    size: tuple[int, int]

    @classmethod
    def of(cls, scene: Scene, result: Result) -> "Browser":
        figure = _browser_figure(scene)
        page = Image.open(io.BytesIO(png(figure))).convert("RGB")
        boxes = [ax.get_window_extent() for ax in figure.axes]
        corners = [(round(box.x0), round(page.height - box.y1)) for box in boxes]
        return cls(scene, result, page, corners, (round(boxes[0].width), round(boxes[0].height)))

    def draw(self, place: int, member: int, threshold: float) -> bytes:
        """One slice as a PNG: FLAIR, a member's mask (0: the mean's) at a threshold, and the members' variance."""
        box, page, stream = self.scene.box, self.page.copy(), io.BytesIO()
        values = self.result.members[member - 1] if member else self.result.mean
        flair = grey(self.scene.flair[place][box], self.scene.flair)
        mask, reference = values[place][box] >= threshold, self.scene.reference[place][box] == 1
        painted = flair.copy()
        for colour, where in ((HIT, mask & reference), (EXTRA, mask & ~reference), (MISSED, ~mask & reference)):
            painted[where] = to_rgb(colour)
        share = share_of(self.result.variance[place][box], float(self.result.variance.max()) or 1.0)
        heat = share[..., None] * colormaps["inferno"](share)[..., :3] + (1 - share[..., None]) * flair / 2
        for corner, slice_ in zip(self.corners, (flair, painted, heat), strict=True):
            pixels = Image.fromarray((255 * slice_[::-1]).astype(np.uint8))
            page.paste(pixels.resize(self.size, Image.Resampling.NEAREST), corner)
        page.save(stream, format="png", compress_level=1)
        return stream.getvalue()


@paper_style
def _browser_figure(scene: Scene) -> PaperFigure:
    """The page of a `Browser`, black where the slices go."""
    figure, axes = panels(scene, ["FLAIR", "mask", "variance of the members"])
    for ax in axes:
        ax.imshow(np.zeros_like(scene.cut(scene.flair)), cmap="gray", aspect=scene.pixel_aspect)
    legend(figure)
    return figure


@paper_style
def bars_figure(results: Sequence[Result]) -> PaperFigure:
    """Dice and network calls of several methods, one bar each."""
    figure = PaperFigure(figsize=(DOUBLE, 0.3 * len(results) + 0.6))
    left, right = figure.subplots(1, 2, sharey=True)
    titles = [METHODS[one.method].title for one in results]
    colours = [method_colour(one.method) for one in results]
    for ax, values, form in (
        (left, [one.dice for one in results], "{:.3f}"),
        (right, [one.calls for one in results], "{:.0f}"),
    ):
        ax.bar_label(ax.barh(titles, values, color=colours), [form.format(value) for value in values], padding=3)
    left.set(xlabel="Dice of the volume", xlim=(0, 1.1))
    right.set_xscale("log")
    right.set(xlabel="Network calls a slice, all members", xlim=(0.8, 3 * max(one.calls for one in results)))
    left.invert_yaxis()
    return figure


# --- kernels ---------------------------------------------------------------------------------------------------------


@paper_style
def trial_figure(trial: Trial, op: str, shape: str) -> PaperFigure:
    """An op's reference and the op side by side, where they differ, and what each costs."""
    figure = PaperFigure(figsize=(DOUBLE, 2.0), dpi=DPI, layout="none")
    axes = figure.subplots(1, 4, gridspec_kw={"left": 0.01, "right": 0.98, "top": 0.8, "bottom": 0.16, "wspace": 0.1})
    low, high = np.percentile(trial.reference, (1, 99))
    for ax, values, title in zip(axes, (trial.reference, trial.chosen), ("reference", "op"), strict=False):
        ax.imshow(values, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
        ax.set_title(title)
    difference = np.abs(trial.reference - trial.chosen)
    axes[2].imshow(difference, cmap="inferno", vmin=0, vmax=difference.max() or 1.0)
    axes[2].set_title(f"difference, at most {difference.max():.0e}")
    for ax in axes[:3]:
        _bare(ax)
    times = [trial.reference_ms, trial.chosen_ms]
    axes[3].bar_label(axes[3].bar(["reference", "op"], times, color=["0.6", CURRENT]), fmt="%.3g ms")
    axes[3].set(yscale="log", ylim=(min(times) / 3, 4 * max(times)))
    axes[3].tick_params(axis="y", which="both", left=False, labelleft=False)
    axes[3].spines["left"].set_visible(False)
    figure.suptitle(f"{op} on {shape}", fontsize=8, y=0.98)
    return figure

"""Sliders over recorded chains and volumes, for notebooks.

A viewer keeps its state in the kernel: a slider's move asks `draw` for a picture, and only the picture's bytes change.
Pictures are drawn beforehand where there are few of them, and once each where there are many. What a notebook saves of
a viewer is one output in two forms, the widget and a picture: JupyterLab shows the widget, and whatever has no kernel
to move a slider by (papermill's copies, nbconvert, GitHub) shows the picture. (ipyniivue draws volumes in the browser
by WebGL; it leaves no such picture, and not every laptop of a workshop has WebGL.)
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import ipywidgets
import numpy as np

from pdlib.report import explore
from pdlib.report.explore import Browser
from pdlib.report.scene import Call, Diffused, Result, Scene, Trial, png, sheet

LAYOUT = ipywidgets.Layout(width="560px")
STYLE = {"description_width": "90px"}
PICTURE = ipywidgets.Layout(width="100%", max_width="1000px")


class Viewer(ipywidgets.VBox):
    """Controls above a picture that depends on their values.

    Args:
        controls: by the name of the argument of `draw` that they set.
        draw: the controls' values, by name -> the bytes of a PNG; each picture is drawn once.
        stills: values of the controls; their pictures, one below the other, stand where nothing can be moved.
    """

    def __init__(
        self,
        controls: Mapping[str, ipywidgets.ValueWidget],
        draw: Callable[..., bytes],
        stills: Sequence[Mapping[str, object]],
    ):
        self.controls, self.draw = dict(controls), cache(draw)
        self.still = sheet([self.draw(**values) for values in stills])
        self.picture = ipywidgets.Image(format="png", layout=PICTURE)
        self.show()
        for control in self.controls.values():
            control.observe(lambda change: self.show(), names="value")
        super().__init__([*self.controls.values(), self.picture])

    def show(self) -> None:
        """Draw the picture of the controls' values."""
        self.picture.value = self.draw(**{name: control.value for name, control in self.controls.items()})

    def _repr_mimebundle_(self, **kwargs) -> dict[str, str]:
        picture = base64.b64encode(self.still).decode("ascii")
        return super()._repr_mimebundle_(**kwargs) | {"image/png": picture}


def forward_viewer(
    scene: Scene, preseg: np.ndarray, states: Sequence[Diffused], steps: int, start: int, stills: int
) -> Viewer:
    """A slider over t: reference and pre-segmentation under rising noise.

    states: of `study.explore.diffused`; the slider begins at states[start]. stills: how many of them the picture shows.
    """
    drawn = [png(explore.forward_figure(scene, preseg, state, steps)) for state in states]
    return _film("t", [state.t for state in states], drawn, start, stills)


def chain_viewer(scene: Scene, calls: Sequence[Call], stills: int) -> Viewer:
    """A slider over a chain's network calls: the state, the predicted x_start, and that as a mask."""
    drawn = [png(explore.call_figure(scene, calls, number)) for number in range(len(calls))]
    labels = [f"call {number}, t = {call.t}" for number, call in enumerate(calls, 1)]
    return _film("call", labels, drawn, 0, stills)


def t_prime_viewer(scene: Scene, results: Sequence[Result], steps: int, start: int, stills: int) -> Viewer:
    """A slider over T': mask, variance, Dice, network calls and seconds. It begins at results[start]."""
    drawn = [png(explore.t_prime_figure(scene, results, number, steps)) for number in range(len(results))]
    return _film("T'", [result.t_prime for result in results], drawn, start, stills)


def volume_viewer(scene: Scene, result: Result, threshold: float) -> Viewer:
    """Sliders over slices, members and the threshold: the mask over FLAIR, and the members' variance.

    threshold: where its slider begins. There are too many pictures to draw them beforehand: a move draws one.
    """
    members = [("the mean", 0), *((f"member {number}", number) for number in range(1, len(result.members) + 1))]
    controls = {
        "place": _slider("slice", [(str(number + 1), i) for i, number in enumerate(scene.numbers)], scene.place),
        "member": _slider("shown", members, 0),
        "threshold": ipywidgets.FloatSlider(
            value=threshold, min=0.05, max=0.95, step=0.05, description="threshold", layout=LAYOUT, style=STYLE
        ),
    }
    return Viewer(
        controls, Browser.of(scene, result).draw, [{"place": scene.place, "member": 0, "threshold": threshold}]
    )


def kernel_playground(trials: Mapping[tuple[str, str], Trial]) -> Viewer:
    """Menus over ops and shapes: reference and kernel side by side, with the milliseconds of each.

    trials: by op and shape, of `study.explore.kernel_trials`.
    """
    drawn = {key: png(explore.trial_figure(trial, *key)) for key, trial in trials.items()}
    ops, shapes = (list(dict.fromkeys(names)) for names in zip(*trials, strict=True))
    controls = {
        "op": ipywidgets.Dropdown(options=ops, description="op", style=STYLE),
        "shape": ipywidgets.Dropdown(options=shapes, description="shape", style=STYLE),
    }
    return Viewer(controls, lambda op, shape: drawn[op, shape], [{"op": op, "shape": shapes[-1]} for op in ops])


def _film(name: str, labels: Sequence[object], frames: Sequence[bytes], start: int, stills: int) -> Viewer:
    """One slider over frames that are drawn already."""
    slider = _slider(name, [(str(label), i) for i, label in enumerate(labels)], start)
    shown = np.unique(np.linspace(0, len(frames) - 1, min(stills, len(frames))).round().astype(int))
    return Viewer({"number": slider}, lambda number: frames[number], [{"number": int(i)} for i in shown])


def _slider(name: str, options: Sequence[tuple[str, object]], value: object) -> ipywidgets.SelectionSlider:
    return ipywidgets.SelectionSlider(options=options, value=value, description=name, layout=LAYOUT, style=STYLE)

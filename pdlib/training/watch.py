"""What is seen of a training: a progress bar with the last validation, and in a notebook the curves so far."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pandas as pd

from pdlib.progress import in_notebook, tqdm
from pdlib.report.curves import training_figure


class Watch:
    """A training's bar, and in a notebook a picture that each validation draws anew."""

    def __init__(self, bar):
        self.bar, self.shown = bar, None

    def step(self, done: int) -> None:
        """Move the bar to the updates done."""
        self.bar.update(done - self.bar.n)

    def validated(self, history: Sequence[dict]) -> None:
        """Show the last of all validations. history: {step, metric, value}."""
        last = {row["metric"]: f"{row['value']:.3g}" for row in history if row["step"] == history[-1]["step"]}
        self.bar.set_postfix(last, refresh=False)
        if in_notebook():
            self._draw(training_figure(pd.DataFrame(history)))

    def _draw(self, figure) -> None:
        from IPython.display import display

        if self.shown is None:
            self.shown = display(figure, display_id=True)
        else:
            self.shown.update(figure)

    def end(self) -> None:
        """Take the picture away: the lesson draws the whole training's."""
        if self.shown is not None:
            self.shown.update({"text/plain": ""}, raw=True)


@contextmanager
def watch(name: str, done: int, steps: int) -> Iterator[Watch]:
    """Show a training that has done some of its updates. Where it stops by an error the picture stays."""
    with tqdm(total=steps, initial=done, unit="update", desc=name) as bar:
        watched = Watch(bar)
        yield watched
        watched.end()

"""One progress bar for every place: a widget in a notebook, a moving line in a terminal, a few whole lines in a log.

A log's lines come at most every TQDM_MININTERVAL seconds, and are SHARE of the way apart; what is done sooner says
nothing.
"""

import os
import sys
from itertools import chain, repeat

from tqdm import tqdm as terminal_bar
from tqdm.auto import notebook_tqdm
from tqdm.auto import tqdm as own_bar  # a notebook's, in one

IN_WORKFLOW = "PDLIB_WORKFLOW"  # set in the environment of the graph's jobs
SHARE = 0.05  # of a bar's whole way between two lines of a log
PATIENCE = 10.0  # seconds between them where TQDM_MININTERVAL does not say
RARER = 6  # times as long where nobody knows how long the way is
COUNTED = "{n_fmt} {unit}s, {elapsed} so far{postfix}"
ESTIMATED = "{percentage:.0f}% of {total_fmt} {unit}s, {elapsed} so far, {remaining} left{postfix}"


class LogBar(terminal_bar):
    """tqdm for a log, with tqdm's arguments. In a job of the graph each line returns the carriage, and so replaces the
    one before in the executed notebook; `workflow.run_notebook` hands it on to the log."""

    def __init__(self, iterable=None, desc=None, total=None, **other):
        total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
        wait = float(os.environ.get("TQDM_MININTERVAL", PATIENCE)) * (1 if total else RARER)
        rhythm = {"mininterval": wait, "delay": wait, "miniters": max(1, SHARE * total) if total else 1}
        shape = "{desc}: " * bool(desc) + (ESTIMATED if total else COUNTED)
        file = sys.stdout if IN_WORKFLOW in os.environ else sys.stderr
        super().__init__(iterable, desc, total, **{"unit": "step"} | other, **rhythm, bar_format=shape, file=file)

    @staticmethod
    def status_printer(file):
        """What writes a state of the bar; tqdm ends the last line."""
        if IN_WORKFLOW in os.environ:
            return terminal_bar.status_printer(file)
        edges = chain([""], repeat("\n"))
        return lambda state: print(next(edges), state, sep="", end="", file=file, flush=True)


def in_notebook() -> bool:
    """Whether somebody may be looking at a notebook's cells while they run: not in a job of the graph."""
    return notebook_tqdm is not terminal_bar and IN_WORKFLOW not in os.environ


def tqdm(*arguments, **settings) -> terminal_bar:
    """A tqdm bar for wherever this runs."""
    if in_notebook():
        return own_bar(*arguments, **settings)
    watched = sys.stderr.isatty() and IN_WORKFLOW not in os.environ
    return (terminal_bar if watched else LogBar)(*arguments, **settings)

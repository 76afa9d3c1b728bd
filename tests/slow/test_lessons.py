"""Every notebook by itself at the values of its parameters cell, in a folder where nobody has run any."""

import pytest
from alone import run_alone

from pdlib.paths import NOTEBOOKS


@pytest.mark.hours
def test_every_notebook_runs_by_itself_as_a_lesson(tmp_path):
    run_alone(sorted(NOTEBOOKS.glob("*.ipynb")), tmp_path)

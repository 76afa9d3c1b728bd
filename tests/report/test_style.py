"""A figure shows in Jupyter, has one look, and is the same file each time."""

import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from nbclient import NotebookClient

from pdlib.methods import METHODS
from pdlib.profiles import load_profile
from pdlib.report import curves, style

HISTORY = pd.DataFrame({"step": [10, 20], "metric": "train_loss", "value": [0.2, 0.1]})
DRAW = """
import pandas as pd
from pdlib.report.curves import training_figure
history = pd.DataFrame({"step": [10, 20], "metric": "train_loss", "value": [0.2, 0.1]})
"""


@pytest.fixture(scope="module")
def executed():
    """Three cells: one returns a figure, one displays two, one draws by pyplot first."""
    sources = [
        DRAW + "training_figure(history)",
        "from IPython.display import display\ndisplay(training_figure(history), training_figure(history, note='b'))",
        "import matplotlib.pyplot as plt\nplt.subplots()\nfigure = training_figure(history)\nfigure",
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in sources], metadata=kernel)
    return NotebookClient(notebook, timeout=120).execute()


def shown(cell):
    return [output.data for output in cell.outputs if output.output_type in ("display_data", "execute_result")]


def test_jupyter_shows_each_figure_once_as_a_picture(executed):
    one, two, beside_pyplot = (shown(cell) for cell in executed.cells)
    assert [len(outputs) for outputs in (one, two, beside_pyplot)] == [1, 2, 2], "pyplot shows its own"
    for data in (*one, *two, *beside_pyplot):
        assert "image/png" in data, f"bare {data.get('text/plain')}"


def test_every_method_has_a_colour_of_its_own():
    assert len({to_hex(style.method_colour(name)) for name in [*METHODS, "no method"]}) == len(METHODS) + 1


def luminance(colour):
    """Relative luminance of a colour, 0 to 1 (WCAG 2)."""
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize("name", [*load_profile("paper").fewer_calls.starts, "pd_ddpm_1"])
def test_a_chain_s_name_in_its_colour_can_be_read_on_white(name):
    """Lines, points and large letters need a contrast of 3 (WCAG 2, 1.4.3 and 1.4.11)."""
    assert 1.05 / (luminance(style.method_colour(name)) + 0.05) >= 3


def test_the_same_figure_is_the_same_file(tmp_path):
    files = [style.save_figure(curves.training_figure(HISTORY, note="phantom"), tmp_path / n) for n in ("a", "b.1")]
    assert [p.name for p in files[1]] == ["b.1.png", "b.1.pdf"]
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes() and first.stat().st_size > 1000
    assert b"CreationDate" not in files[0][1].read_bytes()


def test_no_torch_is_loaded():
    modules = "pdlib.report.curves, pdlib.report.slices, pdlib.report.readme, pdlib.evaluation.metrics"
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_disk_that_is_full_names_the_picture_and_leaves_the_old_one(tmp_path, monkeypatch):
    figure = curves.training_figure(HISTORY)
    before = {path: path.read_bytes() for path in style.save_figure(figure, tmp_path / "a")}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(OSError, match=r"a\.png"):
        style.save_figure(figure, tmp_path / "a")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

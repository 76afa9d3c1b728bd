"""`make lab` in a real browser: notebooks run to their end, show their figures, and each slider moves its picture.

`make test-browser` installs what this needs. JupyterLab runs on a scratch clone of the working tree, with settings of
its own; screenshots lie in runs/browser/ afterwards.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from screens import PREPARED, SCREENS, SCREENSHOTS, chromium

from pdlib.lab import install_filter
from pdlib.paths import NOTEBOOKS, ROOT

NAMES = [name for name in ("00_tour", "05_sweep_t_prime", "06_ensemble_size") if (NOTEBOOKS / f"{name}.ipynb").exists()]
LAPTOP, TALLEST = dict(zip(("width", "height"), SCREENS["laptop"], strict=False)), 16_000  # pixels
STARTED_SECONDS = 120
RUN_SECONDS = 900  # of one notebook, where it has to prepare by itself what it stands on
SLIDER_SECONDS = 5  # generous: of a busy machine
MOST_MOVES = 4  # of a slider, before its picture has to be another
KERNEL_READY, RAN = ".jp-StatusBar-Widget >> text=| Idle", ".jp-Notebook-ExecutionIndicator[data-status=idle]"
BYTES = "async image => Array.from(new Uint8Array(await (await fetch(image.src)).arrayBuffer())).join()"
LOADED = "images => images.filter(image => image.complete && image.naturalWidth > 1).length"


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout


def until(found: Callable, seconds: float):
    """What `found` returns as soon as that is true or not empty, and whatever it returns in the end."""
    end = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < end:
        time.sleep(0.02)
    return value


@pytest.fixture(scope="module")
def clone(tmp_path_factory, pytestconfig) -> Path:
    """The working tree as git sees it, committed elsewhere, with a run: $PDLIB_OUT, or what `make test` left behind."""
    root = tmp_path_factory.mktemp("browser") / "a clone"
    for name in git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    git(root, "init", "--quiet")
    install_filter(root, Path(sys.executable))
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "the working tree")
    prepared = os.environ.get("PDLIB_OUT") or pytestconfig.cache.get(PREPARED, "")
    for folder in (Path(prepared, kind) for kind in ("runs", "results", "figures") if prepared):
        if folder.is_dir():
            shutil.copytree(folder, root / folder.name, dirs_exist_ok=True)
    return root


@pytest.fixture(scope="module")
def lab(clone, tmp_path_factory) -> Iterator[dict]:
    """The server that `make lab` starts, as Jupyter describes it: on a free port, and opening no browser."""
    own = tmp_path_factory.mktemp("jupyter")
    settings = {"open_browser": False, "allow_root": True, "port": 0}
    (own / "jupyter_server_config.json").write_text(json.dumps({"ServerApp": settings}), encoding="utf-8")
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PDLIB_OUT", "MAKEFLAGS", "MAKELEVEL")
    }
    environment |= {f"JUPYTER_{kind}_DIR": str(own) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment |= {"PYTHONPATH": str(clone)}  # the clone's pdlib, for the kernels too
    command = ["make", "--no-print-directory", "lab", "READY=", f"PYTHON={sys.executable}"]
    with (own / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=clone, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        told = until(lambda: [path for path in own.glob("jpserver-*.json") if path.stat().st_size], STARTED_SECONDS)
        assert told, (own / "log").read_text()
        yield json.loads(told[0].read_text(encoding="utf-8"))
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # JupyterLab ends its kernels
        process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as opened:
        yield opened


@pytest.fixture(params=NAMES)
def notebook(request, lab, browser) -> Iterator:
    """A page of a laptop's size with a notebook and its kernel, which asked nobody but JupyterLab for anything."""
    page, hosts = browser.new_page(viewport=LAPTOP), set()
    page.on("request", lambda asked: hosts.add(urlsplit(asked.url).hostname))
    place = f"lab/workspaces/{request.param}/tree/{request.param}.ipynb"  # a workspace without the tabs of another test
    page.goto(f"{lab['url']}{place}?token={lab['token']}")
    page.locator(KERNEL_READY).wait_for(timeout=1000 * STARTED_SECONDS)
    time.sleep(1)  # a menu opened at once closes again
    yield page
    screenshot(page, request.param)
    page.close()
    assert hosts - {None} <= {"localhost", "127.0.0.1"}, "nothing leaves the machine"


def screenshot(page, name: str) -> None:
    """The whole notebook at a laptop's width."""
    cells = page.locator(".jp-NotebookPanel .jp-WindowedPanel-outer")
    length = cells.evaluate("cells => cells.scrollHeight - cells.clientHeight")
    page.set_viewport_size(LAPTOP | {"height": min(LAPTOP["height"] + length, TALLEST)})
    cells.evaluate("cells => cells.scrollTo(0, 0)")
    time.sleep(1)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def run_all(page) -> None:
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.locator(RAN).wait_for(state="detached", timeout=30_000)
    page.locator(RAN).wait_for(timeout=1000 * RUN_SECONDS)


def saved(page, clone: Path) -> nbformat.NotebookNode:
    """The notebook as JupyterLab saves it, after the server's hook."""
    with page.expect_response(lambda answer: answer.request.method == "PUT" and "/api/contents/" in answer.url) as put:
        page.keyboard.press("Control+s")
    return nbformat.read(clone / "notebooks" / Path(urlsplit(put.value.url).path).name, as_version=4)


def picture_follows(page, handle) -> None:
    """Arrow keys move the slider until the picture below it becomes another (neighbours may look alike), and back."""
    handle.scroll_into_view_if_needed()
    picture = handle.locator("xpath=ancestor::*[contains(@class, 'widget-vbox')][.//img][1]").locator("img")
    at, end = (handle.get_attribute(f"aria-value{name}") for name in ("now", "max"))
    there, back = ("ArrowLeft", "ArrowRight") if float(at) == float(end) else ("ArrowRight", "ArrowLeft")
    before, moved = picture.evaluate(BYTES), 0
    while picture.evaluate(BYTES) == before:
        assert moved < MOST_MOVES, "the picture stayed"
        handle.press(there)
        started, moved = time.monotonic(), moved + 1
        until(lambda: picture.evaluate(BYTES) != before, SLIDER_SECONDS)
    print(f"slider moved: {1000 * (time.monotonic() - started):.0f} ms")
    for _ in range(moved):
        handle.press(back)
    assert until(lambda: picture.evaluate(BYTES) == before, SLIDER_SECONDS), "the way back shows another picture"


def test_notebook_runs_shows_its_figures_and_leaves_git_clean(notebook, lab, clone):
    assert lab["hostname"] in ("localhost", "127.0.0.1") and len(lab["token"]) > 20
    assert not notebook.get_by_text("Jupyter news").count(), "no question comes before the lesson"
    run_all(notebook)
    handles = notebook.locator(".jp-OutputArea .noUi-handle").all()
    for handle in handles:
        picture_follows(notebook, handle)
    cells = [cell for cell in saved(notebook, clone).cells if cell.cell_type == "code"]
    viewers = sum(cell.source.count("widgets.") for cell in cells if "import widgets" not in cell.source)
    assert len(handles) >= viewers, "a viewer without a slider"
    outputs = [output for cell in cells for output in cell.outputs]
    red = [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not red, red
    assert all(cell.execution_count for cell in cells), "every cell ran"
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures and notebook.locator(".jp-OutputArea img").evaluate_all(LOADED) == len(pictures)
    assert git(clone, "status", "--porcelain") == ""

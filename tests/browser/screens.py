"""Chromium as the tests open it, and the screens on which they look."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pdlib.paths import ROOT

sync_api = pytest.importorskip("playwright.sync_api", reason="`make test-browser` installs playwright")

PREPARED = "pdlib/run"  # in pytest's cache: where tests/test_reproduce.py left its run
SCREENSHOTS = ROOT / "runs" / "browser"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SCREENS = {"laptop": (1366, 768, "light"), "phone": (390, 844, "dark")}  # width and height in pixels, and the colours


@contextmanager
def chromium() -> Iterator:
    """A browser without a window."""
    path = shutil.which("chromium")
    assert path, "no chromium: `make test-browser` installs it where it may"
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@contextmanager
def tab_on(screen: str) -> Iterator[tuple]:
    """An empty tab, the addresses that it will ask for, and what its pages will complain of."""
    width, height, scheme = SCREENS[screen]
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        asked, said = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        yield tab, asked, said


def keep(tab, name: str) -> None:
    """A screenshot of the whole page."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def too_wide(tab) -> int:
    """By how many pixels a page is wider than the screen."""
    return tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

"""The book of a run in a real browser: opened from the file system, on a laptop and a phone, and searched."""

from pathlib import Path

import pytest
from screens import PREPARED, SCREENS, keep, tab_on, too_wide

from pdlib import book
from pdlib.paths import layout

PAGES = ("index", "notebooks/00_tour", "notebooks/04_compare_methods", "ledger", "faq", "api/diffusion")
CONTENT, WORD = "[role=main]", "noise"
BROKEN = "images => images.filter(image => !(image.complete && image.naturalWidth > 1)).map(image => image.src)"


@pytest.fixture(scope="module")
def pages(pytestconfig) -> Path:
    """The book of the run that `make test` left behind."""
    run = layout("smoke", pytestconfig.cache.get(PREPARED, ""))
    if not run.executed("00_tour").exists():
        pytest.skip("`make test` leaves the run whose book this opens")
    return book.build(run).parent


@pytest.mark.parametrize("screen", SCREENS)
def test_it_fits_the_screen_shows_its_pictures_and_can_be_searched(pages, screen):
    with tab_on(screen) as (tab, asked, said):
        for name in PAGES:
            tab.goto((pages / f"{name}.html").as_uri())
            keep(tab, f"book_{name.rpartition('/')[2]}_{screen}")
            assert too_wide(tab) <= 0, name
            pictures = tab.locator(f"{CONTENT} img")
            assert pictures.count() or not name.startswith("notebooks/")
            assert pictures.evaluate_all(BROKEN) == [], name
        tab.goto(f"{(pages / 'search.html').as_uri()}?q={WORD}")
        found = tab.locator("#search-results li a")
        found.first.wait_for()
        keep(tab, f"book_search_{screen}")
        found.first.click()
        assert WORD in tab.locator(CONTENT).inner_text().lower()
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert said == []

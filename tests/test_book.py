"""A book of two executed notebooks: it holds them, the API and a search index, and no page fetches from elsewhere."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from pdlib import book
from pdlib.paths import NOTEBOOKS, PACKAGE, Layout

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
STILL = base64.b64encode(base64.b64decode(PICTURE) + b"a slider's picture").decode()
FETCHED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}


class Fetches(HTMLParser):
    """What a browser loads to show a page: links that a reader may follow are not among them."""

    def __init__(self, page: Path):
        super().__init__()
        self.found = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if FETCHED.get(tag) == name]


def executed_copy(place: Layout, job: str) -> None:
    """What papermill leaves behind: a picture, a table, a progress bar, a slider, a sentence and a solved exercise."""
    data = [{"image/png": PICTURE}, {"text/html": "<table><tr><td>0.5</td></tr></table>"}]
    data.append({book.WIDGET: {"model_id": "a"}, "text/plain": "  0%|          | 0/7"})
    data.append({book.WIDGET: {"model_id": "b"}, "text/plain": "Viewer(IntSlider())", "image/png": STILL})
    code = nbformat.v4.new_code_cell("print('seen')", execution_count=1)
    code.outputs = [nbformat.v4.new_output("display_data", one) for one in data]
    code.outputs.append(nbformat.v4.new_output("stream", text="zebra seen"))
    solved = nbformat.v4.new_code_cell("answer = 42", metadata={"tags": ["solution"]})
    told = nbformat.v4.new_markdown_cell("# A lesson\nWith $T'$ and\n$$\\big[\\sqrt{\\bar\\alpha_t}\\big]$$")
    path = place.executed(job)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[told, code, solved], metadata=about), path)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    pytest.importorskip("sphinx", reason="the extra `book` is not installed")
    place = Layout(tmp_path_factory.mktemp("a run"), "smoke")
    executed_copy(place, "01_prepare_data")
    executed_copy(place, "02_train_segmenters.unet_0")
    place.figures.mkdir(parents=True)
    place.figures.joinpath("claims.md").write_text("| Claim | Verdict |\n| --- | --- |\n| C1 | undecided |\n")
    quick = "extensions=myst_nb,sphinx.ext.autodoc,sphinx.ext.napoleon"  # without the pages of source code
    return book.build(place, "-W", "--keep-going", "-D", quick).parent


def test_it_holds_the_lessons_as_they_ran(pages):
    for name in ("01_prepare_data", "02_train_segmenters"):
        text = (pages / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
        assert "zebra seen" in text and "Show the solution" in text and "0/7" not in text
        assert "<math" in text and "math/tex" not in text
        (still,) = (path for path in (pages / "_images").iterdir() if path.read_bytes() == base64.b64decode(STILL))
        assert f"../_images/{still.name}" in text and "widget-view" not in text and "IntSlider" not in text
    (unseen,) = (pages / "notebooks").glob("11_claims.html")
    assert "has not executed this notebook" in unseen.read_text(encoding="utf-8")
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {path.stem for path in (pages / "notebooks").iterdir()}
    assert "undecided" in (pages / "ledger.html").read_text(encoding="utf-8")


def test_no_page_fetches_from_elsewhere(pages):
    for page in pages.rglob("*.html"):
        foreign = [one for one in Fetches(page).found if re.match(r"([a-z]+:)?//", one)]
        assert not foreign, f"{page.name}: {foreign}"
        missing = [one for one in Fetches(page).found if not one.startswith("data:") and not there(page, one)]
        assert not missing, f"{page.name}: {missing}"
    for sheet in pages.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


def there(page: Path, address: str) -> bool:
    return (page.parent / re.sub(r"[?#].*", "", address)).exists()


def test_search_finds_lessons_and_functions(pages):
    index = (pages / "searchindex.js").read_text(encoding="utf-8")
    assert "notebooks/01_prepare_data" in index and "zebra" in index and "score_volume" in index
    assert "search.html" in (pages / "index.html").read_text(encoding="utf-8")


def test_every_wing_is_in_the_api(pages):
    said = (pages / "api.html").read_text(encoding="utf-8")
    for wing in (path.parent.name for path in PACKAGE.glob("*/__init__.py")):
        assert f"api/{wing}.html" in said
        text = (pages / "api" / f"{wing}.html").read_text(encoding="utf-8")
        for module in (path.stem for path in (PACKAGE / wing).glob("*.py") if path.stem != "__init__"):
            assert f'id="module-pdlib.{wing}.{module}"' in text
    assert 'id="pdlib.evaluation.metrics.score_volume"' in (pages / "api" / "evaluation.html").read_text("utf-8")


def test_the_profile_that_has_run_is_taken(tmp_path):
    given = {"PDLIB_OUT_FOLDER": str(tmp_path)}
    with pytest.raises(ValueError, match=r"profile night or cpu has run: first `make reproduce PROFILE=cpu OUT="):
        book.place_asked(given)
    with pytest.raises(ValueError, match="first `make reproduce PROFILE=smoke OUT="):
        book.place_asked(given | {"PDLIB_PROFILE": "smoke"})
    with pytest.raises(ValueError, match="unknown profile 'smke'"):
        book.place_asked(given | {"PDLIB_PROFILE": "smke"})
    for profile in ("cpu", "night"):
        executed_copy(Layout(tmp_path, profile), "03_train_ddpm.0")
        assert book.place_asked(given).profile == profile

"""Every link of a page to a file beside it leads somewhere, and so does its anchor; the citation is of this version."""

import re
import tomllib

import pytest
import yaml

from pdlib.book import notebook_names, pages_of_api, pages_of_run
from pdlib.paths import DOCS, ROOT
from pdlib.profiles import load_profile
from pdlib.report.readme import quoted

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("*/README.md")])
LINK = re.compile(r"""\]\(([^)\s]+)\)|(?:src|href)="([^"]+)\"""")
BUILT = {*pages_of_api(), *pages_of_run(quoted(ROOT))}  # pages of docs/ that `make book` makes


def links(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = [first or second for first, second in LINK.findall(text)]
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page):
    """What GitHub and MyST call the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        built = page.parent == DOCS and path.removesuffix(".md") in BUILT
        assert built or target.exists(), f"{page.name}: {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link} leaves the repository"
        if anchor and not built:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_the_pages_are_read():
    named = {page.relative_to(ROOT).as_posix(): links(page) for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "docs/index.md"} <= {*named}
    assert {f"notebooks/{name}.ipynb" for name in notebook_names()} <= {*named["README.md"]}
    assert "../data/README.md" in named["docs/methods.md"]


def test_as_many_processes_as_the_page_says_can_share_the_training_s_batch():
    command = re.search(r"^\S*fabric run .*--devices (\d+) .* denoiser_0 (\w+) ", (DOCS / "scale.md").read_text(), re.M)
    assert load_profile(command[2]).denoiser.fit.batch_size % int(command[1]) == 0


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= {*cited}
    assert all({"type", "title", "authors"} <= {*paper} for paper in cited["references"])

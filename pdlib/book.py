"""`make book`: a profile's executed notebooks, docs/ and the API as one HTML book that opens from the file system.

What the user gives comes as it was typed, in the environment: PDLIB_PROFILE and PDLIB_OUT_FOLDER.
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat

from pdlib.graph import place_of
from pdlib.paths import DOCS, DRAFT, NOTEBOOKS, PACKAGE, ROOT, Layout, write_whole
from pdlib.profiles import load_profile

UNASKED = ("night", "cpu")  # the profile of a book for which none is given: the first that has run
PICTURES = {  # in a reader's order; others follow
    "fig1": "Fig. 1: two ways to a mask",
    "fig2": "Fig. 2: masks and uncertainty",
    "fig3": "Fig. 3: how far to diffuse",
    "fig4": "Fig. 4: how many members",
    "scores": "Table 1 as a picture",
    "starts": "Table 2 as a picture",
    "fewer_calls": "Fewer calls",
    "truncation": "Both ends truncated",
    "agreement": "Members and raters",
    "spread": "Where the members' spread comes from",
    "phantom_calibration": "The phantom beside patients",
    "speed_cpu": "Speed on a CPU",
    "speed_cuda": "Speed on a GPU",
}
TABLES = {
    "table1": "Table 1",
    "table1_by_site": "Table 1 by site",
    "table2": "Table 2: better and worse starts",
    "truncation": "Both ends truncated",
    "fewer_calls": "Fewer calls",
    "agreement": "Members and raters",
    "fundus": "Photographs",
}
WIDGET, STILL = "application/vnd.jupyter.widget-view+json", "image/png"  # what only a kernel can draw, and its picture
_NAME = re.compile(r"(?<![`}])`(pdlib(?:\.\w+)+)`")  # of something in the API
_POINTER = re.compile(r'(\]\(|src=")\.\./([^)"#\s]+)')  # of a page in docs/ to what lies beside docs/


def place_asked(given: Mapping[str, str]) -> Layout:
    """The run that a book is made of. ValueError, one line, with what to type where no notebook of it has run."""
    out, asked = given.get("PDLIB_OUT_FOLDER", ""), given.get("PDLIB_PROFILE", "")
    places = [place_of(load_profile(name), out) for name in ([asked] if asked else UNASKED)]
    for place in places:
        if any(executed(place, name) for name in notebook_names()):
            return place
    command = f"make reproduce PROFILE={places[-1].profile}" + (f" OUT={out}" if out else "")
    ran = " or ".join(place.profile for place in places)
    raise ValueError(f"no notebook of profile {ran} has run: first `{command}`")


def notebook_names() -> list[str]:
    """The lessons, in reading order."""
    return sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def executed(place: Layout, name: str) -> Path | None:
    """A notebook's executed copy: of its whole run, or else of the first of its jobs, such as a network's training."""
    whole = place.executed(name)
    return next((path for path in (whole, *sorted(whole.parent.glob(f"{name}.*.ipynb"))) if path.exists()), None)


def gather(place: Layout, source: Path) -> None:
    """Lay the book's pages out in a new folder: docs/ with what it points at, notebooks, API, pictures and tables."""
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    for page in source.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for _, pointed in _POINTER.findall(text):
            _bring(pointed, source)
        write_whole(page, _NAME.sub(r"{py:obj}`~\1`", _POINTER.sub(r"\1\2", text)))
    for name in notebook_names():
        write_whole(source / "notebooks" / f"{name}.ipynb", nbformat.writes(lesson(place, name)))
    if place.figures.is_dir():
        shutil.copytree(place.figures, source / "run", ignore=shutil.ignore_patterns(f"{DRAFT}*"))
    for name, page in {**pages_of_run(place), **pages_of_api()}.items():
        write_whole(source / f"{name}.md", page)


def _bring(pointed: str, source: Path) -> None:
    """Copy a file of the repository that a page points at; the notebooks come anyway."""
    path = ROOT / pointed
    if path.is_file() and path.parent != NOTEBOOKS:
        (source / pointed).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, source / pointed)


def lesson(place: Layout, name: str) -> nbformat.NotebookNode:
    """A notebook as a page: of widgets those with a picture, solutions folded away, a note where no run executed it."""
    path = executed(place, name)
    notebook = nbformat.read(path or NOTEBOOKS / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [
                output for output in cell.outputs if {WIDGET, STILL} & {*output.get("data", {})} != {WIDGET}
            ]
        if "solution" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("hide-cell")
            cell.metadata.mystnb = {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
    if path is None:
        said = f"The run of profile `{place.profile}` has not executed this notebook, so no outputs are shown."
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(f":::{{note}}\n{said}\n:::"))
    return notebook


def pages_of_run(place: Layout) -> dict[str, str]:
    """The pages made of what a run leaves in figures/: name -> Markdown."""
    said = f"From the run of profile `{place.profile}`."
    texts = {path.stem: path.read_text(encoding="utf-8") for path in place.figures.glob("[!.]*.md")}
    first = f"![{PICTURES['fig1']}](run/fig1.png)" if (place.figures / "fig1.png").exists() else ""
    tables = "\n\n".join(f"## {title}\n\n{texts[name]}" for name, title in TABLES.items() if name in texts)
    return {
        "found": f"{said}\n\n{first}\n\n{texts.get('findings', '')}",
        "ledger": f"# The ledger of claims\n\n{said}\n\n{texts.get('claims', 'It has weighed none yet.')}",
        "pictures": f"# Figures\n\n{said}\n\n{_pictures(place.figures) or 'It has drawn none yet.'}",
        "tables": f"# Tables\n\n{said}\n\n{tables or 'It has made none yet.'}",
    }


def _pictures(figures: Path) -> str:
    """A section for each picture, with its vector form to load; those in folders, the trainings', come last."""
    rank = {name: number for number, name in enumerate(PICTURES)}
    stems = [path.relative_to(figures).with_suffix("") for path in sorted(figures.rglob("[!.]*.png"))]
    sections = []
    for stem in sorted(stems, key=lambda stem: (len(stem.parts), rank.get(str(stem), len(rank)))):
        title = PICTURES.get(str(stem), f"{' '.join(stem.parts)}".replace("_", " ").capitalize())
        vector = f"\n\n[As PDF](run/{stem}.pdf)" if figures.joinpath(f"{stem}.pdf").exists() else ""
        sections.append(f"## {title}\n\n![{title}](run/{stem}.png){vector}")
    return "\n\n".join(sections)


def pages_of_api() -> dict[str, str]:
    """A page for each wing of pdlib, and one for the modules beside them, by the docstrings: name -> Markdown."""
    wings = {path.parent.name: sorted(path.parent.glob("*.py")) for path in PACKAGE.glob("*/__init__.py")}
    wings["pdlib"] = sorted(PACKAGE.glob("*.py"))
    return {f"api/{wing}": _api(wing, modules) for wing, modules in wings.items()}


def _api(wing: str, modules: list[Path]) -> str:
    """A wing's page: what the package says of itself, then a section a module."""
    prefix = "pdlib" if wing == "pdlib" else f"pdlib.{wing}"
    parts = [f"# {prefix}", f"```{{eval-rst}}\n.. automodule:: {prefix}\n```"]
    for name in (path.stem for path in modules if path.stem != "__init__"):
        parts.append(f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {prefix}.{name}\n   :members:\n```")
    return "\n\n".join(parts)


def build(place: Layout, *options: str) -> Path:
    """Make the book anew below the run's folder; its first page. RuntimeError where Sphinx, given options, fails."""
    from sphinx.cmd.build import build_main

    shutil.rmtree(place.book, ignore_errors=True)
    source, pages = place.book / "source", place.book / "html"
    gather(place, source)
    if build_main(["-q", *options, "-d", str(place.book / "doctrees"), str(source), str(pages)]):
        raise RuntimeError("sphinx could not build the book: its reasons stand above")
    return pages / "index.html"


def main() -> int:
    """Build the book that the environment asks for; what cannot be built is one line on stderr and code 2."""
    try:
        print(build(place_asked(os.environ)))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"make book: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

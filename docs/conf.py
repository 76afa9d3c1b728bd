"""Sphinx's settings of the book. `make book` (pdlib/book.py) gathers its pages and builds them, without network."""

import re
from importlib.util import find_spec
from itertools import cycle, groupby

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

project = "PD-DDPM, reproduced in Jupyter"
html_title = "PD-DDPM in Jupyter"
html_theme = "furo"  # the reader's own fonts: nothing to fetch
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_copyright = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses for files
html_math_renderer = "mathml"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_image"]
myst_dmath_double_inline = True
myst_heading_anchors = 3
exclude_patterns = ["found.md", "run/**"]  # parts of other pages
suppress_warnings = [
    "ref.python",  # two classes of one name
    "toc.not_readable",  # a page that is not written yet
    "toc.not_included",  # a file that a page only points at
]

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # which has tables
nb_output_stderr = "remove"  # progress bars
nb_ipywidgets_js = {}  # sliders need a kernel
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]  # so their picture is shown

add_module_names = False
autodoc_default_options = {"exclude-members": "set"}  # which matplotlib gives to every figure
autodoc_inherit_docstrings = False
autodoc_mock_imports = [] if find_spec("triton") else ["triton"]
autodoc_member_order = "bysource"
napoleon_use_ivar = True
default_role = "code"  # docstrings write `names` with one backtick
maximum_signature_line_length = 110
toc_object_entries = False
python_use_unqualified_type_names = True

_MARK = re.compile(r"[*|]|_(?=\W|$)")
_PRIME = re.compile(r"<msup>(<mi>\w</mi>)(<mi>&#x02032;</mi>)</msup>")  # raised by itself: once is enough
_UNREAD = re.compile(r"<mi>(\\\w+|&)</mi>")


def mathml(tex: str, block: bool) -> str:
    """LaTeX as MathML, which browsers draw by themselves. ValueError for a command that the converter does not know."""
    drawn = convert(tex, display="block" if block else "inline")
    if unread := _UNREAD.search(drawn):
        raise ValueError(f"formula {tex!r}: {unread[1]} cannot be drawn")
    return _PRIME.sub(r"\1\2", drawn)


def _formula(self, node: nodes.Element, block: bool) -> None:
    try:
        drawn = mathml(node.astext(), block)
    except ValueError as error:
        logging.getLogger(__name__).warning("%s", error, location=node)
        drawn = self.encode(node.astext())
    self.body.append(f'<div class="formula">{drawn}</div>' if block else drawn)
    raise nodes.SkipNode


def plain_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are prose, not reStructuredText: tables of bars stay as they stand in the code, as do *, | and x_."""
    kept = []
    for is_table, rows in groupby(lines, lambda line: line.lstrip().startswith("|")):
        if is_table:
            kept += ["::", "", *(f"    {row.lstrip()}" for row in rows), ""]
        else:
            kept += [_escaped(row) for row in rows]
    lines[:] = kept


def _escaped(line: str) -> str:
    """A line whose marks mean themselves where they stand outside of backticks."""
    parts = line.split("`")
    return "`".join(part if odd else _MARK.sub(r"\\\g<0>", part) for part, odd in zip(parts, cycle((0, 1))))


def setup(app) -> None:
    """Hook into Sphinx."""
    inline, block = ((lambda self, node, block=block: _formula(self, node, block), None) for block in (False, True))
    app.add_html_math_renderer("mathml", inline, block)
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)  # before napoleon

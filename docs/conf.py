"""Sphinx: the pages of this folder, and the API from docstrings. `make docs` writes build/docs."""

import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cosegflow._version import __version__

project = "cosegflow"
author = "the authors of cosegflow"
copyright = "the authors of cosegflow, Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["images", "site"]
myst_heading_anchors = 4  # links to headings, by the names that code hosts give them

html_theme = "furo"  # its scripts, styles and fonts are files of the site: nothing comes from another host
html_title = f"cosegflow {release}"
html_static_path = ["site"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_sourcelink = False

# Docstrings: Google style; types stand in the signature, shapes and ranges in the text.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # what is returned in one sentence, as it was written
autodoc_member_order = "bysource"
autoclass_content = "both"  # a class, and how to make one
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
default_role = "py:obj"  # `match` in a docstring is a link where there is such a page entry, else code

nitpicky = True
nitpick_ignore_regex = [
    # Other libraries' types: their documentation is elsewhere, and a build must not need the network.
    (r"py:.*", r"(torch|nn|np|npt|numpy|torchmetrics|collections|typing|pathlib)\..*"),
    # Names of exceptions as docstrings give them, and types of ours that are no entry: only the main ones are.
    (r"py:exc", r"\w+Error|FitInterrupted"),
    (r"py:class", r"cosegflow\.(data|joint|metrics)\..*"),
    # Single backticks in docstrings also hold arguments and fields, which are no entries of the index.
    (r"py:obj", r".*"),
]


def _one_signature_each(app: Sphinx) -> None:
    """Shows the signature of the function itself where it has overloads: they say only which flag gives which type."""
    for name in ("match", "match_both", "soft_argmax", "warp"):
        analyzer = ModuleAnalyzer.for_module(f"cosegflow.ops.{name}")
        analyzer.analyze()
        analyzer.overloads.clear()


def _plain_prose(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are prose: |x| is a length, PCK@0.1 no address, and a field's "(B, N): ..." no type."""
    for i, line in enumerate(lines):
        parts = line.split("``")  # what is between them is code, and stays
        parts[::2] = [part.replace("|", "\\|").replace("@", "\\@") for part in parts[::2]]
        lines[i] = "``".join(parts)
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # a comment, which napoleon looks at instead


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _plain_prose, priority=400)  # napoleon is at 500
    app.connect("builder-inited", _one_signature_each)

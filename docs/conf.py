"""Sphinx settings: pages and notebooks are executed, and every warning is an error.

sphinx-build -W --keep-going -b html docs build/docs
"""

import os
import re
import tomllib
from pathlib import Path

from sphinx.util.nodes import make_refnode

_PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))

project = _PROJECT["project"]["name"]
version = release = _PROJECT["project"]["version"]
author = "The specsegdiff maintainers"
project_copyright = f"2026, {author}"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["**.ipynb_checkpoints"]

# `names` in docstrings are links where they can be
default_role = "py:obj"

autodoc_default_options = {"members": True, "special-members": "__call__"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

myst_heading_anchors = 3

# from scratch in every build, in a folder of its own: nothing is cached, and nothing is left behind
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
# nothing may complain there, but tqdm about widgets, which only live notebooks have
nb_output_stderr = "remove-warn"
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"

html_theme = "furo"
html_title = f"specsegdiff {version}"
html_show_sourcelink = False


def _plain(app, what, name, obj, options, lines):  # type: ignore[no-untyped-def]
    """Docstrings are plain text: |x| is no substitution, and "F. " does not begin a list."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``)", line)
        # of the same width, since it may stand in a table
        parts[::2] = [re.sub(r"\|(?=\S)(.*?\S)\|", "\u2223\\1\u2223", p) for p in parts[::2]]
        lines[number] = re.sub(r"^([A-Z])\. ", r"\\\1. ", "".join(parts))


def _elsewhere(app, env, node, shown):  # type: ignore[no-untyped-def]
    """A name of another module is a link where only one module has it."""
    if node.get("refdomain") != "py":
        return None
    end = "." + node["reftarget"]
    found = [
        (name, entry)
        for name, entry in env.domains.python_domain.objects.items()
        if name.endswith(end) and not entry.aliased
    ]
    if len(found) != 1:
        return None
    name, entry = found[0]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, [shown], name)


def setup(app):  # type: ignore[no-untyped-def]
    """Register what Sphinx asks us for."""
    app.connect("autodoc-process-docstring", _plain)
    app.connect("missing-reference", _elsewhere)

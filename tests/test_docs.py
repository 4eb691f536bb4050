"""The documentation: every public name is in it, its code and links hold, and it builds."""

import ast
import inspect
import io
import itertools
import json
import re
import runpy
import subprocess
import sys
import tomllib
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import specsegdiff as ssd

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
REFERENCE = sorted((DOCS / "reference").glob("*.md"))


def source_files() -> dict[str, Path]:
    """Files of all public modules of the library and of the baselines, by the module's name."""
    found = {}
    for package in ("specsegdiff", "baselines"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            # commands are documented by their help, see docs/reference/command-line.md
            if not name.startswith("specsegdiff.cli.") and "._" not in name:
                found[name] = path
    return found


MODULES = source_files()


def directives() -> dict[str, bool]:
    """Modules in the reference, and whether their members are shown."""
    block = re.compile(r"\.\. automodule:: (\S+)\n((?:   :.*\n)*)")
    return {
        name: ":no-members:" not in options
        for page in REFERENCE
        for name, options in block.findall(page.read_text("utf-8"))
    }


def is_public(name: str) -> bool:
    return not name.startswith("_")


def fenced(text: str, kinds: str) -> list[str]:
    """Contents of the fenced blocks of some kinds, a regular expression."""
    return re.findall(rf"^```(?:{kinds})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def unfenced(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public functions, classes and methods without a docstring, fields of configs without text."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in [node for node in tree.body if isinstance(node, definitions)]:
        if not is_public(node.name):
            continue
        if not ast.get_docstring(node):
            yield node.name
        for below in node.body if isinstance(node, ast.ClassDef) else ():
            if (
                isinstance(below, ast.FunctionDef)
                and is_public(below.name)
                and not ast.get_docstring(below)
            ):
                yield f"{node.name}.{below.name}"


# ---------------------------------------------------------------- public names


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    assert ast.get_docstring(tree), f"{name} has no docstring"
    assert list(undocumented(tree)) == []


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings of a module, and texts under its fields and constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""
        if isinstance(node, ast.Module | ast.ClassDef):
            for one, next_one in itertools.pairwise(node.body):
                if isinstance(one, ast.Assign | ast.AnnAssign) and isinstance(next_one, ast.Expr):
                    text = getattr(next_one.value, "value", None)
                    if isinstance(text, str):
                        yield inspect.cleandoc(text)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_are_what_sphinx_reads_them_as(name: str) -> None:
    pytest.importorskip("sphinx", reason="documentation needs the extra 'docs'")
    from docutils import core

    plain = runpy.run_path(str(DOCS / "conf.py"))["_plain"]
    for text in docstrings(ast.parse(MODULES[name].read_text("utf-8"))):
        lines = text.splitlines()
        plain(None, "", "", None, lines, lines)
        complaints = io.StringIO()
        core.publish_doctree(
            # a role that docutils knows for one that only Sphinx does
            "\n".join([".. default-role:: literal", "", *lines]),
            settings_overrides={"warning_stream": complaints, "report_level": 2},
        )
        assert complaints.getvalue() == "", text


def test_every_module_is_in_the_reference() -> None:
    shown = directives()
    missing = sorted(MODULES.keys() - shown.keys())
    assert missing == [], "add an automodule to a page in docs/reference for each of these"
    assert sorted(shown.keys() - MODULES.keys()) == []


def test_members_are_hidden_only_where_they_are_shown_elsewhere() -> None:
    hidden = [name for name, members in directives().items() if not members]
    for name in set(hidden) - {"specsegdiff.cli"}:
        tree = ast.parse(MODULES[name].read_text("utf-8"))
        own = [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and is_public(node.name)
        ]
        assert own == [], name


def test_the_short_names_are_in_the_reference() -> None:
    index = (DOCS / "reference" / "index.md").read_text("utf-8")
    homes = ssd._HOMES  # type: ignore[attr-defined]
    for name in ssd.__all__:
        assert f"`ssd.{name} <specsegdiff.{homes[name]}.{name}>`" in index, name


# ---------------------------------------------------------------- code in the pages


def python_blocks() -> Iterator[tuple[str, str]]:
    """Python in pages that no build executes, with the page's name."""
    for page in PAGES:
        for block in fenced(page.read_text("utf-8"), "python"):
            yield page.relative_to(ROOT).as_posix(), block


@pytest.mark.parametrize(("page", "code"), python_blocks())
def test_names_that_python_in_the_docs_imports_exist(page: str, code: str) -> None:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.startswith("specsegdiff.train"):
                pytest.importorskip("lightning", reason="training needs the extra 'train'")
            module = import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{page}: {node.module}.{alias.name}"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ssd":
            assert node.attr in ssd.__all__, f"{page}: ssd.{node.attr}"


def roles() -> list[tuple[str, str]]:
    """Names of ours that pages refer to, with the page's name."""
    return [
        (page.relative_to(ROOT).as_posix(), name)
        for page in PAGES
        for name in re.findall(r"\{py:obj\}`(?:[^`<]*<)?~?([\w.]+)>?`", page.read_text("utf-8"))
    ]


@pytest.mark.parametrize(("page", "name"), roles())
def test_names_that_pages_refer_to_exist(page: str, name: str) -> None:
    if name.startswith("specsegdiff.train"):
        pytest.importorskip("lightning", reason="training needs the extra 'train'")
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        if ".".join(parts[:cut]) in MODULES:
            found = import_module(".".join(parts[:cut]))
            for part in parts[cut:]:
                assert hasattr(found, part), f"{page}: {name}"
                found = getattr(found, part)
            return
    raise AssertionError(f"{page}: {name}")


# ---------------------------------------------------------------- links


def targets(text: str) -> list[str]:
    """Relative targets of links and pictures, without those in code."""
    prose = re.sub(r"`[^`\n]*`", "", unfenced(text))
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", unfenced(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


MARKDOWN = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_between_pages_resolve(page: Path) -> None:
    for link in targets(page.read_text("utf-8")):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), link


def test_every_page_is_reached_from_the_index() -> None:
    reached = {DOCS / "index.md"}
    todo = [DOCS / "index.md"]
    while todo:
        page = todo.pop()
        if page.suffix != ".md":
            continue
        for tree in fenced(page.read_text("utf-8"), r"\{toctree\}"):
            for line in filter(None, tree.splitlines()):
                if line.startswith(":"):
                    continue
                found = [
                    path
                    for path in page.parent.glob(f"{line}.*" if "*" not in line else line)
                    if path.suffix in (".md", ".ipynb")
                ]
                assert found, f"{page}: {line}"
                todo += [path for path in found if path not in reached]
                reached |= set(found)
    assert sorted({*PAGES, *NOTEBOOKS} - reached) == []


def test_pictures_have_a_text_for_those_who_cannot_see_them() -> None:
    for page in MARKDOWN:
        for alt, picture in re.findall(r"!\[(.*?)\]\((.*?)\)", page.read_text("utf-8")):
            assert len(alt) > 20, f"{page}: {picture}"
    for drawing in (DOCS / "images").glob("*.svg"):
        text = drawing.read_text("utf-8")
        assert "<title" in text, drawing
        assert "<desc" in text, drawing


# ---------------------------------------------------------------- results, notebooks, metadata


def test_the_results_page_holds_every_table_that_can_be_rendered() -> None:
    page = (DOCS / "results.md").read_text("utf-8")
    renderers = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))["RENDERERS"]
    assert "segmentation" in renderers
    for name in renderers:
        if (ROOT / "benchmarks" / "results" / f"{name}.json").exists():
            assert f"<!-- results:{name} -->" in page, name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"]] == []
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    required = {"cff-version", "message", "title", "authors"}
    assert required <= citation.keys()
    assert all(author.get("name") or author.get("family-names") for author in citation["authors"])


def test_the_changelog_knows_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## {re.escape(version)}$", changelog, re.MULTILINE)


# ---------------------------------------------------------------- the build


def inventory(content: bytes) -> set[str]:
    """Names that a built documentation describes: Sphinx's objects.inv, version 2."""
    lines = zlib.decompress(content.split(b"\n", 4)[4]).decode().splitlines()
    return {line.split(" ")[0] for line in lines if " py:" in line}


def public_names() -> set[str]:
    return {
        f"{module}.{node.name}"
        for module, path in MODULES.items()
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and is_public(node.name)
        and module != "specsegdiff.cli"
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the documentation, built with its code executed and warnings as errors."""
    for package in ("sphinx", "myst_nb", "furo", "ipykernel"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[docs]'")
    for package in ("lightning", "zennit", "captum", "peft", "pyarrow", "sklearn"):
        if find_spec(package) is None:
            pytest.skip(f"the reference imports {package}: pip install -e '.[test]'")
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", "2", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(folder / "trees"), str(DOCS), str(folder / "html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "html"


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(built: Path) -> None:
    shown = (built / "quickstart.html").read_text("utf-8")
    assert "regions hold" in shown, "the quickstart was not executed"
    assert sorted(public_names() - inventory((built / "objects.inv").read_bytes())) == []


@pytest.mark.slow
def test_the_first_notebook_in_a_browser(
    built: Path, browser: Any, photograph: Callable[..., None]
) -> None:
    tab = browser.new_page(viewport={"width": 1280, "height": 1100})
    tab.goto((built / "notebooks" / "first-explanation.html").as_uri())
    picture = tab.locator(".cell_output img").first
    assert picture.evaluate("image => image.complete && image.naturalWidth") > 500
    players = "[...document.querySelectorAll('audio')].map(audio => audio.duration)"
    tab.wait_for_function(f"{players}.length && {players}.every(duration => duration > 0)")
    assert "R1: " in tab.inner_text("article")
    photograph(tab, "notebook")


@pytest.mark.slow
def test_the_report_in_a_browser(
    browser: Any, photograph: Callable[..., None], tmp_path: Path
) -> None:
    """What `to_html` makes of the example: shown whole, with nothing fetched for it."""
    page = tmp_path / "report.html"
    page.write_text(ssd.explain(ssd.asset("example.flac")).to_html(), encoding="utf-8")
    tab = browser.new_page(viewport={"width": 1280, "height": 1100})
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    picture = tab.locator("img").first
    assert picture.evaluate("image => image.complete && image.naturalWidth") > 500
    assert picture.get_attribute("alt")
    players = "[...document.querySelectorAll('audio')].map(audio => audio.duration)"
    tab.wait_for_function(f"{players}.length && {players}.every(duration => duration > 0)")
    assert tab.locator("td", has_text="R1").first.is_visible()
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    photograph(tab, "report", full_page=True)

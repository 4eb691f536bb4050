"""What commands print and write."""

import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from specsegdiff.errors import OutputError


def make_folder(folder: Path) -> None:
    """Make a folder unless it is there; raises `OutputError` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {folder}: {error}; choose another folder") from error


def check_file(out: Path) -> None:
    """Raise `OutputError` before long work where its result could not be written after it."""
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError(f"{out} is a folder")
        with TemporaryFile(dir=out.parent):
            pass


def write_json(out: Path, result: object) -> None:
    """Write JSON; raises `OutputError` where that cannot be."""
    from specsegdiff.hub import write_atomic

    with _writing(out):
        write_atomic(out, json.dumps(result, indent=1).encode() + b"\n")


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {out}: {error}; choose a file in a writable folder"
        ) from error


def version_of(package: str) -> str:
    """Version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source"


def cell(score: Sequence[float] | None) -> str:
    """Text of a score, and of its interval where there is one."""
    if score is None:
        return "-"
    mean, *bounds = (f"{value:.1f}" for value in score)
    return f"{mean} [{', '.join(bounds)}]" if bounds else mean


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, heading: str = ""
) -> None:
    """Print a table; all columns but the first are numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        # as Text, so that brackets are no markup
        table.add_row(*map(Text, row))
    if heading:
        print(heading)
    Console(highlight=False).print(table)


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, in a terminal only."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(unit, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

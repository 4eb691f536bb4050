"""Folders that appear whole or not at all."""

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specsegdiff.errors import OutputError


@contextmanager
def replacing(folder: Path, *, marker: str) -> Iterator[Path]:
    """Give a temporary folder that takes the place of ``folder`` once the block ends without error.

    A folder that holds a file ``marker`` is one of ours, and is replaced; so is an empty one.
    Raises `OutputError` where the place holds something else, or cannot be written; it then stays
    as it was.
    """
    _check_free(folder, marker=marker)
    # a link to a folder stays, and what it leads to is replaced
    folder = folder.resolve()
    temporary = _hidden(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        _swap(temporary, folder)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {folder} ({error}); choose a writable folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces; raises `OSError` where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_free(folder: Path, *, marker: str) -> None:
    try:
        if folder.is_dir():
            if any(folder.iterdir()) and not (folder / marker).is_file():
                raise OutputError(f"{folder} holds no {marker}; choose a new or empty folder")
        elif folder.exists() or folder.is_symlink():
            raise OutputError(f"{folder} is a file, expected a folder; choose another name")
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot look into {folder} ({error}); choose another folder") from error


def _swap(temporary: Path, folder: Path) -> None:
    """Put a finished folder in its place; what was there goes only once the new one stands."""
    if not folder.exists():
        temporary.rename(folder)
        return
    aside = _hidden(folder)
    folder.rename(aside)
    try:
        temporary.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _hidden(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.{uuid.uuid4().hex}"

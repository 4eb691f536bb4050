"""Rows in a file as they come, a line a pair, so that a run that was killed goes on where it was.

A line is whole or it does not count: what a kill left of the last one is cut off on the next run.
"""

import base64
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specsegdiff.benchmark.scoring import Row
from specsegdiff.errors import ConfigError, OutputError
from specsegdiff.shapes import Mask


def open_journal(path: Path, settings: Mapping[str, Any]) -> list[Row]:
    """Rows that earlier runs left at ``path``; its folder is made, and this run's settings noted.

    ``settings`` are plain data. Those of earlier runs must be equal, except that the mapping
    ``methods`` may name other methods; raises `ConfigError` that names the setting otherwise, and
    where the file is not one of these. Raises `OutputError` where it cannot be written.
    """
    settings = json.loads(json.dumps(settings))
    rows: list[Row] = []
    known = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            entry = _parse(line, where=f"{path}, line {number}")
            rows += entry.get("rows", [])
            if "settings" in entry:
                _check_same(entry["settings"], settings, path)
                known = known or entry["settings"] == settings
        if not known:
            _append(path, {"settings": settings})
    except OSError as error:
        raise OutputError(
            f"cannot keep rows in {path}: {error}; choose a file in a writable folder"
        ) from error
    return rows


def note_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append the rows of one pair; on return they are on the disk."""
    try:
        _append(path, {"rows": list(rows)})
    except OSError as error:
        raise OutputError(
            f"cannot add to {path}: {error}; the rows before are kept, so run again to go on"
        ) from error


def pack(mask: Mask) -> str:
    """A mask ``(f, t)`` as text, about 5 kB for 5 % of a 513 x 400 plane; see `unpack`."""
    bits = zlib.compress(np.packbits(mask.numpy()).tobytes(), level=9)
    return f"{mask.shape[0]} {mask.shape[1]} {base64.b64encode(bits).decode()}"


def unpack(text: str) -> Mask:
    """Undo `pack`.

    >>> unpack(pack(torch.tensor([[True, False, True]])))
    tensor([[ True, False,  True]])
    """
    bins, frames, packed = text.split()
    bits = np.frombuffer(zlib.decompress(base64.b64decode(packed)), dtype=np.uint8)
    count = int(bins) * int(frames)
    flat = np.unpackbits(bits, count=count).astype(bool)
    return torch.from_numpy(flat).reshape(int(bins), int(frames))


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    with path.open("ab") as file:
        file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _parse(line: bytes, *, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or not entry.keys() <= {"rows", "settings"}:
        raise ConfigError(f"{where} is no line of this benchmark; choose another file")
    return entry


def _check_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], path: Path) -> None:
    for before, now in ((theirs, ours), (theirs.get("methods", {}), ours.get("methods", {}))):
        for name in before.keys() & now.keys() - {"methods"}:
            if before[name] != now[name]:
                raise ConfigError(
                    f"{path} holds rows of another {name}: {before[name]!r}, now {now[name]!r}; "
                    "choose another file, or remove this one to measure anew"
                )

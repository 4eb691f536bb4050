"""Manifests: pairs as the lines of a CSV."""

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path

from specsegdiff.data.pairs import Pair, PathLike, narrowest
from specsegdiff.errors import CorpusError, OutputError, PairError
from specsegdiff.hub import write_atomic

_REQUIRED = ("pair_id", "split", "vocoder", "real", "fake", "n_samples", "gain_db")
_OPTIONAL = ("family", "vocoder_seen_in_train", "source_group", "speaker", "band_hz", "align")
_RATES = ("sample_rate_original", "sample_rate_fake")


def read_manifest(
    path: PathLike, *, split: str | None = None, check_files: bool = False
) -> list[Pair]:
    """Read the pairs of a CSV, or of ``pairs.csv`` in a folder; paths are relative to its folder.

    Columns pair_id, split, vocoder, real, fake, n_samples and gain_db must be there; family,
    vocoder_seen_in_train, source_group, speaker, band_hz and align may; others are ignored. Without
    band_hz, it is half of the lower of sample_rate_original and sample_rate_fake, if below 8 kHz.
    ``split`` keeps one split; ``check_files`` looks for every file of the pairs kept. Raises
    `CorpusError` with the line's number.
    """
    table = Path(path)
    table = table / "pairs.csv" if table.is_dir() else table
    pairs: dict[str, Pair] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in _REQUIRED if name not in (reader.fieldnames or ())]
            if missing:
                raise CorpusError(
                    f"{table}, line 1: the columns {', '.join(missing)} are missing, expected "
                    f"{', '.join(_REQUIRED)}; add them (n_samples and gain_db may be empty cells)"
                )
            for row in reader:
                where = f"{table}, line {reader.line_num}"
                pair = _pair_of_row(row, folder=table.parent, where=where)
                if pair.id in pairs:
                    raise CorpusError(
                        f"{where}: pair_id {pair.id!r} came before; ids must be unique"
                    )
                pairs[pair.id] = pair
                if check_files and split in (None, pair.split):
                    _check_files(pair, where)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(
            f"cannot read the manifest {table}: {error}; pass a UTF-8 CSV or its folder"
        ) from error
    if split is None:
        return list(pairs.values())
    kept = [pair for pair in pairs.values() if pair.split == split]
    if not kept:
        splits = ", ".join(sorted({pair.split for pair in pairs.values()})) or "none"
        raise CorpusError(f"{table} has no pair in split {split!r}; its splits are: {splits}")
    return kept


def _pair_of_row(row: dict[str, str], *, folder: Path, where: str) -> Pair:
    # csv.DictReader puts surplus cells under None and fills absent ones with None
    if None in row or None in row.values():
        raise CorpusError(f"{where}: expected one cell per column; quote cells that hold a comma")
    for name in ("pair_id", "real", "fake"):
        if not row[name]:
            raise CorpusError(f"{where}: column {name} is empty, expected a value")
    rates = [_number(row.get(name, ""), name, where) for name in _RATES]
    seen = row.get("vocoder_seen_in_train", "")
    if seen not in ("", "0", "1"):
        raise CorpusError(
            f"{where}: vocoder_seen_in_train is {seen!r}, expected 0, 1 or an empty cell"
        )
    n_samples = _number(row["n_samples"], "n_samples", where)
    if n_samples is not None and n_samples != int(n_samples):
        raise CorpusError(f"{where}: n_samples is {row['n_samples']!r}, expected a whole number")
    band_hz = _number(row.get("band_hz", ""), "band_hz", where)
    if band_hz is None:
        band_hz = narrowest(*(rate and rate / 2 for rate in rates))
    try:
        return Pair(
            id=row["pair_id"],
            real=folder / row["real"],
            fake=folder / row["fake"],
            n_samples=None if n_samples is None else int(n_samples),
            gain_db=_number(row["gain_db"], "gain_db", where) or 0.0,
            vocoder=row["vocoder"],
            family=row.get("family", ""),
            split=row["split"],
            source_group=row.get("source_group", ""),
            speaker=row.get("speaker", ""),
            vocoder_seen=None if seen == "" else seen == "1",
            band_hz=band_hz,
            align=row.get("align") or "none",  # type: ignore[arg-type]  # Pair checks it
        )
    except PairError as error:
        raise CorpusError(f"{where}: {error}") from error


def _number(cell: str, name: str, where: str) -> float | None:
    try:
        value = float(cell) if cell else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise CorpusError(f"{where}: {name} is {cell!r}, expected a finite number or an empty cell")
    return value


def _check_files(pair: Pair, where: str) -> None:
    for name, file in (("real", pair.real), ("fake", pair.fake)):
        if not file.is_file():
            raise CorpusError(
                f"{where}: the {name} file {file} is missing; restore it or drop the line"
            )


def write_manifest(pairs: Iterable[Pair], path: PathLike) -> None:
    """Write pairs as a CSV that `read_manifest` reads back equal; it appears whole or not at all.

    Files below the CSV's folder get relative paths, so that the folder can be moved, others
    absolute ones. Raises `OutputError` where it cannot be written.
    """
    table = Path(path)
    folder = table.parent.absolute()
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow((*_REQUIRED, *_OPTIONAL))
    writer.writerows(_row_of_pair(pair, folder=folder) for pair in pairs)
    try:
        write_atomic(table, text.getvalue().encode())
    except OSError as error:
        raise OutputError(
            f"cannot write the manifest {table}: {error}; pass a file in a writable folder"
        ) from error


def _row_of_pair(pair: Pair, *, folder: Path) -> tuple[object, ...]:
    return (
        pair.id,
        pair.split,
        pair.vocoder,
        _relative(pair.real, folder),
        _relative(pair.fake, folder),
        "" if pair.n_samples is None else pair.n_samples,
        repr(pair.gain_db),
        pair.family,
        "" if pair.vocoder_seen is None else int(pair.vocoder_seen),
        pair.source_group,
        pair.speaker,
        "" if pair.band_hz is None else repr(pair.band_hz),
        pair.align,
    )


def _relative(file: Path, folder: Path) -> str:
    absolute = file.absolute()
    return (
        absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute
    ).as_posix()

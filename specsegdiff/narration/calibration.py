"""What measurements usually are: the `Reference` of `specsegdiff.narration.kinds`, from pairs.

python -m specsegdiff.narration.calibration ../shared/corpus
"""

import argparse
import dataclasses
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specsegdiff.cells import RegionGrid
from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import Pair, load_pair
from specsegdiff.errors import ConfigError
from specsegdiff.frontend import Axes, StftConfig
from specsegdiff.hub import write_atomic
from specsegdiff.narration.fields import Fields, fields_from_sound, frames_of
from specsegdiff.narration.kinds import FORMAT, SIGNS, Reference, Sign, Usual, judge
from specsegdiff.narration.measurements import change_name, measure_pair
from specsegdiff.narration.schema import FREQUENCIES, PHONES

LEAST_CELLS = 40
"Cells that a bound needs; groups with fewer take those of their whole band."

GENUINE_SHARE, CHANGED_SHARE, SPLICED_SHARE = 0.05, 0.25, 0.01
"""Shares that pass a bound: of genuine cells, of vocoded cells by their change, and, for splices,
of either, since none of them is one."""


@dataclass(frozen=True)
class Cell:
    """A cell of a pair, measured."""

    name: str
    "Genuine recording, its length, and the id of the cell."
    fields: Fields
    "Fields of the genuine recording."
    heard: Fields
    "Fields of the vocoded one."
    genuine: dict[str, float]
    "Its measurements."
    paired: dict[str, float]
    "Those of the vocoded recording beside it."


def measure_cells(pair: Pair) -> list[Cell]:
    """Measure the 16 cells of both members of a pair."""
    real, fake = load_pair(pair)
    axes = Axes(StftConfig(), len(real))
    grid = RegionGrid(axes)
    said, heard = frames_of(real, axes), frames_of(fake, axes)
    cells = []
    for id in grid.ids:
        box = grid.box(id)
        paired = measure_pair(fake, real, axes, box)
        genuine = {
            name: paired[name] - paired[change_name(name)]
            for name in paired
            if change_name(name) in paired
        }
        name = f"{pair.source_group} {len(real)} {id}"
        own = fields_from_sound(box, heard)
        cells.append(Cell(name, fields_from_sound(box, said), own, genuine, paired))
    return cells


def calibrate(cells: Sequence[Cell], *, source: str) -> Reference:
    """Take medians and bounds of measured cells; raises `ConfigError` where there are too few.

    A genuine cell counts once, however many vocoders copied it. A change is compared with no
    change, not with the median one: what all vocoders do is no less worth saying.
    """
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in {cell.name: cell for cell in cells}.values():
        for phone in (cell.fields.phone, "any"):
            groups[f"{cell.fields.frequency} {phone}"].append(cell)
    genuine = {}
    for band, phone in itertools.product(FREQUENCIES, PHONES):
        found = groups[f"{band} {phone}"]
        if len(found) < LEAST_CELLS:
            found = groups[f"{band} any"]
        genuine[f"{band} {phone}"] = {
            sign.measurement: _usual(
                [cell.genuine.get(sign.measurement) for cell in found], sign, GENUINE_SHARE
            )
            for sign in SIGNS.values()
        }
    changes = {
        sign.paired: _usual(
            [cell.paired.get(sign.paired) for cell in cells],
            sign,
            CHANGED_SHARE,
            middle=None if sign.with_twin else 0.0,
        )
        for sign in SIGNS.values()
    }
    return Reference(FORMAT, source, genuine, changes)


@dataclass(frozen=True)
class Trust:
    """How far a kind that is named without the twin can be trusted; shares in [0, 1]."""

    named: float
    "Vocoded cells in which a kind is named without the twin."
    named_in_genuine: float
    "Genuine cells in which one is named: a false alarm each."
    same: float
    "Of the cells in which one is named beside the twin too, those in which it is the same."
    same_by_chance: float
    "The same for names that are drawn alike but shuffled."


def trust(cells: Sequence[Cell], reference: Reference) -> Trust:
    """Judge cells with the twin and without it; NaN where no kind is named both ways."""
    alone, beside, genuine = [], [], []
    for cell in cells:
        own = {name: cell.paired[name] for name in cell.genuine}
        alone.append(judge(own, cell.heard, reference=reference).kind)
        beside.append(judge(cell.paired, cell.fields, reference=reference).kind)
        genuine.append(judge(cell.genuine, cell.fields, reference=reference).kind)
    both = [(a, b) for a, b in zip(alone, beside, strict=True) if a and b]
    first, second = Counter(a for a, _ in both), Counter(b for _, b in both)
    count = len(both) or math.nan
    return Trust(
        named=sum(kind is not None for kind in alone) / len(cells),
        named_in_genuine=sum(kind is not None for kind in genuine) / len(cells),
        same=sum(a == b for a, b in both) / count,
        same_by_chance=sum(first[kind] * second[kind] for kind in first) / count**2,
    )


def _usual(
    found: Iterable[float | None], sign: Sign, share: float, *, middle: float | None = None
) -> Usual:
    values = np.array([value for value in found if value is not None])
    if len(values) < LEAST_CELLS:
        raise ConfigError(
            f"{sign.measurement}: expected at least {LEAST_CELLS} cells of a band, got "
            f"{len(values)}; pass more pairs"
        )
    if sign.with_twin:
        share = SPLICED_SHARE
    centre = float(np.median(values)) if middle is None else middle
    bound = float(np.quantile(values, 1 - share if sign.direction > 0 else share))
    # four digits: the file is read by people, and nobody measures finer
    return Usual(round(centre, 4), round(bound, 4))


def main() -> None:
    """Measure a split of a corpus, and write ``reference.json`` beside this file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("pairs", type=Path, help="folder or manifest of pairs")
    parser.add_argument("--split", default="val")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "reference.json")
    options = parser.parse_args()
    pairs = read_manifest(options.pairs, split=options.split)
    cells = []
    for done, pair in enumerate(pairs, start=1):
        cells += measure_cells(pair)
        print(f"\r{done}/{len(pairs)}", end="", flush=True)
    recordings = len({pair.source_group for pair in pairs})
    source = f"{options.split}: {len(pairs)} pairs of {recordings} recordings, {len(cells)} cells"
    reference = calibrate(cells, source=source)
    print(f"\n{trust(cells, reference)}")
    text = json.dumps(dataclasses.asdict(reference), indent=2)
    write_atomic(options.out, text.encode() + b"\n")


if __name__ == "__main__":
    main()

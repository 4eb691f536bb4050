"""Rows of a corpus as training data: each once an epoch, over all processes and workers."""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from specsegdiff.bulk.parts import Marker, check_columns, finished_parts, rows_of
from specsegdiff.bulk.place import find_place
from specsegdiff.bulk.rows import Row


class CorpusRows(IterableDataset[Any]):
    """What `specsegdiff.bulk.explain_corpus` left in a folder, for a `torch.utils.data.DataLoader`.

    Parts are dealt to the processes of a training and to the workers of each, and one part is in
    memory at a time. The order of parts, and of the rows in each, hangs on ``seed`` and on the
    epoch that `set_epoch` names; without ``shuffle`` longer recordings come first. Rows of bad
    files are left out. ``columns`` are those of `specsegdiff.bulk.rows.schema`, and ``transform``
    makes an item of a row. ``rank`` and ``world`` are by default those that
    `specsegdiff.bulk.place.find_place` finds.

    With ``equal``, the default where there is more than one process, all processes and workers
    give as many items as the one with the fewest, since a collective step waits for all: what is
    left out differs from epoch to epoch. Raises what `specsegdiff.bulk.read_parts` raises, and
    `ConfigError` also for a rank outside its world.

    >>> from specsegdiff.bulk import mask_of
    >>> columns = ["id", "bins", "frames", "mask"]
    >>> masks = CorpusRows("maps", columns=columns, transform=mask_of)  # doctest: +SKIP
    """

    def __init__(
        self,
        out: str | Path,
        *,
        columns: Sequence[str] | None = None,
        transform: Callable[[Row], Any] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
        equal: bool | None = None,
    ) -> None:
        super().__init__()
        self.out = Path(out)
        check_columns(columns)
        self.columns = None if columns is None else list(columns)
        self.transform = transform
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.place = find_place(rank, world)
        self.equal = self.place.world > 1 if equal is None else equal
        self._parts = finished_parts(self.out)

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch that the next iteration is, as Lightning does before each one."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        shares = self._deal(self.place.world * workers)
        wanted = shares[self.place.rank * workers + worker]
        most = min(map(_good, shares)) if self.equal else None
        order = random.Random(f"{self.seed} {self.epoch} {self.place.rank} {worker}")
        # no part is read that gives nothing any more
        return islice(self._items(wanted, order), most)

    def _items(self, parts: Sequence[Marker], order: random.Random) -> Iterator[Any]:
        for part in parts:
            rows = [row for row in self._read(part) if row["error_type"] is None]
            if self.shuffle:
                order.shuffle(rows)
            for row in rows:
                if self.columns is not None:
                    row = {name: row[name] for name in self.columns}
                yield row if self.transform is None else self.transform(row)

    def _deal(self, count: int) -> list[list[Marker]]:
        """Parts of each reader; all processes deal alike."""
        parts = list(self._parts)
        if self.shuffle:
            random.Random(f"{self.seed} {self.epoch}").shuffle(parts)
        return [parts[place::count] for place in range(count)]

    def _read(self, marker: Marker) -> Iterator[Row]:
        columns = None if self.columns is None else [*{*self.columns, "error_type"}]
        return rows_of(self.out, [marker], columns)


def _good(parts: Sequence[Marker]) -> int:
    return sum(part.rows - part.errors for part in parts)

"""Rows as training data: each once an epoch, whoever reads them, and as many for everyone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from corpora import Tiny, write_corpus
from torch.utils.data import DataLoader

from specsegdiff.bulk import CorpusRows, explain_corpus, mask_of, read_parts
from specsegdiff.errors import CheckpointError, ConfigError, CorpusError


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 recordings, one of them bad, in eight parts or more."""
    out = tmp_path_factory.mktemp("maps")
    manifest = write_corpus(tmp_path_factory.mktemp("corpus"))
    explain_corpus(manifest, out, settings=Tiny(), workers=0, shard_seconds=2.0, progress=False)
    assert len(list(out.glob("parts/*.parquet"))) >= 8
    return out


@pytest.fixture(scope="module")
def good(maps: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in read_parts(maps) if row["error_type"] is None}


def ids(rows: CorpusRows) -> list[str]:
    return [row["id"] for row in rows]


def test_an_epoch_has_every_good_row_once(maps, good):
    rows = list(CorpusRows(maps))
    assert {row["id"]: row for row in rows} == good
    assert len(rows) == len(good) == 23


def test_without_shuffling_rows_come_as_they_are_stored(maps, good):
    assert ids(CorpusRows(maps, shuffle=False)) == list(good)


def test_the_order_hangs_on_seed_and_epoch_alone(maps):
    first, second = CorpusRows(maps), CorpusRows(maps)
    order = ids(first)
    assert ids(first) == ids(second) == order
    first.set_epoch(1)
    assert sorted(ids(first)) == sorted(order)
    assert ids(first) != order
    assert ids(CorpusRows(maps, seed=1)) != order


# more workers than cores are meant here
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_share_the_rows(maps, good, workers):
    loader = DataLoader(
        CorpusRows(maps, transform=_item),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork",
    )
    found = [name for name, _ in loader]
    assert sorted(found) == sorted(good)


def _item(row: dict[str, Any]) -> tuple[str, torch.Tensor]:
    return row["id"], torch.from_numpy(mask_of(row).copy())


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_rows_and_get_as_many_each(maps, good, world):
    shares = [ids(CorpusRows(maps, rank=rank, world=world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    given = [id for share in shares for id in share]
    assert len(set(given)) == len(given) > len(good) / 2
    assert set(given) <= set(good)
    whole = [ids(CorpusRows(maps, rank=rank, world=world, equal=False)) for rank in range(world)]
    assert sorted(id for share in whole for id in share) == sorted(good)


def test_what_is_left_out_changes_with_the_epoch(maps, good):
    seen = set()
    for epoch in range(8):
        for rank in range(3):
            rows = CorpusRows(maps, rank=rank, world=3)
            rows.set_epoch(epoch)
            seen |= set(ids(rows))
    assert seen == set(good)


def test_rank_and_world_are_those_of_torchrun(maps, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ids(CorpusRows(maps)) == ids(CorpusRows(maps, rank=1, world=2))


def test_columns_and_transform(maps, good):
    columns = ["id", "bins", "frames", "mask"]
    assert all(list(row) == columns for row in CorpusRows(maps, columns=columns))
    masks = list(CorpusRows(maps, columns=columns, transform=mask_of, shuffle=False))
    for mask, row in zip(masks, good.values(), strict=True):
        assert (mask == mask_of(row)).all()
    told = list(CorpusRows(maps, columns=["error_type"]))
    assert told == [{"error_type": None}] * len(good)


def test_what_cannot_be_read_is_said(maps, tmp_path):
    with pytest.raises(CorpusError, match=r"no run\.json"):
        CorpusRows(tmp_path)
    with pytest.raises(ConfigError, match="got rank=2, world=2"):
        CorpusRows(maps, rank=2, world=2)
    for reader in (CorpusRows, read_parts):
        with pytest.raises(ConfigError, match="no column masks; choose from id, path"):
            reader(maps, columns=["id", "masks"])
        with pytest.raises(ConfigError, match=r"names in a sequence, got 'id'; pass \['id'\]"):
            reader(maps, columns="id")
    part = sorted(maps.glob("parts/*.parquet"))[0]
    content = part.read_bytes()
    part.write_bytes(content[:-9])
    try:
        with pytest.raises(CheckpointError, match="changed or damaged"):
            list(CorpusRows(maps))
    finally:
        part.write_bytes(content)

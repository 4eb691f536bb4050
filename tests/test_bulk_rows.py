"""Rows: what is kept of an explanation comes back, and is what `explain` returns."""

import dataclasses

import numpy as np
import pytest
import torch
from models import make_model

from specsegdiff import api
from specsegdiff.bulk import (
    Settings,
    explain_corpus,
    heatmap_of,
    mask_of,
    read_parts,
    rows,
    thumbnail_of,
)
from specsegdiff.bulk.rows import error_row, pack_mask, row_of
from specsegdiff.data.audio import write_audio
from specsegdiff.errors import AudioError, ConfigError
from specsegdiff.explanation import assemble
from specsegdiff.frontend import StftConfig
from specsegdiff.hub import weights_hash
from specsegdiff.models.segdiff import PRESETS

RATE = 16_000


def explanation(frames=130, heat=None):
    """An explanation of noise with random heat ``(513, frames)``."""
    generator = torch.Generator().manual_seed(frames)
    wave = 0.1 * torch.randn(256 * (frames - 1), generator=generator)
    if heat is None:
        heat = torch.rand(513, frames, generator=generator)
    return assemble(
        heat,
        0 * heat,
        wave,
        config=StftConfig(),
        source="noise",
        model="none",
        weights_sha256="",
        seed=0,
        draws=1,
        steps=1,
    )


@pytest.mark.parametrize("frames", [8, 130, 2 * rows.BLOCK_FRAMES + 5])
def test_maps_come_back(frames):
    made = explanation(frames)
    row = row_of(made, full_maps=True)
    assert (row["bins"], row["frames"]) == (513, frames)
    assert len(row["mask"]) == 65 * frames
    np.testing.assert_array_equal(mask_of(row), made.mask.numpy())
    np.testing.assert_array_equal(heatmap_of(row), made.heatmap.half().numpy())
    assert row["regions"] == [dataclasses.asdict(region) for region in made.regions]
    assert row["samples_sha256"] == made.provenance.samples_sha256
    assert row["n_samples"] == 256 * (frames - 1)
    assert row["duration"] == pytest.approx(row["n_samples"] / RATE)
    assert row_of(made)["heatmap"] is None


@pytest.mark.parametrize("shape", [(1, 1), (8, 3), (9, 3), (513, 7)])
def test_masks_of_any_shape_are_packed(shape):
    mask = np.random.default_rng(0).random(shape) < 0.3
    row = {"bins": shape[0], "frames": shape[1], "mask": pack_mask(mask)}
    np.testing.assert_array_equal(mask_of(row), mask)


def test_thumbnails_are_mean_heat():
    # against torch's own pooling
    made = explanation(130)
    mean = torch.nn.functional.adaptive_avg_pool2d(made.heatmap.double()[None], (64, 64))[0]
    found = thumbnail_of(row_of(made))
    assert np.abs(found - 255 * mean.numpy()).max() <= 0.5 + 1e-6


def test_thumbnails_of_flat_and_short_maps():
    for level, grey in ((0.0, 0), (1.0, 255), (0.5, 128)):
        # rint rounds 127.5 to even
        found = thumbnail_of(row_of(explanation(5, torch.full((513, 5), level))))
        assert (found == grey).all()
    heat = torch.zeros(513, 128)
    heat[:257] = 1
    found = thumbnail_of(row_of(explanation(128, heat)))
    assert (found[:32] == 255).all()
    assert (found[33:] == 0).all()


def test_what_a_row_does_not_hold_is_said():
    row = row_of(explanation(8)) | {"id": "a"}
    with pytest.raises(ConfigError, match="'a' has no heatmap: it was not kept"):
        heatmap_of(row)
    bad = {"id": "b"} | error_row(AudioError("is\n  damaged"))
    assert bad["error"] == "is damaged"
    with pytest.raises(ConfigError, match="'b' has no thumbnail: is damaged"):
        thumbnail_of(bad)
    assert len(error_row(ValueError("x" * 5000))["error"]) == rows.ERROR_LENGTH


def test_a_map_that_no_cell_holds_is_refused(monkeypatch):
    made = explanation(8)
    monkeypatch.setattr(rows, "LARGEST", 2 * 513 * 8 - 1)
    with pytest.raises(AudioError, match="leave full maps out"):
        row_of(made, full_maps=True)
    assert row_of(made)["mask"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model, and three recordings: noise, silence, one that is too short."""
    folder = tmp_path_factory.mktemp("rows")
    make_model(PRESETS["tiny"], draws=2).save_pretrained(folder / "model")
    for i in range(2):
        wave = 0.1 * torch.randn(RATE // 2, generator=torch.Generator().manual_seed(i))
        write_audio(folder / f"noise{i}.wav", wave, sample_rate=RATE)
    write_audio(folder / "silence.wav", torch.zeros(RATE), sample_rate=RATE)
    write_audio(folder / "short.wav", torch.ones(100), sample_rate=RATE)
    return folder


def test_a_row_is_what_explain_returns(place, tmp_path):
    settings = Settings(model=str(place / "model"), detector=False, full_maps=True)
    torch.set_num_threads(2)
    summary = explain_corpus(place, tmp_path, settings=settings, workers=0, progress=False)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert (summary.files, summary.errors) == (4, 2)
    found = {row["id"]: row for row in read_parts(tmp_path)}
    model = type(make_model(PRESETS["tiny"])).from_pretrained(place / "model")
    for name in ("noise0.wav", "noise1.wav"):
        ex = api.explain(place / name, model=model, detector=False, progress=False)
        assert found[name] == {"id": name, "path": name, "error": None, "error_type": None} | (
            row_of(ex, full_maps=True)
        )
        np.testing.assert_array_equal(mask_of(found[name]), ex.mask.numpy())
        # half precision keeps 11 bits
        assert np.abs(heatmap_of(found[name]) - ex.heatmap.numpy()).max() <= 2**-12
    assert "digital silence" in found["silence.wav"]["error"]
    assert "one analysis window" in found["short.wav"]["error"]


@pytest.mark.slow
def test_processes_and_shards_change_no_bit_of_a_row(place, tmp_path):
    settings = Settings(model=str(place / "model"), detector=False, full_maps=True)
    found = []
    for workers, seconds in ((0, 600.0), (2, 0.6)):
        out = tmp_path / f"{workers}"
        explain_corpus(
            place, out, settings=settings, workers=workers, shard_seconds=seconds, progress=False
        )
        found.append(sorted(read_parts(out), key=lambda row: row["id"]))
    assert found[0] == found[1]


def test_settings_identify_what_rows_depend_on(place):
    settings = Settings(model=str(place / "model"), detector=False, precision="float32")
    model = settings._model()
    known = settings.identity()
    assert known["weights"] == {"model": weights_hash(model)}
    assert known["settings"]["draws"] == 2
    assert known["settings"]["precision"] == "float32"
    changes = {"draws": 3, "steps": 7, "seed": 1, "share": 0.1, "full_maps": True}
    other = dataclasses.replace(settings, detector=True, **changes).identity()
    for name, value in changes.items():
        assert other["settings"][name] == value != known["settings"][name]
    assert other["weights"]["detector"] == weights_hash(api.default_detector())


@pytest.mark.parametrize(
    "wrong", [{"draws": 0}, {"steps": 0}, {"share": 0.0}, {"share": 1.0}, {"precision": "float16"}]
)
def test_impossible_settings(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Settings(**wrong)


def test_each_process_takes_a_card(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert Settings(device="cuda")._device() == "cuda:3"
    assert Settings(device="cuda:1")._device() == "cuda:1"
    # a scheduler that shows each process its own card only
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert Settings(device="cuda")._device() == "cuda:0"

"""Regions against a slow pairwise replica and across block borders; the streamed top share."""

import itertools

import numpy as np
import pytest
import torch

from specsegdiff import grid
from specsegdiff.errors import ConfigError, OutputError, ShapeError
from specsegdiff.frontend import Axes, Stft, StftConfig
from specsegdiff.grid import Region, find_regions, top_share_mask
from specsegdiff.masks import top_share
from specsegdiff.storage import MapStore, MapWriter, load_store, save_store, spectrum_window

SMALL = StftConfig(sample_rate=1000, n_fft=64, hop=16)


def small_axes(frames):
    return Axes(SMALL, n_samples=(frames - 1) * SMALL.hop + 5)


def random_case(seed, frames=60, share=0.08):
    generator = torch.Generator().manual_seed(seed)
    heat = torch.rand(SMALL.n_freqs, frames, generator=generator)
    mask = torch.rand(SMALL.n_freqs, frames, generator=generator) < share
    return mask, heat, small_axes(frames)


def on_disk(value):
    writer = MapWriter(*value.shape, in_memory=False, dtype=value.dtype)
    for block in value.split(7, dim=1):
        writer.append(block)
    return writer.finish()


def slow_components(mask, reach):
    """Sets of bins, joined pair by pair: step at most ``reach`` in both directions."""
    left = {tuple(p) for p in mask.nonzero().tolist()}
    found = []
    while left:
        part, queue = set(), [left.pop()]
        while queue:
            f, t = queue.pop()
            part.add((f, t))
            near = {p for p in left if abs(p[0] - f) <= reach[0] and abs(p[1] - t) <= reach[1]}
            left -= near
            queue.extend(near)
        found.append(part)
    return found


@pytest.mark.parametrize("reach", [(1, 1), (3, 1), (1, 2), (4, 3)])
def test_regions_are_the_components_of_the_pairwise_rule(reach):
    mask, heat, axes = random_case(seed=1, share=0.04)
    regions = find_regions(mask, heat, axes, max_regions=10_000, min_bins=1, reach=reach)
    expected = slow_components(mask, reach)
    came = sorted((r.bins, round(r.score, 6)) for r in regions)
    slow = sorted((len(p), round(sum(float(heat[q]) for q in p) / len(p), 6)) for p in expected)
    assert len(came) == len(slow)
    # heat is summed in units of 2**-30: six decimals are certain
    assert np.array_equal(came, slow)
    assert sum(r.share for r in regions) == pytest.approx(1)


@pytest.mark.parametrize(
    ("block", "reach"), itertools.product([1, 2, 7, 59], [(1, 1), (3, 2), (2, 5)])
)
def test_blockwise_equals_whole(block, reach):
    for seed in range(3):
        mask, heat, axes = random_case(seed)
        options = {"max_regions": 30, "min_bins": 2, "reach": reach}
        whole = find_regions(mask, heat, axes, block_frames=10_000, **options)
        assert len(whole) > 3
        assert find_regions(mask, heat, axes, block_frames=block, **options) == whole
        stored = find_regions(on_disk(mask), on_disk(heat), axes, block_frames=block, **options)
        assert stored == whole


def test_a_region_as_long_as_the_recording_is_one():
    mask = torch.zeros(SMALL.n_freqs, 60, dtype=torch.bool)
    mask[5, :] = True
    # a U: two arms that meet in the last block only
    mask[15, :] = mask[25, :] = mask[15:26, 59] = True
    regions = find_regions(mask, mask.float(), small_axes(60), reach=(1, 1), block_frames=4)
    assert [r.bins for r in regions] == [129, 60]
    assert (regions[1].t0, regions[1].t1) == (0, small_axes(60).duration)


def test_box_has_the_outer_edges_of_its_bins():
    axes = small_axes(60)
    mask = torch.zeros(axes.shape, dtype=torch.bool)
    mask[4:8, 10:13] = True
    (region,) = find_regions(mask, 0.25 * mask, axes)
    dt, df = axes.seconds_per_frame, axes.hertz_per_bin
    assert (region.t0, region.t1) == pytest.approx((9.5 * dt, 12.5 * dt))
    assert (region.f0, region.f1) == pytest.approx((3.5 * df, 7.5 * df))
    assert (region.id, region.score, region.share, region.bins) == ("R1", 0.25, 1.0, 12)


def test_boxes_stay_inside_the_recording():
    for n in (1, 2, 15, 16, 17, 100):
        axes = Axes(SMALL, n_samples=n)
        mask = torch.ones(axes.shape, dtype=torch.bool)
        (region,) = find_regions(mask, mask.float(), axes)
        end = min(n / 1000, axes.extent[1])
        assert (region.t0, region.t1, region.f0, region.f1) == pytest.approx((0, end, 0, 500))


def test_order_is_by_sum_of_heat_then_time():
    axes = small_axes(60)
    mask = torch.zeros(axes.shape, dtype=torch.bool)
    heat = torch.full(axes.shape, 0.1)
    for frame in (40, 5, 20):
        mask[2:6, frame : frame + 4] = True
    mask[20:30, 50:55] = True
    heat[20:30, 50:55] = 0.9
    regions = find_regions(mask, heat, axes, block_frames=3)
    assert [r.id for r in regions] == ["R1", "R2", "R3", "R4"]
    starts = [round(r.t0 / axes.seconds_per_frame + 0.5) for r in regions]
    assert starts == [50, 5, 20, 40]
    assert find_regions(mask, heat, axes, max_regions=2) == regions[:2]


def test_harmonics_are_one_region_and_specks_are_none():
    axes = Axes(StftConfig(), n_samples=32_000)
    mask = torch.zeros(axes.shape, dtype=torch.bool)
    mask[10:100:8, 20:60] = True  # a voice at 125 Hz
    mask[300:303, 100:103] = True
    regions = find_regions(mask, mask.float(), axes)
    assert [r.bins for r in regions] == [12 * 40]
    assert regions[0].share == pytest.approx(480 / 489)


def test_an_empty_mask_has_no_regions():
    axes = small_axes(10)
    assert (
        find_regions(torch.zeros(axes.shape, dtype=torch.bool), torch.zeros(axes.shape), axes) == []
    )


def test_regions_refuse_what_does_not_fit():
    mask, heat, axes = random_case(0)
    with pytest.raises(ShapeError, match="bool mask"):
        find_regions(mask.float(), heat, axes)
    with pytest.raises(ShapeError, match="shape"):
        find_regions(mask[:, 1:], heat[:, 1:], axes)
    for bad in (float("nan"), -0.1, 1.1):
        with pytest.raises(ShapeError, match=r"\[0, 1\]"):
            find_regions(mask, torch.full_like(heat, bad), axes)
    for options in ({"max_regions": 0}, {"min_bins": 0}, {"reach": (0, 1)}, {"block_frames": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            find_regions(mask, heat, axes, **options)
    with pytest.raises(ConfigError, match="t0 < t1"):
        Region("R1", 2.0, 1.0, 0.0, 10.0, 0.5, 0.5, 3)


def slow_top(value, share):
    flat = value.flatten().double().numpy()
    order = np.argsort(-flat, kind="stable")
    mask = np.zeros(flat.size, bool)
    mask[order[: round(share * flat.size)]] = True
    return torch.from_numpy(mask.reshape(value.shape))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["smooth", "ties", "constant", "zeros", "signed", "tiny"])
def test_top_share_equals_the_sorted_one(kind, share, monkeypatch):
    # several blocks on a small map
    monkeypatch.setattr(grid, "BLOCK_FRAMES", 6)
    noise = torch.rand(17, 40, generator=torch.Generator().manual_seed(3))
    value = {
        "smooth": noise,
        "ties": (noise * 4).round() / 4,
        "constant": torch.zeros(17, 40),
        "zeros": torch.where(noise < 0.5, -0.0, 0.0),
        "signed": torch.where(noise < 0.3, -0.0, noise - 0.5),
        "tiny": noise * 1e-42,
    }[kind]
    expected = slow_top(value, share)
    assert torch.equal(top_share_mask(value, share=share).array, expected)
    assert torch.equal(top_share_mask(on_disk(value), share=share).array, expected)
    assert torch.equal(top_share(value, share=share), expected)


def test_top_share_refuses_nan_and_bad_shares():
    with pytest.raises(ShapeError, match="NaN"):
        top_share_mask(torch.tensor([[0.0, float("nan")]]))
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="share"):
            top_share_mask(torch.zeros(2, 2), share=share)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_store_gives_back_what_was_appended(in_memory, dtype, tmp_path):
    value = (torch.rand(9, 31, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)
    writer = MapWriter(9, 31, in_memory=in_memory, dtype=dtype)
    for block in value.split([1, 20, 10], dim=1):
        writer.append(block)
    store = writer.finish()
    del writer
    assert torch.equal(store.array, value)
    assert torch.equal(store.window(4, 11), value[:, 4:11])
    assert [start for start, _ in store.blocks(10)] == [0, 10, 20, 30]
    save_store(store, tmp_path / "map.npy")
    assert np.array_equal(np.load(tmp_path / "map.npy"), value.numpy())
    assert torch.equal(load_store(tmp_path / "map.npy", shape=(9, 31), dtype=dtype).array, value)
    view = store.array
    del store
    assert torch.equal(view, value)


def test_writing_into_a_mapped_view_leaves_the_file():
    store = on_disk(torch.zeros(3, 20))
    store.array[:] = 1
    assert not store.array.any()


def test_stores_refuse_what_does_not_fit(monkeypatch, tmp_path):
    writer = MapWriter(3, 10)
    with pytest.raises(ShapeError, match="append the rest"):
        writer.finish()
    for block in (torch.zeros(4, 2), torch.zeros(3, 11), torch.zeros(3)):
        with pytest.raises(ShapeError, match="next frames"):
            writer.append(block)
    for value in (torch.zeros(1, 3, 4), torch.zeros(0), torch.zeros(3, 4, dtype=torch.int64)):
        with pytest.raises(ShapeError, match="expected"):
            MapStore.of(value)
    with pytest.raises(ShapeError, match="window"):
        MapStore.of(torch.zeros(3, 4)).window(2, 5)
    with pytest.raises(ShapeError, match="one bin"):
        MapWriter(3, 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(OutputError, match="TMPDIR"):
        MapWriter(3, 10, in_memory=False)


def test_a_window_of_the_spectrum_is_that_of_the_whole():
    for n in (1, 40, 1000, 1601):
        wave = torch.randn(n, generator=torch.Generator().manual_seed(n))
        stft, store = Stft(SMALL), MapStore.of(wave)
        whole = stft(wave)
        for start, stop in itertools.combinations(range(0, whole.shape[1] + 1, 3), 2):
            part = spectrum_window(store, stft, start, stop)
            # float32 rounding of an FFT of 64 points of size 1
            assert torch.allclose(part, whole[:, start:stop], atol=1e-5)

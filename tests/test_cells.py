"""Cells against a slow replica and published edges: one division for masks, maps and pictures."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specsegdiff import cells, storage
from specsegdiff.cells import (
    Box,
    RegionGrid,
    SlicRegions,
    covered_share,
    pool,
    slic_regions,
    top_k,
    truth_cells,
    whole_plane,
)
from specsegdiff.errors import ConfigError, DependencyError, ShapeError
from specsegdiff.frontend import Axes, StftConfig
from specsegdiff.storage import MapWriter

SMALL = StftConfig(sample_rate=1000, n_fft=64, hop=16)
AXES = Axes(StftConfig(), 64_000)


def noise(axes, seed=0):
    return torch.rand(axes.shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------ grid


@settings(max_examples=30, deadline=None, database=None)
@given(
    n=st.integers(200, 3000),
    rows=st.integers(1, 5),
    columns=st.integers(1, 6),
    scale=st.sampled_from(["linear", "mel"]),
)
def test_a_bin_lies_in_the_box_of_its_cell(n, rows, columns, scale):
    axes = Axes(SMALL, n)
    grid = RegionGrid(axes, rows, columns, scale)
    boxes = [grid.box(id) for id in grid.ids]
    top = axes.config.sample_rate / 2
    for f, freq in enumerate(axes.freqs.tolist()):
        for t in range(0, axes.shape[1], 7):
            box = boxes[int(grid.labels[f, t])]
            assert box.f0 <= freq < box.f1 or freq == box.f1 == top
            # column edges are rounded, frame places are not
            assert box.t0 - 1e-9 <= float(axes.times[t]) < box.t1 + 1e-9


def test_ids_run_row_by_row_from_the_top_left():
    grid = RegionGrid(AXES)
    assert grid.ids == tuple(str(i) for i in range(1, 17))
    for number in range(1, 17):
        # GRIDEX's public code: row = (id - 1) // 4 from the top, column = (id - 1) % 4
        row, column = (number - 1) // 4, (number - 1) % 4
        expected = Box(column * 1.0, column + 1.0, 6000 - 2000 * row, 8000 - 2000 * row)
        assert grid.box(str(number)) == expected
    assert int(grid.labels[512, 0]) == 0
    assert int(grid.labels[0, -1]) == 15
    # 2000 Hz, on the edge, is the upper row's
    assert (int(grid.labels[127, 0]), int(grid.labels[128, 0])) == (12, 8)


def test_mel_rows_have_librosas_edges():
    grid = RegionGrid(AXES, scale="mel")
    # the edges of GRIDEX's pictures: 0.75, 1.69 and 3.68 kHz of 128 mel up to 8 kHz
    edges = [grid.box(id).f0 for id in ("1", "5", "9", "13")]
    assert edges == pytest.approx([3680, 1690, 750, 0], abs=5)
    assert grid.box("1").f1 == 8000
    librosa = pytest.importorskip("librosa")
    expected = librosa.mel_frequencies(5, fmin=0, fmax=8000)
    assert edges[::-1] == pytest.approx(expected[:4].tolist(), abs=1e-6)


def test_boxes_tile_the_plane():
    for scale in ("linear", "mel"):
        grid = RegionGrid(Axes(StftConfig(), 50_001), rows=3, columns=5, scale=scale)
        whole = whole_plane(grid.axes)
        area = sum((b.t1 - b.t0) * (b.f1 - b.f0) for b in map(grid.box, grid.ids))
        assert area == pytest.approx((whole.t1 - whole.t0) * whole.f1)
        assert sorted(grid.labels.unique().tolist()) == list(range(15))


def test_impossible_grids_are_refused():
    for rows, columns in ((0, 4), (4, 0), (4.0, 4), (True, 4)):
        with pytest.raises(ConfigError, match="positive integer"):
            RegionGrid(AXES, rows, columns)
    with pytest.raises(ConfigError, match="'linear' or 'mel'"):
        RegionGrid(AXES, scale="bark")
    with pytest.raises(ConfigError, match="column without a bin"):
        RegionGrid(Axes(StftConfig(), 600))
    with pytest.raises(ConfigError, match="row without a bin"):
        RegionGrid(AXES, rows=600)
    for id in ("0", "17", "R1", " 1", "01"):
        with pytest.raises(ConfigError, match="'1' to '16'"):
            RegionGrid(AXES).box(id)
    # one analysis window, the shortest that explain takes, still has four columns
    assert RegionGrid(Axes(StftConfig(), 1024)).count == 16


def test_a_box_has_an_extent():
    for sides in ((1, 1, 0, 2), (0, 1, 2, 2), (-1, 1, 0, 2), (0, float("nan"), 0, 2)):
        with pytest.raises(ConfigError, match="t0 < t1"):
            Box(*map(float, sides))


# ------------------------------------------------------------------ scores


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_pooling_is_its_slow_replica(reduce, monkeypatch):
    axes = Axes(SMALL, 1500)
    grid, value = RegionGrid(axes, 3, 4, "mel"), noise(axes) - 0.5
    slow = {"mean": np.mean, "sum": np.sum, "max": np.max}[reduce]
    expected = [slow(value.double().numpy()[grid.labels.numpy() == i]) for i in range(12)]
    assert pool(value, grid, reduce=reduce).tolist() == pytest.approx(expected, abs=1e-12)
    # blocks move no more than the last bits of a sum in float64
    monkeypatch.setattr(cells, "BLOCK_FRAMES", 17)
    assert pool(value, grid, reduce=reduce).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_file_pools_to_the_same_bits():
    axes = Axes(SMALL, 1500)
    grid, value = RegionGrid(axes), noise(axes)
    writer = MapWriter(*axes.shape, in_memory=False)
    writer.append(value)
    assert torch.equal(pool(writer.finish(), grid), pool(value, grid))


def test_pooling_refuses_other_axes_and_nan():
    grid, value = RegionGrid(AXES), noise(AXES)
    with pytest.raises(ShapeError, match="own axes"):
        pool(value[:, 1:], grid)
    value[3, 4] = torch.nan
    with pytest.raises(ShapeError, match="NaN"):
        pool(value, grid)
    with pytest.raises(ConfigError, match="reduce"):
        pool(noise(AXES), grid, reduce="median")


@settings(max_examples=40, deadline=None, database=None)
@given(scores=st.lists(st.integers(0, 3), min_size=1, max_size=12), data=st.data())
def test_the_best_come_first_and_ties_go_to_the_smaller_id(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    ids = [int(id) for id in top_k(scores, k)]
    keys = [(-scores[id - 1], id) for id in ids]
    assert keys == sorted((-s, i) for i, s in enumerate(scores, start=1))[:k]


def test_top_k_refuses_what_has_no_order():
    for k in (0, 3):
        with pytest.raises(ConfigError, match="1 to 2"):
            top_k([0.1, 0.2], k)
    with pytest.raises(ConfigError, match="NaN"):
        top_k([0.1, float("nan")], 1)


def test_truth_is_where_the_mask_covers_most():
    grid = RegionGrid(AXES)
    mask = torch.zeros(AXES.shape, dtype=torch.bool)
    mask[:10, 70:100] = True  # cell 14, 300 bins
    mask[500:520, :10] = True  # cell 1, 130 bins
    assert truth_cells(mask, grid) == ("14", "1")
    assert covered_share(mask, grid, ["14"]) == pytest.approx(300 / 430)
    assert covered_share(mask, grid, ["14", "1", "14"]) == 1
    assert covered_share(mask, grid, []) == 0
    assert truth_cells(torch.zeros_like(mask), grid) == ()
    assert covered_share(torch.zeros_like(mask), grid, ["3"]) == 0
    with pytest.raises(ShapeError, match="bool"):
        truth_cells(mask.float(), grid)
    with pytest.raises(ConfigError, match="id of a region"):
        covered_share(mask, grid, ["17"])


# ------------------------------------------------------------------ superpixels


def halves():
    """A loud upper right part on a quiet plane."""
    axes = Axes(SMALL, 1000)
    picture = torch.zeros(axes.shape)
    picture[20:, 40:] = 1.0
    return picture, axes


def test_superpixels_follow_the_picture():
    pytest.importorskip("skimage")
    picture, axes = halves()
    regions = slic_regions(picture, axes, segments=12, compactness=0.02)
    assert 4 <= regions.count <= 24
    # no region crosses the edge by more than a few bins
    loud = pool(picture, regions)
    assert float(torch.minimum(loud, 1 - loud).max()) < 0.1
    assert int(regions.labels[-1, 0]) == 0
    for id in regions.ids:
        f, t = (regions.labels == int(id) - 1).nonzero(as_tuple=True)
        box = regions.box(id)
        assert box.f0 <= float(axes.freqs[f].min())
        assert box.f1 >= float(axes.freqs[f].max())
        assert box.t0 <= float(axes.times[t].min())
        # the last frame may be centred on the end
        assert box.t1 >= float(axes.times[t].max()) - 1e-9
    assert torch.equal(
        slic_regions(7 * picture + 3, axes, segments=12, compactness=0.02).labels, regions.labels
    )


def test_superpixels_are_numbered_from_the_top_left():
    pytest.importorskip("skimage")
    picture, axes = halves()
    labels = slic_regions(picture, axes, segments=12).labels.flip(0)
    _, first = np.unique(labels.numpy(), return_index=True)
    assert (np.diff(first) > 0).all()


def test_a_division_by_hand_has_the_same_interface():
    axes = Axes(SMALL, 1000)
    labels = torch.zeros(axes.shape, dtype=torch.int64)
    labels[:11] = 1
    regions = SlicRegions(axes, labels)
    assert regions.ids == ("1", "2")
    assert pool((labels == 1).float(), regions).tolist() == [0, 1]
    assert truth_cells(labels == 1, regions, k=2) == ("2",)
    assert torch.equal(regions.label_window(3, 9), labels[:, 3:9])
    with pytest.raises(ShapeError, match="gaps"):
        SlicRegions(axes, 2 * labels)
    with pytest.raises(ShapeError, match="int64"):
        SlicRegions(axes, labels.float())


def test_superpixels_refuse_what_they_cannot_hold(monkeypatch):
    pytest.importorskip("skimage")
    picture, axes = halves()
    with pytest.raises(ShapeError, match="these axes"):
        slic_regions(picture[1:], axes)
    with pytest.raises(ConfigError, match="positive"):
        slic_regions(picture, axes, segments=0)
    # a picture without contrast still divides
    assert slic_regions(torch.ones(axes.shape), axes, segments=9).count > 1
    monkeypatch.setattr(cells, "IN_MEMORY_VALUES", 100)
    assert storage.IN_MEMORY_VALUES > 100
    with pytest.raises(ShapeError, match="RegionGrid"):
        slic_regions(picture, axes)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(DependencyError, match="superpixels"):
        slic_regions(*halves())

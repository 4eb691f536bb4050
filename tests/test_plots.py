"""Figures have the panels, the extents and the data they promise, at every length."""

import io

import numpy as np
import pytest
import torch

from specsegdiff.errors import ShapeError
from specsegdiff.frontend import Axes, StftConfig
from specsegdiff.grid import find_regions
from specsegdiff.plots import (
    MAX_COLUMNS,
    compare,
    explanation_figure,
    pool_columns,
    vocoder_figure,
)

SMALL = StftConfig(sample_rate=1000, n_fft=64, hop=16)


def case(n=3000):
    axes = Axes(SMALL, n_samples=n)
    wave = torch.randn(n, generator=torch.Generator().manual_seed(n)).mul(0.1)
    heat = torch.rand(axes.shape, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(axes.shape, dtype=torch.bool)
    mask[5:12, 10:20] = True
    return wave, heat, heat / 2, mask, axes


def titled(figure, name):
    return next(panel for panel in figure.axes if name in panel.get_ylabel())


def test_explanation_figure_shares_one_time_axis():
    wave, heat, spread, mask, axes = case()
    regions = find_regions(mask, heat, axes)
    figure = explanation_figure(wave, heat, spread, mask, axes, regions=regions, title="a $b_$ 50%")
    panels = [titled(figure, name) for name in ("waveform", "spectrogram", "heatmap", "spread")]
    # as mathematics it would fail when drawn, below
    assert panels[0].get_title() == "a $b_$ 50%"
    for panel in panels:
        assert panel.get_xlim() == pytest.approx(axes.extent[:2])
        for image in panel.images:
            assert image.get_extent() == pytest.approx(axes.extent)
    assert np.array_equal(panels[2].images[0].get_array(), heat.numpy())
    assert np.array_equal(panels[3].images[0].get_array(), spread.numpy())
    assert [text.get_text() for text in panels[1].texts] == ["R1"]
    figure.savefig(io.BytesIO(), format="png")
    # constrained layout has run: the colour bars took nothing from the time axis
    assert len({(p.get_position().x0, p.get_position().x1) for p in panels}) == 1


@pytest.mark.parametrize("name", ["spectrogram", "heatmap", "spread"])
def test_maps_read_in_grey_print(name):
    """More is always lighter, or always darker, and by most of what paper can show."""
    image = titled(explanation_figure(*case()), name).images[0]
    colours = image.get_cmap()(np.linspace(0, 1, 64))[:, :3]
    grey = colours @ [0.299, 0.587, 0.114]
    steps = np.diff(grey)
    assert (steps > 0).all() or (steps < 0).all()
    assert abs(grey[-1] - grey[0]) > 0.7


def test_outlines_read_in_grey_print():
    """A mask's edge has a black and a white line: one of them shows on any ground."""
    wave, heat, spread, mask, axes = case()
    lines = titled(explanation_figure(wave, heat, spread, mask, axes), "spectrogram").collections
    colours = sorted(tuple(line.get_edgecolor()[0][:3]) for line in lines)
    assert colours == [(0, 0, 0), (1, 1, 1)]


def test_mask_outline_lies_on_the_edges_of_its_bins():
    wave, heat, spread, mask, axes = case()
    figure = explanation_figure(wave, heat, spread, mask, axes)
    lines = titled(figure, "spectrogram").collections
    assert len(lines) == 2
    box = lines[0].get_paths()[0].get_extents()
    dt, df = axes.seconds_per_frame, axes.hertz_per_bin
    assert (box.x0, box.x1) == pytest.approx((9.5 * dt, 19.5 * dt))
    assert (box.y0, box.y1) == pytest.approx((4.5 * df, 11.5 * df))


@pytest.mark.parametrize("n", [1, 17, 40])
def test_shortest_recordings_and_empty_masks_are_drawn(n):
    wave, heat, spread, _, axes = case(n)
    mask = torch.zeros(axes.shape, dtype=torch.bool)
    for silent in (wave, torch.zeros(n)):
        figure = explanation_figure(silent, heat, spread * 0, mask, axes)
        figure.savefig(io.BytesIO(), format="png")


def test_long_maps_are_pooled_to_the_brightest_and_keep_their_place():
    # 3 frames a column are too few by one frame, and of 4 the last column has but one
    axes = Axes(SMALL, n_samples=3 * MAX_COLUMNS * SMALL.hop)
    heat = torch.zeros(axes.shape)
    heat[20, 5999] = 0.9
    mask = heat > 0
    figure = explanation_figure(torch.zeros(axes.n_samples), heat, heat, mask, axes)
    image = titled(figure, "heatmap").images[0]
    drawn = np.asarray(image.get_array())
    assert drawn.shape[1] <= MAX_COLUMNS
    assert drawn.max() == np.float32(0.9)
    t0, t1, _, _ = image.get_extent()
    column = drawn.argmax() % drawn.shape[1]
    edges = t0 + (t1 - t0) * np.array([column, column + 1]) / drawn.shape[1]
    assert edges[0] <= axes.times[5999] <= edges[1]
    assert titled(figure, "heatmap").get_xlim() == pytest.approx(axes.extent[:2])


def test_pooling_equals_the_slow_maximum_and_keeps_signs():
    value = torch.randn(5, 10_007, generator=torch.Generator().manual_seed(0))
    pooled = pool_columns(lambda a, b: value[:, a:b], 10_007)
    for column, part in enumerate(value.split(6, dim=1)):
        strongest = part.gather(1, part.abs().argmax(dim=1, keepdim=True))[:, 0]
        assert np.array_equal(pooled[:, column], strongest.numpy())
    assert pooled.shape == (5, 1668)


def test_compare_draws_each_map_under_its_name():
    _, heat, _, mask, axes = case()
    figure = compare({"ours": heat, "signed $x": heat - 0.5}, axes, mask=mask, title="maps")
    panels = [panel for panel in figure.axes if panel.get_ylabel() == "frequency (Hz)"]
    assert [panel.get_title(loc="left") for panel in panels] == ["ours", "signed $x"]
    limits = [panel.images[0].get_clim() for panel in panels]
    assert limits[0] == pytest.approx((0, float(heat.max())))
    assert limits[1][0] == -limits[1][1]
    assert all(panel.images[0].get_extent() == pytest.approx(axes.extent) for panel in panels)
    figure.savefig(io.BytesIO(), format="png")


def test_vocoder_figure_has_a_row_a_method_and_a_column_a_vocoder():
    _, heat, _, mask, axes = case()
    maps = {
        "ours": {"v1": heat, "v$_2": heat * 2},
        "signed": {"v1": heat - 0.5, "v$_2": torch.zeros(axes.shape)},
    }
    figure = vocoder_figure(maps, axes, masks={"v1": mask, "v$_2": ~mask}, title="one $_ voice")
    panels = np.array(figure.axes).reshape(2, 2)
    assert [panel.get_title() for panel in panels[0]] == ["v1", "v$_2"]
    assert [panel.get_ylabel() for panel in panels[:, 0]] == ["ours", "signed"]
    for panel in panels.flat:
        assert panel.get_xlim() == pytest.approx(axes.extent[:2])
        assert panel.images[0].get_extent() == pytest.approx(axes.extent)
        assert len(panel.collections) == 2  # the mask's outline, black on white
    assert np.array_equal(panels[0, 1].images[0].get_array(), (2 * heat).numpy())
    low, high = panels[1, 0].images[0].get_clim()
    assert low == -high
    # a bin that outshines the others does not darken them
    assert 0.45 < high < 0.5
    figure.savefig(io.BytesIO(), format="png")
    assert len({round(panel.get_position().width, 6) for panel in panels.flat}) == 1


def test_vocoder_figure_refuses_gaps():
    _, heat, _, mask, axes = case()
    for maps in ({}, {"a": {}}, {"a": {"v": heat}, "b": {"w": heat}}):
        with pytest.raises(ShapeError, match="same vocoders"):
            vocoder_figure(maps, axes)
    with pytest.raises(ShapeError, match="a mask for each"):
        vocoder_figure({"a": {"v": heat}}, axes, masks={"w": mask})
    with pytest.raises(ShapeError, match="on these axes"):
        vocoder_figure({"a": {"v": heat[1:]}}, axes)


def test_figures_refuse_other_shapes():
    wave, heat, spread, mask, axes = case()
    with pytest.raises(ShapeError, match="on these axes"):
        explanation_figure(wave, heat[:, 1:], spread, mask, axes)
    with pytest.raises(ShapeError, match="samples"):
        explanation_figure(wave[1:], heat, spread, mask, axes)
    with pytest.raises(ShapeError, match="on these axes"):
        compare({"ours": heat[1:]}, axes)
    with pytest.raises(ShapeError, match="at least one map"):
        compare({}, axes)

"""Areas under the ROC curve, their intervals, and the picture of them."""

import io

import pytest
import torch
from models import noise
from reference import roc_auc

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.probes.measure import auc_interval
from specsegdiff.probes.plot import auc_figure

TRUTH = torch.arange(40) % 3 == 0
GROUPS = [f"g{i // 5}" for i in range(40)]


def scores(seed, signal=1.0):
    # one decimal, so that there are ties
    return ((noise(40, scale=1.0, seed=seed) + signal * TRUTH) * 10).round() / 10


def slow(values, other, draws):
    """The areas of drawn groups, items repeated as often as their group was drawn."""
    areas = []
    for drawn in draws:
        rows = [i for name in drawn for i in range(40) if GROUPS[i] == f"g{name}"]
        areas.append(
            sum(
                sign * float(roc_auc(s[rows].numpy(), TRUTH[rows].numpy()))
                for sign, s in ((1, values), (-1, other))
                if s is not None
            )
        )
    return torch.tensor(areas, dtype=torch.float64)


@pytest.mark.parametrize("paired", [False, True])
def test_areas_are_those_of_a_slow_bootstrap(paired):
    values, other = scores(0), scores(1, 0.2) if paired else None
    found = auc_interval(values, TRUTH, GROUPS, against=other, resamples=60, seed=3)
    generator = torch.Generator().manual_seed(3)
    draws = torch.randint(8, (60, 8), generator=generator).tolist()
    areas = slow(values, other, draws)
    expected = areas.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert found[1:] == pytest.approx(expected)
    assert found[0] == pytest.approx(float(slow(values, other, [range(8)])[0]))


def test_laws_of_the_area():
    values = scores(0)
    area = auc_interval(values, TRUTH, GROUPS)
    assert auc_interval(values.exp(), TRUTH, GROUPS) == area
    assert auc_interval(-values, TRUTH, GROUPS)[0] == pytest.approx(1 - area[0])
    assert auc_interval(torch.zeros(40), TRUTH, GROUPS) == (0.5, 0.5, 0.5)
    assert auc_interval(values, TRUTH, GROUPS, against=values) == (0.0, 0.0, 0.0)
    assert area[1] < area[0] < area[2]


def test_draws_without_a_class_are_left_out():
    groups = ["real" if not spoof else "spoof" for spoof in TRUTH.tolist()]
    area, low, high = auc_interval(scores(0), TRUTH, groups)
    assert area == pytest.approx(low) == pytest.approx(high)


def test_what_has_no_area_is_refused():
    values = scores(0)
    for bad in (values[:-1], values.masked_fill(TRUTH, torch.nan), values.long()):
        with pytest.raises(ShapeError):
            auc_interval(bad, TRUTH, GROUPS)
    with pytest.raises(ShapeError, match="both classes"):
        auc_interval(values, torch.ones(40, dtype=torch.bool), GROUPS)
    with pytest.raises(ShapeError):
        auc_interval(values, TRUTH, GROUPS[:-1])
    with pytest.raises(ShapeError, match="per item"):
        auc_interval(values, TRUTH, GROUPS, against=values[:-1])
    with pytest.raises(ConfigError):
        auc_interval(values, TRUTH, GROUPS, level=1.0)


def test_the_figure_shows_every_row_with_its_interval():
    rows = [
        {"group": "one", "region": "vowel", "auc": {"seen": (0.9, 0.8, 0.95), "val": (1, 1, 1)}},
        {"group": "one", "region": "pa$u_se", "auc": {"unseen": (0.6, 0.5, 0.7)}},
        {"group": "two", "region": "all", "auc": {}},
    ]
    figure = auc_figure(rows, title="a $b_$ 50%")
    first, second = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["vowel", "pa$u_se"]
    spans = [tuple(line.get_xdata()) for line in first.lines if len(line.get_xdata()) == 2]
    assert (0.8, 0.95) in spans
    assert (0.5, 0.7) in spans
    assert [text.get_text() for text in second.texts] == ["nowhere in both classes"]
    assert [text.get_text() for text in figure.legends[0].texts] == [
        "seen vocoders",
        "unseen vocoders",
    ]
    figure.savefig(io.BytesIO(), format="png")
    with pytest.raises(ShapeError, match="one row"):
        auc_figure([])

"""The equal error rate: hand cases, laws, and scikit-learn's ROC curve.

Rates are ratios of exact counts in float64: 1e-12 is far above their rounding.
"""

import numpy as np
import pytest
import torch

from specsegdiff.errors import ShapeError
from specsegdiff.metrics.detection import eer, eer_by_group

EXACT = 1e-12


def sample(seed, *, n=200, spoofed=0.7, shift=1.0, levels=None):
    """Random scores, higher for spoof by ``shift``; with ``levels``, rounded so that most tie."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(n, generator=generator) < spoofed
    scores = torch.randn(n, generator=generator) + shift * truth
    return (scores * levels).round() / levels if levels else scores, truth


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ([3.0, 2.0, 1.0, 0.0], "ssrr", 0.0),
        ([3.0, 2.0, 1.0, 0.0], "rrss", 1.0),
        ([3.0, 2.0, 1.0, 0.0], "srsr", 0.5),
        ([1.0, 1.0, 1.0], "srr", 0.5),
        # one of three each way at the third threshold
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], "ssrsrr", 1 / 3),
        # from (0 alarms, 1/2 missed) straight to (1/3, 0): they meet at (1/5, 1/5)
        ([2.0, 1.0, 1.0, 0.0, 0.0], "ssrrr", 1 / 5),
        # unequal classes: between (0, 1/3) and (1/2, 1/3) both are 1/3
        ([4.0, 3.0, 2.0, 1.0, 0.0], "ssrsr", 1 / 3),
    ],
)
def test_cases_by_hand(scores, truth, expected):
    is_spoof = torch.tensor([letter == "s" for letter in truth])
    assert eer(torch.tensor(scores), is_spoof) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("shift", [-0.5, 0.0, 1.5])
def test_it_is_where_scikit_learns_roc_curve_meets_the_diagonal(levels, shift):
    from scipy.optimize import brentq
    from sklearn.metrics import roc_curve

    for seed in range(5):
        scores, truth = sample(seed, shift=shift, levels=levels)
        alarms, hits, _ = roc_curve(truth.numpy(), scores.numpy(), drop_intermediate=False)

        # along the curve by arc length, since it has vertical steps
        def gap(place, alarms=alarms, hits=hits):
            steps = np.arange(len(alarms))
            return np.interp(place, steps, alarms) + np.interp(place, steps, hits) - 1

        place = brentq(gap, 0, len(alarms) - 1, xtol=1e-13)
        expected = np.interp(place, np.arange(len(alarms)), alarms)
        assert eer(scores, truth) == pytest.approx(expected, abs=1e-10)  # brentq's tolerance


@pytest.mark.parametrize("levels", [None, 2])
def test_laws(levels):
    scores, truth = sample(7, levels=levels)
    rate = eer(scores, truth)
    assert 0 < rate < 0.5
    # only the order counts, not the place in the list
    assert eer(scores.exp() * 3 - 1, truth) == pytest.approx(rate, abs=EXACT)
    shuffled = torch.randperm(len(scores), generator=torch.Generator().manual_seed(1))
    assert eer(scores[shuffled], truth[shuffled]) == pytest.approx(rate, abs=EXACT)
    # both classes are treated alike
    assert eer(-scores, ~truth) == pytest.approx(rate, abs=EXACT)
    assert eer(-scores, truth) == pytest.approx(1 - rate, abs=EXACT)
    # repeating one class changes no rate
    more = torch.cat([scores, scores[truth]]), torch.cat([truth, truth[truth]])
    assert eer(*more) == pytest.approx(rate, abs=EXACT)


def test_each_group_is_measured_against_all_bona_fide():
    scores, truth = sample(3)
    groups = ["abc"[i % 3] if spoof else f"real{i}" for i, spoof in enumerate(truth.tolist())]
    rates = eer_by_group(scores, truth, groups)
    assert list(rates) == ["a", "b", "c"]
    for name, rate in rates.items():
        keep = torch.tensor([g == name for g in groups]) | ~truth
        assert rate == eer(scores[keep], truth[keep])
    same = eer_by_group(scores, truth, ["x"] * len(truth))
    assert same == {"x": eer(scores, truth)}


@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        (torch.rand(3), torch.tensor([True, True, True]), "both classes"),
        (torch.rand(3), torch.tensor([False, False, False]), "both classes"),
        (torch.rand(0), torch.zeros(0, dtype=torch.bool), "both classes"),
        (torch.rand(3), torch.tensor([True, False]), "one bool per item"),
        (torch.rand(2), torch.tensor([1, 0]), "one bool per item"),
        (torch.rand(2, 1), torch.tensor([[True], [False]]), "one bool per item"),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([True, False]), "finite"),
        (torch.tensor([2, 1]), torch.tensor([True, False]), "floating"),
    ],
)
def test_what_has_no_rate_is_refused(scores, truth, message):
    with pytest.raises(ShapeError, match=message):
        eer(scores, truth)


def test_a_group_for_each_item_is_needed():
    scores, truth = sample(0, n=4)
    with pytest.raises(ShapeError, match="one group per item"):
        eer_by_group(scores, truth, ["a"])

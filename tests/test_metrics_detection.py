"""The equal error rate: hand cases, laws, and scikit-learn's ROC curve.

Rates are ratios of exact counts in float64: 1e-12 is far above their rounding.
"""

import numpy as np
import pytest
import torch

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.metrics.detection import (
    ASVErrors,
    asv_errors,
    asvspoof_eer,
    eer,
    eer_by_group,
    min_tdcf,
)

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


# ------------------------------------------------------------------ ASVspoof's scripts


def official_curve(accept, refuse):
    """``compute_det_curve`` of the challenge's eval_metrics.py, trial by trial."""
    ranked = [(score, 0, True) for score in accept] + [(score, 1, False) for score in refuse]
    ranked.sort(key=lambda item: item[:2])
    misses, alarms = 0, len(refuse)
    curve = [(0.0, 1.0, ranked[0][0] - 0.001)]
    for score, _, good in ranked:
        misses, alarms = misses + good, alarms - (not good)
        curve.append((misses / len(accept), alarms / len(refuse), score))
    return curve


def official_eer(accept, refuse):
    """``compute_eer``: rate and threshold."""
    miss, alarm, threshold = min(official_curve(accept, refuse), key=lambda p: abs(p[0] - p[1]))
    return (miss + alarm) / 2, threshold


def official_asv(target, nontarget, spoof):
    """``obtain_asv_error_rates``: false alarms, misses, and spoofs that are refused."""
    _, threshold = official_eer(target, nontarget)
    return (
        sum(score >= threshold for score in nontarget) / len(nontarget),
        sum(score < threshold for score in target) / len(target),
        sum(score < threshold for score in spoof) / len(spoof),
    )


def official_2019(bona_fide, spoof, asv):
    """``compute_tDCF`` of 2019, called ``compute_tDCF_legacy`` in 2021."""
    alarm_asv, miss_asv, miss_spoof_asv = asv
    p_target, p_nontarget, p_spoof = 0.95 * 0.99, 0.95 * 0.01, 0.05
    c1 = p_target * (1 - 1 * miss_asv) - p_nontarget * 10 * alarm_asv
    c2 = 10 * p_spoof * (1 - miss_spoof_asv)
    return min(c1 * m + c2 * f for m, f, _ in official_curve(bona_fide, spoof)) / min(c1, c2)


def official_2021(bona_fide, spoof, asv):
    """``compute_tDCF`` of 2021."""
    alarm_asv, miss_asv, miss_spoof_asv = asv
    p_target, p_nontarget, p_spoof = 0.95 * 0.99, 0.95 * 0.01, 0.05
    c0 = p_target * 1 * miss_asv + p_nontarget * 10 * alarm_asv
    c1 = p_target * 1 - (p_target * 1 * miss_asv + p_nontarget * 10 * alarm_asv)
    c2 = p_spoof * 10 * (1 - miss_spoof_asv)
    curve = official_curve(bona_fide, spoof)
    return min(c0 + c1 * m + c2 * f for m, f, _ in curve) / (c0 + min(c1, c2))


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("seed", range(4))
def test_asvspoof_numbers_are_those_of_the_official_formulas(seed, levels):
    scores, truth = sample(seed, n=150, levels=levels, shift=0.5 + 0.5 * seed)
    bona_fide, spoof = (-scores[~truth]).tolist(), (-scores[truth]).tolist()
    draw = torch.Generator().manual_seed(99 + seed)
    target, nontarget, attack = (
        centre + torch.randn(n, generator=draw) for centre, n in ((3.0, 40), (0.0, 70), (1.5, 55))
    )
    if levels:
        target, nontarget, attack = (
            (x * levels).round() / levels for x in (target, nontarget, attack)
        )
    found = asv_errors(target, nontarget, attack)
    alarm, miss, refused = official_asv(target.tolist(), nontarget.tolist(), attack.tolist())
    assert found.alarm == pytest.approx(alarm, abs=EXACT)
    assert found.miss == pytest.approx(miss, abs=EXACT)
    assert found.alarm_spoof == pytest.approx(1 - refused, abs=EXACT)
    asv = (alarm, miss, refused)
    assert asvspoof_eer(scores, truth) == pytest.approx(
        official_eer(bona_fide, spoof)[0], abs=EXACT
    )
    for edition, official in ((2019, official_2019), (2021, official_2021)):
        expected = official(bona_fide, spoof, asv)
        assert min_tdcf(scores, truth, found, edition=edition) == pytest.approx(expected, abs=EXACT)
        assert 0 < expected <= 1


def test_a_tandem_with_a_perfect_detector_and_with_a_useless_one():
    asv = ASVErrors(miss=0.02, alarm=0.03, alarm_spoof=0.5)
    truth = torch.tensor([True] * 3 + [False] * 3)
    perfect, wrong = torch.arange(6.0).flip(0), torch.arange(6.0)
    c0 = 0.95 * 0.99 * 0.02 + 0.95 * 0.01 * 10 * 0.03
    assert min_tdcf(perfect, truth, asv, edition=2019) == 0
    floor = c0 / (c0 + 0.05 * 10 * 0.5)
    assert min_tdcf(perfect, truth, asv, edition=2021) == pytest.approx(floor, abs=EXACT)
    for edition in (2019, 2021):
        assert min_tdcf(wrong, truth, asv, edition=edition) == pytest.approx(1, abs=EXACT)
        # a threshold for all scores alike is a threshold still
        assert min_tdcf(7 * wrong - 3, truth, asv, edition=edition) == pytest.approx(1, abs=EXACT)


def test_without_ties_both_equal_error_rates_are_near():
    for seed in range(20):
        scores, truth = sample(seed)
        smaller = min(int(truth.sum()), int((~truth).sum()))
        assert abs(asvspoof_eer(scores, truth) - eer(scores, truth)) <= 1 / smaller


def test_what_is_no_tandem_is_refused():
    truth = torch.tensor([True, False, False])
    scores, asv = torch.tensor([0.3, 0.2, 0.1]), ASVErrors(0.1, 0.1, 0.5)
    with pytest.raises(ConfigError, match="edition"):
        min_tdcf(scores, truth, asv, edition=2020)
    with pytest.raises(ShapeError, match="soft scores"):
        min_tdcf(torch.tensor([1.0, 0.0, 0.0]), truth, asv, edition=2019)
    with pytest.raises(ConfigError, match="nothing to save"):
        min_tdcf(scores, truth, ASVErrors(1.0, 1.0, 0.5), edition=2021)
    with pytest.raises(ConfigError, match="nothing to save"):
        min_tdcf(scores, truth, ASVErrors(0.1, 0.1, 0.0), edition=2019)
    with pytest.raises(ConfigError, match=r"ASVErrors\.miss.*percent"):
        ASVErrors(5.0, 0.1, 0.5)
    with pytest.raises(ShapeError, match="both classes"):
        asvspoof_eer(scores, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ShapeError, match="spoof scores"):
        asv_errors(scores, scores, torch.zeros(0))

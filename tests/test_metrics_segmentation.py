"""Segmentation scores: known chance levels, slow replicas, other libraries, torchmetrics twins.

Scores are ratios of exact counts in float32: 1e-6 is eight units in the last place at 1.
"""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import reference
import torch

from specsegdiff import metrics
from specsegdiff.errors import ConfigError, ShapeError

EXACT = {"atol": 1e-6, "rtol": 0}
MASK_SCORES = ["foreground_dice", "iou", "precision", "recall"]
MAP_SCORES = ["average_precision", "roc_auc"]
WEIGHTS = ["square", "simple", "linear"]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_mask(share, *, seed, shape=(4, 9, 7)):
    return torch.rand(shape, generator=generator(seed)) < share


def tied_map(*, seed, shape=(4, 9, 7)):
    """Few distinct scores, so that most bins are tied; -0.0 and 0.0 are one of them."""
    levels = torch.randint(-3, 4, shape, generator=generator(seed)).float() / 4
    return torch.where(random_mask(0.5, seed=seed + 1, shape=shape), levels, -levels)


def rows_and_columns(hits):
    """Two masks of 5 % of 20 x 20 bins that share ``hits`` of 20; independent masks share one."""
    truth = torch.zeros(1, 20, 20, dtype=torch.bool)
    truth[:, 0] = True
    prediction = torch.zeros_like(truth)
    prediction[:, 0, :hits] = True
    prediction[:, 1, hits:] = True
    return prediction, truth


# -- anchors -------------------------------------------------------------------------------------


def test_chance_at_five_per_cent_is_9_50_per_cent():
    prediction, truth = rows_and_columns(1)
    chance = pytest.approx(0.0950, abs=5e-5)  # the last stated digit
    assert metrics.generalized_dice(prediction, truth).item() == chance
    assert metrics.generalized_dice(torch.zeros_like(truth), truth).item() == chance
    assert metrics.generalized_dice(torch.ones_like(truth), truth).item() == chance
    simple = metrics.generalized_dice(prediction, truth, weight="simple").item()
    assert simple == pytest.approx(0.5, abs=1e-6)
    linear = metrics.generalized_dice(prediction, truth, weight="linear").item()
    assert linear == pytest.approx(0.905, abs=1e-6)
    background = metrics.generalized_dice(prediction, truth, include_background=False).item()
    assert background == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize("hits", [0, 1, 7, 20])
def test_gdice_is_affine_in_dice_at_five_per_cent(hits):
    prediction, truth = rows_and_columns(hits)
    dice = metrics.foreground_dice(prediction, truth).item()
    assert dice == pytest.approx(hits / 20, abs=1e-6)
    # both published coefficients are rounded to four digits
    assert metrics.generalized_dice(prediction, truth).item() == pytest.approx(
        0.9526 * dice + 0.0474, abs=1e-4
    )


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_a_perfect_mask_scores_one(share, weight):
    truth = random_mask(share, seed=0)
    ones = torch.ones(4)
    torch.testing.assert_close(metrics.generalized_dice(truth, truth, weight=weight), ones, **EXACT)
    for name in MASK_SCORES:
        assert torch.equal(getattr(metrics, name)(truth, truth), ones)


def test_a_perfect_ranking_scores_one_and_a_constant_one_chance():
    truth = random_mask(0.3, seed=1)
    for name in MAP_SCORES:
        assert torch.equal(getattr(metrics, name)(truth.float(), truth), torch.ones(4))
    flat = torch.full(truth.shape, 0.5)
    share = truth.float().mean((1, 2))
    torch.testing.assert_close(metrics.average_precision(flat, truth), share, **EXACT)
    assert torch.equal(metrics.roc_auc(flat, truth), torch.full((4,), 0.5))
    reverse = metrics.roc_auc(-truth.float(), truth)
    assert torch.equal(reverse, torch.zeros(4))


def test_empty_masks():
    none = torch.zeros(1, 4, 5, dtype=torch.bool)
    some = none.clone()
    some[0, 0, :3] = True
    for name in MASK_SCORES:
        score = getattr(metrics, name)
        assert score(none, none).item() == 1
        assert score(some, none).item() == 0
        assert score(none, some).item() == 0
    # the absent foreground takes the background's weight, so GDice is the share of right bins
    right = metrics.generalized_dice(some, none).item()
    assert right == pytest.approx(1 - 3 / 20, abs=1e-6)
    assert metrics.generalized_dice(some, none, include_background=False).item() == 0
    assert metrics.average_precision(some.float(), none).isnan().item()
    assert metrics.roc_auc(some.float(), none).isnan().item()
    assert metrics.roc_auc(some.float(), ~none).isnan().item()


def test_large_maps_do_not_overflow():
    truth = torch.zeros(1, 513, 8000, dtype=torch.bool)
    truth[0, 0, 0] = True
    assert metrics.generalized_dice(truth, truth).item() == pytest.approx(1, abs=1e-6)
    assert metrics.generalized_dice(~truth, truth).item() == pytest.approx(0, abs=1e-6)
    assert metrics.roc_auc(truth.float(), truth).item() == 1


# -- slow replicas and other libraries -----------------------------------------------------------


@pytest.mark.parametrize("shares", [(0.05, 0.05), (0.4, 0.2), (0.0, 0.3), (0.3, 0.0), (0.5, 1.0)])
def test_mask_scores_match_the_slow_replica(shares):
    prediction, truth = random_mask(shares[0], seed=2), random_mask(shares[1], seed=3)
    pairs = list(zip(prediction.numpy(), truth.numpy(), strict=True))
    for name in MASK_SCORES:
        slow = torch.tensor([getattr(reference, name)(p, t) for p, t in pairs])
        fast = getattr(metrics, name)(prediction, truth)
        torch.testing.assert_close(fast, slow.float(), **EXACT)
    for weight in WEIGHTS:
        slow = torch.tensor([reference.generalized_dice(p, t, weight=weight) for p, t in pairs])
        fast = metrics.generalized_dice(prediction, truth, weight=weight)
        torch.testing.assert_close(fast, slow.float(), **EXACT)
    alone = metrics.generalized_dice(prediction, truth, include_background=False)
    assert torch.equal(alone, metrics.foreground_dice(prediction, truth))


@pytest.mark.parametrize("name", MAP_SCORES)
@pytest.mark.parametrize("tied", [True, False])
def test_map_scores_match_the_slow_replica(name, tied):
    shape = (4, 9, 7)
    scores = tied_map(seed=4) if tied else torch.randn(shape, generator=generator(4))
    truth = random_mask(0.2, seed=5)
    pairs = zip(scores.numpy(), truth.numpy(), strict=True)
    slow = torch.tensor([getattr(reference, name)(s, t) for s, t in pairs])
    torch.testing.assert_close(getattr(metrics, name)(scores, truth), slow.float(), **EXACT)


@pytest.mark.parametrize("tied", [True, False])
def test_map_scores_match_scikit_learn(tied):
    sklearn = pytest.importorskip("sklearn.metrics")
    shape = (3, 40, 30)
    noise = tied_map(seed=6, shape=shape) if tied else torch.randn(shape, generator=generator(6))
    truth = random_mask(0.05, seed=8, shape=shape)
    scores = noise + 0.5 * truth
    for ours, theirs in (
        (metrics.average_precision, sklearn.average_precision_score),
        (metrics.roc_auc, sklearn.roc_auc_score),
    ):
        pairs = zip(scores.flatten(1).numpy(), truth.flatten(1).numpy(), strict=True)
        expected = torch.tensor([theirs(t, s) for s, t in pairs])
        torch.testing.assert_close(ours(scores, truth), expected.float(), **EXACT)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_gdice_matches_torchmetrics_on_single_items(weight):
    # single items with both classes present: elsewhere torchmetrics mixes the batch's weights
    theirs = pytest.importorskip("torchmetrics.functional.segmentation").generalized_dice_score
    prediction, truth = random_mask(0.3, seed=9), random_mask(0.2, seed=10)
    for p, t in zip(prediction.split(1), truth.split(1), strict=True):
        expected = theirs(p.long(), t.long(), 2, weight_type=weight, input_format="index")
        ours = metrics.generalized_dice(p, t, weight=weight)
        torch.testing.assert_close(ours, expected.reshape(1), **EXACT)


# -- batches and valid bins ----------------------------------------------------------------------


def every_score(scores, prediction, truth, valid):
    results = {name: getattr(metrics, name)(scores, truth, valid=valid) for name in MAP_SCORES}
    for name in ["generalized_dice", *MASK_SCORES]:
        results[name] = getattr(metrics, name)(prediction, truth, valid=valid)
    return results


@pytest.mark.parametrize("masked", [True, False])
def test_an_item_never_influences_its_neighbours(masked):
    shape = (5, 33, 41)
    scores = torch.randn(shape, generator=generator(11))
    truth = random_mask(0.2, seed=12, shape=shape)
    truth[2] = False  # an absent class is where torchmetrics looks at the neighbours
    truth[3] = True
    prediction = random_mask(0.3, seed=13, shape=shape)
    prediction[4] = False
    valid = random_mask(0.7, seed=14, shape=shape) if masked else None
    batch = every_score(scores, prediction, truth, valid)
    for item in range(5):
        keep = None if valid is None else valid[item : item + 1]
        alone = every_score(*(x[item : item + 1] for x in (scores, prediction, truth)), keep)
        for name, value in alone.items():
            same = torch.equal(batch[name][item : item + 1], value)
            assert same or (value.isnan() and batch[name][item].isnan()), name


def test_bins_that_are_not_valid_do_not_count():
    shape = (3, 12, 10)
    scores = torch.randn(shape, generator=generator(15))
    prediction, truth = (
        random_mask(0.4, seed=16, shape=shape),
        random_mask(0.3, seed=17, shape=shape),
    )
    valid = torch.zeros(shape, dtype=torch.bool)
    valid[:, :8] = True
    masked = every_score(scores, prediction, truth, valid)
    cropped = every_score(scores[:, :8], prediction[:, :8], truth[:, :8], None)
    for name, value in masked.items():
        assert torch.equal(value, cropped[name]), name


def test_monotone_rescaling_changes_no_ranking():
    scores, truth = (
        torch.rand(2, 20, 20, generator=generator(18)),
        random_mask(0.1, seed=19, shape=(2, 20, 20)),
    )
    for name in MAP_SCORES:
        score = getattr(metrics, name)
        assert torch.equal(score(scores, truth), score(4 * scores.double() - 8, truth))


def test_auc_of_the_complement_mirrors():
    scores, truth = tied_map(seed=20), random_mask(0.3, seed=21)
    total = metrics.roc_auc(scores, truth) + metrics.roc_auc(scores, ~truth)
    torch.testing.assert_close(total, torch.ones(4), **EXACT)


def test_evaluate_is_every_function_at_both_masks():
    heatmap, truth = (
        torch.rand(2, 10, 10, generator=generator(22)),
        random_mask(0.1, seed=23, shape=(2, 10, 10)),
    )
    heatmap[0, 0, 0] = 0.75  # the threshold itself stays out
    own_top = random_mask(0.05, seed=24, shape=(2, 10, 10))
    valid = random_mask(0.9, seed=25, shape=(2, 10, 10))
    results = metrics.evaluate(heatmap, truth, own_top=own_top, threshold=0.75, valid=valid)
    expected = {name: getattr(metrics, name)(heatmap, truth, valid=valid) for name in MAP_SCORES}
    for name in ["generalized_dice", *MASK_SCORES]:
        score = getattr(metrics, name)
        expected[f"{name}_top"] = score(own_top, truth, valid=valid)
        expected[f"{name}_threshold"] = score(heatmap > 0.75, truth, valid=valid)
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(results[name], value), name


# -- bad input -----------------------------------------------------------------------------------

MASK = torch.ones(2, 3, 4, dtype=torch.bool)


@pytest.mark.parametrize("name", ["generalized_dice", *MASK_SCORES, *MAP_SCORES])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truth": MASK[:, :, :3]}, "has shape"),
        ({"truth": MASK.float()}, "truth as a bool mask, got torch.float32"),
        ({"valid": MASK.long()}, "valid as a bool mask, got torch.int64"),
        ({"valid": MASK[:1]}, "has shape"),
        ({"valid": torch.tensor([True, False])[:, None, None] & MASK}, r"no bin in items \[1\]"),
        ({"first": MASK[:0]}, "non-empty"),
        ({"first": None}, "NoneType"),
        ({"first": MASK[0], "truth": MASK[0]}, r"as \(b, f, t\), got shape \(3, 4\)"),
    ],
)
def test_bad_input_is_a_typed_error(name, change, message):
    first = MASK.float() if name in MAP_SCORES else MASK
    arguments = {"first": first, "truth": MASK, "valid": None} | change
    if name in MAP_SCORES and isinstance(arguments["first"], torch.Tensor):
        arguments["first"] = arguments["first"].float()
    with pytest.raises(ShapeError, match=message):
        getattr(metrics, name)(arguments["first"], arguments["truth"], valid=arguments["valid"])


@pytest.mark.parametrize("name", MAP_SCORES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_must_be_finite_and_floating(name, value):
    score = getattr(metrics, name)
    broken = MASK.float()
    broken[0, 0, 0] = value
    with pytest.raises(ShapeError, match="1 values that are not finite"):
        score(broken, MASK)
    with pytest.raises(ShapeError, match=r"got torch\.bool"):
        score(MASK, MASK)


def test_predictions_must_be_masks_and_weights_known():
    with pytest.raises(ShapeError, match="prediction as a bool mask"):
        metrics.iou(MASK.float(), MASK)
    with pytest.raises(ConfigError, match="'cubic'"):
        metrics.generalized_dice(MASK, MASK, weight="cubic")


# -- torchmetrics classes ------------------------------------------------------------------------

TWINS = {
    "GeneralizedDice": "generalized_dice",
    "ForegroundDice": "foreground_dice",
    "IoU": "iou",
    "AveragePrecision": "average_precision",
}


def batches(name, *, sizes=(3, 1, 2)):
    shape = (sum(sizes), 9, 7)
    first = (
        torch.randn(shape, generator=generator(26))
        if name == "AveragePrecision"
        else random_mask(0.3, seed=26, shape=shape)
    )
    truth, valid = random_mask(0.2, seed=27, shape=shape), random_mask(0.8, seed=28, shape=shape)
    return list(zip(*(x.split(sizes) for x in (first, truth, valid)), strict=True))


@pytest.mark.parametrize("name", TWINS)
def test_classes_equal_their_functional_twins(name):
    metric = getattr(metrics, name)()
    twin = getattr(metrics, TWINS[name])
    scores = []
    for first, truth, valid in batches(name):
        metric.update(first, truth, valid=valid)
        scores.append(twin(first, truth, valid=valid))
    # batches of three, one and two: a mean of batch means would differ in the second digit
    torch.testing.assert_close(metric.compute(), torch.cat(scores).mean(), **EXACT)
    metric.reset()
    first, truth, _ = batches(name)[0]
    metric.update(first, truth)
    torch.testing.assert_close(metric.compute(), twin(first, truth).mean(), **EXACT)


@pytest.mark.parametrize("name", TWINS)
def test_states_reduce_across_processes(name):
    # each process asks for the same states in the same order; the other's answers are kept here
    states = [{}, {}]

    def gather(value, group=None):
        name = next(names)
        return [state[name] for state in states]

    whole = getattr(metrics, name)()
    parts = [
        getattr(metrics, name)(dist_sync_fn=gather, distributed_available_fn=lambda: True)
        for _ in states
    ]
    for index, (first, truth, valid) in enumerate(batches(name)):
        whole.update(first, truth, valid=valid)
        parts[index % 2].update(first, truth, valid=valid)
    states = [part.metric_state for part in parts]
    for part in parts:
        names = iter(states[0])
        torch.testing.assert_close(part.compute(), whole.compute(), **EXACT)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(whole)))
    assert torch.equal(copied.compute(), whole.compute())


def test_options_of_generalized_dice_reach_the_function():
    first, truth, _ = batches("GeneralizedDice")[0]
    for options in ({"weight": "simple"}, {"weight": "linear"}, {"include_background": False}):
        metric = metrics.GeneralizedDice(**options)
        metric.update(first, truth)
        expected = metrics.generalized_dice(first, truth, **options).mean()
        torch.testing.assert_close(metric.compute(), expected, **EXACT)


def test_items_without_a_true_bin_leave_average_precision_alone():
    metric = metrics.AveragePrecision()
    scores, truth = (
        torch.rand(2, 5, 6, generator=generator(29)),
        random_mask(0.4, seed=30, shape=(2, 5, 6)),
    )
    truth[1] = False
    metric.update(scores[1:], truth[1:])
    assert metric.compute().isnan()
    metric.update(scores, truth)
    expected = metrics.average_precision(scores[:1], truth[:1])[0]
    torch.testing.assert_close(metric.compute(), expected, **EXACT)


def test_a_collection_keeps_scores_apart_that_agree_on_the_first_batch():
    torchmetrics = pytest.importorskip("torchmetrics")
    members = {
        "gdice": metrics.GeneralizedDice(),
        "simple": metrics.GeneralizedDice(weight="simple"),
        "dice": metrics.ForegroundDice(),
        "iou": metrics.IoU(),
    }
    collection = torchmetrics.MetricCollection(members)
    collection.update(MASK, MASK)
    prediction, truth = random_mask(0.4, seed=31), random_mask(0.3, seed=32)
    collection.update(prediction, truth)
    results = collection.compute()
    for name, score in (
        ("gdice", metrics.generalized_dice(prediction, truth)),
        ("simple", metrics.generalized_dice(prediction, truth, weight="simple")),
        ("dice", metrics.foreground_dice(prediction, truth)),
        ("iou", metrics.iou(prediction, truth)),
    ):
        expected = torch.cat([torch.ones(2), score]).mean()
        torch.testing.assert_close(results[name], expected, **EXACT)


def test_torchmetrics_is_not_imported_before_a_class_is_used():
    code = "import sys, specsegdiff.metrics; assert 'torchmetrics' not in sys.modules"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=paths)
    with pytest.raises(AttributeError, match="no attribute 'Dice'"):
        _ = metrics.Dice


# -- bootstrap -----------------------------------------------------------------------------------


def test_interval_matches_every_possible_draw_of_groups():
    values, groups = [0.1, 0.25, 0.5, 0.6, 0.95], ["a", "b", "a", "c", "b"]
    # 27 equally likely draws; at 9/27 and 15/27 both quantiles lie amid one of them, six
    # standard errors of 20,000 samples away from the next
    for level in (15 / 27, 9 / 27):
        ours = metrics.bootstrap_interval(
            torch.tensor(values, dtype=torch.float64), groups, level=level, resamples=20_000
        )
        expected = reference.bootstrap_interval(values, groups, level=level)
        np.testing.assert_allclose(ours, expected, atol=1e-12)  # rounding of float64 sums


def test_interval_of_single_items_is_that_of_the_normal_mean():
    values = torch.randn(400, generator=generator(33), dtype=torch.float64)
    low, high = metrics.bootstrap_interval(values, [str(index) for index in range(400)])
    error = values.std(correction=0).item() / 20
    # a 2.5 % quantile of 2,000 draws is known to 0.06 standard errors; three times that
    assert low == pytest.approx(values.mean().item() - 1.96 * error, abs=0.18 * error)
    assert high == pytest.approx(values.mean().item() + 1.96 * error, abs=0.18 * error)


def test_copies_within_a_group_narrow_nothing():
    values = torch.rand(12, generator=generator(34), dtype=torch.float64)
    groups = [f"speaker{index}" for index in range(12)]
    once = metrics.bootstrap_interval(values, groups)
    often = metrics.bootstrap_interval(values.repeat(10), groups * 10)
    np.testing.assert_allclose(often, once, atol=1e-12)  # rounding of float64 sums
    single = metrics.bootstrap_interval(values.repeat(10), [str(index) for index in range(120)])
    assert single[1] - single[0] < 0.6 * (once[1] - once[0])


def test_interval_is_repeatable_and_ignores_order_and_global_seed():
    values = torch.rand(30, generator=generator(35), dtype=torch.float64)
    groups = [f"g{index % 7}" for index in range(30)]
    before = torch.get_rng_state()
    first = metrics.bootstrap_interval(values, groups, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    order = torch.randperm(30, generator=generator(36))
    shuffled = metrics.bootstrap_interval(values[order], [groups[index] for index in order], seed=1)
    np.testing.assert_allclose(shuffled, first, atol=1e-12)  # rounding of float64 sums
    assert metrics.bootstrap_interval(values, groups, seed=1) == first
    assert metrics.bootstrap_interval(values, groups, seed=2) != first
    wide = metrics.bootstrap_interval(values, groups, seed=1, level=0.99)
    assert wide[0] < first[0] < values.mean() < first[1] < wide[1]


@pytest.mark.parametrize(
    ("values", "groups", "options", "error"),
    [
        (torch.rand(3), ["a", "b"], {}, ShapeError),
        (torch.rand(2, 1), ["a", "b"], {}, ShapeError),
        (torch.rand(2), ["a", "a"], {}, ShapeError),
        (torch.rand(0), [], {}, ShapeError),
        (torch.tensor([0.1, float("nan")]), ["a", "b"], {}, ShapeError),
        (torch.rand(2), ["a", "b"], {"level": 95.0}, ConfigError),
        (torch.rand(2), ["a", "b"], {"resamples": 0}, ConfigError),
    ],
)
def test_interval_refuses_what_has_none(values, groups, options, error):
    with pytest.raises(error):
        metrics.bootstrap_interval(values, groups, **options)

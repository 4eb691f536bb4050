"""Ranking scores against published examples, scikit-learn, slow replicas, and their laws."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specsegdiff.cells import top_k
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.metrics.ranking import (
    evaluate_ranking,
    ndcg_binary,
    ndcg_graded,
    ranked_average_precision,
    recall_at_k,
)

IDS = [str(number) for number in range(1, 17)]
ALL = (recall_at_k, ndcg_binary, ndcg_graded, ranked_average_precision)

lists = st.lists(st.sampled_from(IDS), max_size=8, unique=True)
truths = st.lists(st.sampled_from(IDS), min_size=1, max_size=4, unique=True)
quick = settings(max_examples=80, deadline=None)


def test_scores_by_hand():
    predicted, truth = ["11", "3", "15"], ["15", "14", "11"]
    discount = [1, 1 / math.log2(3), 0.5]
    assert recall_at_k(predicted, truth) == pytest.approx(2 / 3)
    assert ndcg_binary(predicted, truth) == pytest.approx(1.5 / sum(discount))
    best = 7 * discount[0] + 3 * discount[1] + 1 * discount[2]
    assert ndcg_graded(predicted, truth) == pytest.approx((1 * 1 + 7 * 0.5) / best)
    assert ranked_average_precision(predicted, truth) == pytest.approx((1 + 2 / 3) / 3)


@given(truths)
@quick
def test_the_truth_scores_one_and_its_complement_nothing(truth):
    k = len(truth)
    others = [id for id in IDS if id not in truth]
    for score in ALL[:3]:
        assert score(truth, truth, k=k) == pytest.approx(1)
        assert score(others, truth, k=k) == 0
    assert ranked_average_precision(truth, truth) == pytest.approx(1)


@given(lists, truths, st.integers(1, 5))
@quick
def test_scores_lie_between_nothing_and_one_and_silence_gains_nothing(predicted, truth, k):
    for score in ALL[:3]:
        value = score(predicted, truth, k=k)
        assert 0 <= value <= 1 + 1e-12
        assert score(predicted[:-1], truth, k=k) <= value
        # what stands behind place k is not looked at
        assert score(predicted[:k], truth, k=k) == value
        assert score([], truth, k=k) == 0
    assert ranked_average_precision([], truth) == 0


def test_only_graded_scores_know_the_order_of_the_truth():
    truth = ["1", "2", "3"]
    for order in itertools.permutations(truth):
        predicted = list(order)
        assert ndcg_binary(predicted, truth) == pytest.approx(1)
        assert recall_at_k(predicted, truth) == ranked_average_precision(predicted, truth) == 1
        assert (ndcg_graded(predicted, truth) == pytest.approx(1)) == (predicted == truth)


@given(st.lists(st.integers(-50, 50), min_size=16, max_size=16, unique=True), truths)
@quick
def test_ndcg_and_precision_are_scikit_learns(scores, truth):
    from sklearn.metrics import average_precision_score, ndcg_score

    ranked = top_k(scores, 16)
    relevant = np.array([[float(id in truth) for id in IDS]])
    grade = np.array([[2.0 ** (len(truth) - truth.index(i)) - 1 if i in truth else 0 for i in IDS]])
    as_rows = np.array([scores], dtype=float)
    assert ndcg_binary(ranked, truth) == pytest.approx(ndcg_score(relevant, as_rows, k=3))
    assert ndcg_graded(ranked, truth) == pytest.approx(ndcg_score(grade, as_rows, k=3))
    expected = average_precision_score(relevant[0], as_rows[0])
    assert ranked_average_precision(ranked, truth) == pytest.approx(expected)


@given(st.lists(st.integers(-5, 5), min_size=16, max_size=16), truths)
@quick
def test_the_sign_of_scores_means_nothing(scores, truth):
    """Where torchmetrics passes over scores of 0 and below."""
    for moved in ([score - 100 for score in scores], [score + 100 for score in scores]):
        assert ranked_average_precision(top_k(moved, 16), truth) == ranked_average_precision(
            top_k(scores, 16), truth
        )


def test_chance_is_three_sixteenths():
    """Over all ways to choose three of 16, R@3 is 3/16 on average: the row 'random'."""
    truth = IDS[:3]
    total = sum(
        Fraction(recall_at_k(list(chosen), truth)).limit_denominator(3)
        for chosen in itertools.combinations(IDS, 3)
    )
    assert total / math.comb(16, 3) == Fraction(3, 16)


def test_many_items_have_the_scores_of_each():
    predicted, truth = [["1", "2"], [], ["5"]], [["2", "3", "4"], ["1"], []]
    found = evaluate_ranking(predicted, truth, k=2)
    assert list(found) == [
        "recall_at_2",
        "ndcg_binary_at_2",
        "ndcg_graded_at_2",
        "average_precision",
    ]
    assert all(values.dtype == torch.float64 and values.shape == (3,) for values in found.values())
    assert found["recall_at_2"][:2].tolist() == [recall_at_k(["1", "2"], truth[0], k=2), 0]
    # nothing to find is no score
    assert all(values[2].isnan() for values in found.values())


def test_repeated_ids_and_unequal_lengths_are_refused():
    for score in ALL:
        with pytest.raises(ConfigError, match="different ids"):
            score(["1", "1"], ["1"])
        with pytest.raises(ConfigError, match="different ids"):
            score(["1"], "11")
    with pytest.raises(ConfigError, match="k must be"):
        recall_at_k(["1"], ["1"], k=0)
    with pytest.raises(ShapeError, match="1 predictions and 2 truths"):
        evaluate_ranking([["1"]], [["1"], ["2"]])

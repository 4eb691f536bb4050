"""Regions, concepts and texts: scores against brute force, and nulls that nothing can beat."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specsegdiff.cells import Box
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.metrics import foreground_dice, generalized_dice, iou
from specsegdiff.metrics.grounding import (
    agreement,
    box_iou,
    concept_accuracy,
    evaluate_boxes,
    evaluate_regions,
    match,
)
from specsegdiff.narration.concepts import speech_concepts

quick = settings(max_examples=25, deadline=None, database=None)


def masks(count, *, seed=0):
    return torch.rand(count, 9, 11, generator=torch.Generator().manual_seed(seed)) > 0.6


# ------------------------------------------------------------------ regions


@given(st.integers(0, 4), st.integers(0, 3), st.integers(0, 999))
@quick
def test_no_other_pairing_overlaps_more(n, m, seed):
    overlap = torch.rand(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    overlap[overlap < 0.2] = 0.0
    pairs = match(overlap)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert all(overlap[pair] > 0 for pair in pairs)
    small, wide = (overlap, m) if n <= m else (overlap.T, n)
    best = max(
        (
            sum(float(small[i, j]) for i, j in enumerate(columns))
            for columns in itertools.permutations(range(wide), min(n, m))
        ),
        default=0.0,
    )
    assert sum(float(overlap[pair]) for pair in pairs) == pytest.approx(best)


def test_regions_match_themselves_in_any_order():
    truth = masks(4)
    scores = evaluate_regions(truth[[2, 0, 3, 1]], truth)
    assert scores == dict.fromkeys(scores, pytest.approx(1.0))


def test_scores_of_a_pair_are_those_of_its_masks():
    one, other = masks(1), masks(1, seed=1)
    scores = evaluate_regions(one, other)
    assert scores["iou"] == pytest.approx(float(iou(one, other)))
    assert scores["gdice"] == pytest.approx(float(generalized_dice(one, other)))
    assert scores["gdice"] != pytest.approx(float(foreground_dice(one, other)))


def test_a_region_that_is_missing_or_too_many_scores_nothing():
    truth = torch.zeros(2, 4, 4, dtype=torch.bool)
    truth[0, 0], truth[1, 2:] = True, True
    for scores in (evaluate_regions(truth[:1], truth), evaluate_regions(truth, truth[:1])):
        assert scores["iou"] == scores["gdice"] == 0.5
        assert scores["f1"] == pytest.approx(2 / 3)
    assert evaluate_regions(truth[:1], truth)["recall"] == 0.5
    assert evaluate_regions(truth, truth[:1])["precision"] == 0.5
    none = torch.zeros(0, 4, 4, dtype=torch.bool)
    assert set(evaluate_regions(none, truth).values()) == {0.0}
    assert set(evaluate_regions(none, none).values()) == {1.0}


corners = st.tuples(st.integers(0, 8), st.integers(1, 4), st.integers(0, 8), st.integers(1, 4))


@given(corners, corners)
@quick
def test_boxes_overlap_as_their_pixels_do(first, second):
    plane, boxes = torch.zeros(2, 1, 12, 12, dtype=torch.bool), []
    for place, (t, wide, f, tall) in enumerate((first, second)):
        plane[place, 0, f : f + tall, t : t + wide] = True
        boxes.append(Box(t, t + wide, f, f + tall))
    assert box_iou(*boxes) == box_iou(*boxes[::-1])
    assert box_iou(*boxes) == pytest.approx(float(iou(plane[0], plane[1])))
    assert evaluate_boxes(boxes[:1], boxes[1:])["iou"] == box_iou(*boxes)


def test_boxes_of_two_lists():
    boxes = [Box(0, 1, 0, 1), Box(2, 3, 0, 1)]
    assert evaluate_boxes(boxes, boxes[::-1])["f1"] == 1
    assert evaluate_boxes([], boxes) == {"iou": 0.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert evaluate_boxes([], [])["iou"] == 1


def test_masks_that_do_not_fit_are_refused():
    good = masks(2)
    for one, other, words in (
        (good.float(), good, "bool masks"),
        (good[0], good, "bool masks"),
        (good[:, :5], good, "one plane"),
        (good & False, good, "holds no bin"),
    ):
        with pytest.raises(ShapeError, match=words):
            evaluate_regions(one, other)
    with pytest.raises(ShapeError, match="finite"):
        match(torch.tensor([[torch.nan]]))


# ------------------------------------------------------------------ concepts


def test_concepts_are_right_near_or_far():
    said = [{"phone": "stop"}, {"phone": "stop"}, {"phone": "any sound"}]
    true = [{"phone": "stop"}, {"phone": "vowel"}, {"phone": "vowel"}]
    scores = concept_accuracy(said, true, distance=speech_concepts().distance)
    assert scores == {
        "phone": {"exact": pytest.approx(1 / 3), "near": pytest.approx(2 / 3), "distance": 4 / 3}
    }
    for rows in (([], []), (said, true[:2])):
        with pytest.raises(ShapeError):
            concept_accuracy(*rows, distance=speech_concepts().distance)
    with pytest.raises(ConfigError, match="in every row"):
        concept_accuracy([{"band": "low"}], [{"phone": "stop"}], distance=lambda a, b: 0)


# ------------------------------------------------------------------ texts


def drawn(n, words, *, seed):
    return list(np.random.default_rng(seed).choice(list(words), n))


def strata_of(n, size=3):
    return [f"s{i // size}" for i in range(n)]


@given(st.integers(0, 999))
@settings(max_examples=10, deadline=None, database=None)
def test_the_null_is_the_mean_over_all_shuffles(seed):
    said, truth = drawn(6, "abc", seed=seed), drawn(6, "abc", seed=seed + 1)
    strata = strata_of(6)
    every = [
        np.mean([said[i] == truth[j] for i, j in enumerate([*first, *second])])
        for first in itertools.permutations(range(3))
        for second in itertools.permutations(range(3, 6))
    ]
    found = agreement(said, truth, groups=strata, strata=strata, permutations=3000)
    assert found.null == pytest.approx(np.mean(every))
    assert found.observed == np.mean([a == b for a, b in zip(said, truth, strict=True)])
    assert found.above == pytest.approx(found.observed - found.null)
    exact = np.mean([value >= found.observed - 1e-9 for value in every])
    # four standard errors of 3000 draws
    assert found.p_value == pytest.approx(exact, abs=4 * 0.5 / 3000**0.5)


def test_one_text_for_all_regions_gains_nothing():
    truth = drawn(60, "aaab", seed=0)
    found = agreement(["a"] * 60, truth, groups=strata_of(60), strata=strata_of(60))
    assert found.observed > 0.6
    assert (found.above, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert found.p_value == 1


def test_what_the_place_tells_is_kept_by_its_stratum():
    # the truth depends on the place alone, and so does the text
    place = [str(i % 3) for i in range(60)]
    recording = strata_of(60)
    free = agreement(place, place, groups=recording, strata=recording)
    assert free.above == pytest.approx(2 / 3)
    assert free.p_value == 1 / 2001
    bound = agreement(place, place, groups=recording, strata=place)
    assert bound.above == pytest.approx(0, abs=1e-12)
    # recordings cannot be shuffled apart from what depends on them
    assert bound.p_value is None


def test_the_interval_is_as_wide_as_the_difference_varies():
    # how common a word is differs between groups, and the texts know nothing of that
    rng, groups, aboves, widths = (
        np.random.default_rng(0),
        [str(i // 6) for i in range(120)],
        [],
        [],
    )
    for _ in range(40):
        rates = rng.uniform(0.0, 1.0, 20)
        truth = ["ab"[int(rng.random() < rates[i // 6])] for i in range(120)]
        said = list(rng.choice(["a", "b"], 120, p=[0.85, 0.15]))
        found = agreement(said, truth, groups=groups, strata=["s"] * 120, permutations=1)
        aboves.append(found.above)
        widths.append(found.high - found.low)
    # 95 % of a normal distribution lie within 1.96 standard deviations; 40 draws tell one to 11 %
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(aboves), rel=0.25)


def test_copies_of_a_recording_count_once():
    said, truth, strata = drawn(30, "abc", seed=1), drawn(30, "abc", seed=2), strata_of(30)
    once = agreement(said, truth, groups=strata, strata=strata)
    copies = [f"{name} {copy}" for copy in range(8) for name in strata]
    many = agreement(said * 8, truth * 8, groups=strata * 8, strata=copies)
    assert many.items == 8 * once.items
    assert 0.05 < once.p_value < 1
    assert many.p_value == once.p_value
    assert (many.low, many.high) == pytest.approx((once.low, once.high))


def test_texts_that_know_nothing_are_rarely_called_significant():
    p_values = []
    for seed in range(40):
        said, truth = drawn(45, "abc", seed=seed), drawn(45, "abc", seed=1000 + seed)
        strata = strata_of(45)
        found = agreement(said, truth, groups=strata, strata=strata, permutations=200)
        p_values.append(found.p_value)
    # of 40 at 5 % 2 are expected; 8 or more have a chance of 1 in 1000
    assert sum(p <= 0.05 for p in p_values) < 8
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.25)


def test_texts_that_know_are_found_out():
    truth = drawn(90, "abc", seed=3)
    said = [word if i % 2 else "a" for i, word in enumerate(truth)]
    found = agreement(said, truth, groups=strata_of(90), strata=strata_of(90))
    assert found.p_value < 0.01
    assert 0 < found.low < found.above < found.high


def test_a_score_of_its_own_and_seeds():
    said, truth, strata = drawn(30, "abc", seed=1), drawn(30, "abc", seed=2), strata_of(30)
    how = {"groups": strata, "strata": strata}
    near = agreement(said, truth, score=lambda a, b: 1 - abs(ord(a) - ord(b)) / 2, **how)
    assert near.observed > agreement(said, truth, **how).observed
    assert agreement(said, truth, **how) == agreement(said, truth, **how)
    # the seed moves the p-value alone
    one, other = (agreement(said, truth, seed=seed, **how) for seed in (0, 1))
    assert one.p_value != other.p_value
    assert (one.above, one.null, one.low) == (other.above, other.null, other.low)


def test_who_is_alone_in_a_stratum_does_not_count():
    said, groups = list("abab"), list("wxyz")
    found = agreement(said, said, groups=groups, strata=["s", "s", "s", "t"])
    assert found.items == 3
    with pytest.raises(ShapeError, match="alone in its stratum"):
        agreement(said, said, groups=groups, strata=groups)


def test_lists_that_do_not_fit_are_refused():
    strata = ["s"] * 3
    with pytest.raises(ShapeError, match="one truth, group and stratum"):
        agreement("abc", "ab", groups="xyz", strata=strata)
    with pytest.raises(ShapeError, match="at least two groups"):
        agreement("abc", "abc", groups="xxx", strata=strata)
    with pytest.raises(ConfigError, match="permutations"):
        agreement("abc", "abc", groups="xyz", strata=strata, permutations=0)
    with pytest.raises(ShapeError, match="not finite"):
        agreement("abc", "abc", groups="xyz", strata=strata, score=lambda a, b: float("nan"))

"""Scores of words: by hand, against slow replicas, and the ways that a report could cheat."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.metrics.reports import (
    LEXICON,
    Fields,
    Told,
    consistency,
    coverage,
    evaluate_reports,
    field_accuracy,
    read_fields,
    rouge_l,
)
from specsegdiff.narration.schema import FREQUENCIES, PHONES, TIMES

quick = settings(max_examples=60, deadline=None)
words = st.sampled_from(["the", "low", "vowel", "is", "smeared", "."])
sentences = st.lists(words, max_size=7).map(" ".join)

VOWEL = Fields("speech", "low", "vowel")


# ------------------------------------------------------------------ the lexicon


def test_the_lexicon_has_the_words_of_the_schema():
    assert [tuple(sorted(labels)) for labels in LEXICON.values()] == [
        tuple(sorted(words)) for words in (TIMES, FREQUENCIES, PHONES)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Fields(None, None, None)),
        ("Non-speech: silences.", Fields("non-speech", None, None)),
        ("An unvoiced burst.", Fields("non-speech", None, "unvoiced")),
        ("voiced and unvoiced", Fields("speech", None, "unvoiced")),
        ("a pause, a pause in speech", Fields("non-speech", None, None)),
        ("High and low and LOW", Fields(None, "low", None)),
        ("high, low", Fields(None, "high", None)),
        ("low-frequency, mid-band", Fields(None, "low", None)),
        ("a slow, highly amid stopping", Fields(None, None, None)),
        ("Fricatives' and stops'", Fields(None, None, "consonant")),
    ],
)
def test_fields_are_read_out_of_words(text, expected):
    assert read_fields(text) == expected


def test_coverage_and_consistency_count_what_can_be_read():
    texts = ["speech in the low band of a vowel", "speech", "?", "low"]
    found = coverage(texts)
    assert [found[name] for name in Fields._fields] == [0.5, 0.5, 0.25]
    assert found["average"] == pytest.approx(1.25 / 3)
    assert math.isnan(coverage([])["average"])
    assert [consistency(VOWEL, text) for text in texts] == pytest.approx([1, 1 / 3, 0, 1 / 3])
    # nothing said agrees with nothing
    assert consistency(Fields(None, None, None), "?") == 0


# ------------------------------------------------------------------ fields and texts


def test_field_accuracy_by_hand():
    said = [VOWEL, Fields("speech", None, "consonant")]
    truth = [VOWEL, Fields("speech", "low", "vowel")]
    assert field_accuracy(said, truth) == {
        "time": 1,
        "frequency": 0.5,
        "phone": 0.5,
        "average": pytest.approx(2 / 3),
    }
    with pytest.raises(ShapeError, match="2 and 1"):
        field_accuracy(said, truth[:1])


def slow_common(first, second):
    """Longest common subsequence, by trying all of them."""
    for length in range(len(first), 0, -1):
        for chosen in itertools.combinations(first, length):
            rest = iter(second)
            if all(word in rest for word in chosen):
                return length
    return 0


@given(sentences, sentences)
@quick
def test_rouge_l_is_its_slow_replica(candidate, reference):
    said, true = candidate.split(), reference.split()
    common = slow_common(said, true)
    expected = 2 * common / (len(said) + len(true)) if common else 0
    assert rouge_l(candidate, reference) == pytest.approx(expected)
    assert rouge_l(reference, candidate) == pytest.approx(expected)


def test_rouge_l_by_hand():
    assert rouge_l("Smeared, low VOWEL!", "smeared, low vowel!") == 1
    assert rouge_l("", "") == rouge_l("a", "") == rouge_l("a", "b") == 0
    # precision 1/2, recall 1; pycocoevalcap's beta
    expected = (1 + 1.44) * 0.5 / (1 + 1.44 * 0.5)
    assert rouge_l("low hum", "low", beta=1.2) == pytest.approx(expected)
    with pytest.raises(ConfigError, match="beta"):
        rouge_l("a", "b", beta=0)


# ------------------------------------------------------------------ whole reports


def row(region, fields=VOWEL, evidence="a smeared vowel"):
    return Told(region, fields, evidence)


def test_whole_reports_by_hand():
    truth = [{"1": row("1"), "2": row("2")}, {"3": row("3")}]
    told = [
        [row("1"), row("9")],
        [row("3", Fields("speech", "high", None), "a low vowel, spoken")],
    ]
    found = evaluate_reports(told, truth, asked=2)
    # hits: 1 and 3, of four rows asked for, of three given
    assert found["rows"] == 3
    assert found["hit_rate"] == 0.5
    assert found["field_accuracy"] == pytest.approx((3 + 1) / 6)
    assert found["field_accuracy_end_to_end"] == pytest.approx((3 + 1) / 12)
    assert found["field_accuracy_from_text"] == pytest.approx((1 + 3) / 6)
    # tokens of the second: a low vowel , spoken against a smeared vowel
    assert found["rouge_l"] == pytest.approx((1 + 4 / 8) / 2)
    assert found["rouge_l_end_to_end"] == pytest.approx(found["rouge_l"] / 2)
    # P from each; T and F from the last
    assert found["coverage"] == pytest.approx((1 / 3 + 1 / 3 + 1) / 3)
    assert found["consistency"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 3) / 3)


def test_silence_gains_nothing():
    """Leaving out the rows that are not hits would raise a share of predicted rows."""
    truth = [{"1": row("1"), "2": row("2"), "3": row("3")}]
    full = evaluate_reports([[row("1"), row("8"), row("9")]], truth, asked=3)
    sparse = evaluate_reports([[row("1")]], truth, asked=3)
    key = "field_accuracy_end_to_end"
    assert sparse[key] == full[key] == pytest.approx(1 / 3)
    silent = evaluate_reports([[]], truth, asked=3)
    assert silent[key] == silent["hit_rate"] == 0
    assert math.isnan(silent["field_accuracy"])
    assert math.isnan(evaluate_reports([], [], asked=3)["hit_rate"])


def test_reports_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="1 reports and 0 truths"):
        evaluate_reports([[]], [], asked=3)
    for rows in ([row("1"), row("1")], [row("1"), row("2")]):
        with pytest.raises(ConfigError, match="at most 1"):
            evaluate_reports([rows], [{}], asked=1)

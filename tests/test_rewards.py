"""Rewards by hand, their bounds, and that answers are worth what they should be."""

import ast
import inspect
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specsegdiff.errors import CorpusError
from specsegdiff.metrics.reports import Fields, Told
from specsegdiff.narration import rewards
from specsegdiff.narration.parsing import Finding, write_cells, write_findings
from specsegdiff.narration.rewards import (
    WORDS,
    CellReward,
    CellWeights,
    TextReward,
    TextWeights,
    told,
)

TRUTH = ["15", "14", "11"]
CELLS, TEXT = CellReward(), TextReward()
SAID = {
    "15": Told("15", Fields("speech", "low", "vowel"), "Smeared harmonics of a vowel."),
    "14": Told("14", Fields("speech", "low", "consonant"), "A dull consonant."),
    "11": Told("11", Fields("non-speech", "mid", "unvoiced"), "Flat noise in a pause."),
}
TRUE_WORDS = list(SAID.values())
ROWS = [{"region": w.region, **w.fields._asdict(), "evidence": w.evidence} for w in TRUE_WORDS]


def answer(**changes):
    """The true words on the true regions, some of them changed."""
    findings = [Finding(w.region, *w.fields, evidence=w.evidence) for w in TRUE_WORDS]
    return write_findings([replace(findings[0], **changes), *findings[1:]])


# ------------------------------------------------------------------ R1


def test_r1_by_hand():
    found = CELLS.parts("[11, 3, 15]", TRUTH)
    order = (1 + 7 / 2) / (7 + 3 / math.log2(3) + 1 / 2)
    assert found.hits == pytest.approx(2 / 3)
    assert found.order == pytest.approx(order)
    assert found.total == pytest.approx(2 / 3 + 0.3 * order + 0.1)
    assert CELLS.parts("[15, 14, 11]", TRUTH).total == pytest.approx(1.4)
    assert CELLS.parts("[1, 2, 3]", TRUTH).total == pytest.approx(0.1)


@pytest.mark.parametrize(
    "text", ["", "[15, 14]", "[15, 15, 15]", "[15, 14, 17]", "[15, 14, 11, 1]", "15 14 11, I think"]
)
def test_an_answer_without_the_form_is_worth_nothing(text):
    assert CELLS.parts(text, TRUTH) == (0, 0, 0, 0)


def test_weights_and_sizes_are_free():
    reward = CellReward(CellWeights(hits=2, order=0, form=0), count=25, k=2)
    assert reward.parts("[25, 1]", ["25", "24"]).total == 1
    text = TextReward(TextWeights(text=0, fields=0, consistency=0, form=3))
    assert text.parts(answer(), TRUTH, TRUE_WORDS).total == 3


@given(st.permutations([str(i) for i in range(1, 17)]))
@settings(max_examples=60, deadline=None)
def test_r1_grows_with_each_hit_and_with_its_place(order):
    ids = order[:3]
    total = CELLS.parts(write_cells(ids), TRUTH).total
    assert 0.1 <= total <= 1.4 + 1e-12
    missing = [id for id in TRUTH if id not in ids]
    for place, id in enumerate(ids):
        if id not in TRUTH:
            better = [*ids[:place], missing[0], *ids[place + 1 :]]
            assert CELLS.parts(write_cells(better), TRUTH).total > total


# ------------------------------------------------------------------ R2


def test_the_truth_is_worth_most():
    found = TEXT.parts(answer(), TRUTH, TRUE_WORDS)
    assert (found.hit, found.text, found.fields, found.form) == (1, 1, 1, 1)
    # vowel is read out of the first text, consonant of the second, a pause of the third
    assert found.consistency == pytest.approx(1 / 3)
    assert found.total == pytest.approx(1 + 0.5 + 0.1 / 3 + 0.1)


def test_r2_by_hand():
    found = TEXT.parts(
        answer(phone="consonant", evidence="Smeared, of a vowel."), TRUTH, TRUE_WORDS
    )
    # common: smeared of a vowel . ; 6 tokens against 6
    assert found.text == pytest.approx((5 / 6 + 1 + 1) / 3)
    assert found.fields == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert found.consistency == pytest.approx((0 + 1 / 3 + 1 / 3) / 3)
    expected = found.text + 0.5 * found.fields + 0.1 * found.consistency + 0.1
    assert found.total == pytest.approx(expected)


def test_good_words_about_a_wrong_place_gain_little():
    line = write_findings([Finding("3", "speech", "low", "vowel", "A low vowel of speech.")])
    found = TEXT.parts(line, ["3"], TRUE_WORDS)
    assert found == pytest.approx((0.2, 0, 0, 0, 1, 1))


def test_what_is_left_out_or_said_beside_the_form_costs():
    whole = answer()
    assert TEXT.parts(whole.split("\n")[0], TRUTH, TRUE_WORDS).total == 0
    assert TEXT.parts("", TRUTH, TRUE_WORDS).total == 0
    talk = TEXT.parts(f"Certainly! {whole}", TRUTH, TRUE_WORDS)
    assert talk.form == 0
    assert talk.total == pytest.approx(TEXT.parts(whole, TRUTH, TRUE_WORDS).total - 0.1)
    illegal = TEXT.parts(whole.replace("T=speech", "T=music", 1), TRUTH, TRUE_WORDS)
    assert illegal.form == pytest.approx(2 / 3)
    assert illegal.fields == pytest.approx((2 / 3 + 1 + 1) / 3)


# ------------------------------------------------------------------ other trainers


def test_both_are_reward_functions_of_trl():
    """Keyword arguments only, more columns than are read, texts or chats."""
    chats = [
        [{"role": "assistant", "content": "[15, 14, 11]"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "[1, 2, 3]"}]}],
    ]
    extra = {"prompts": ["?", "?"], "completion_ids": [[1], [2]], "trainer_state": None}
    assert CELLS(completions=chats, truth=[[15, 14, 11]] * 2, **extra) == pytest.approx([1.4, 0.1])
    found = TEXT(completions=[answer(), ""], ids=[TRUTH] * 2, truth=[ROWS] * 2, **extra)
    assert found == [TEXT.parts(answer(), TRUTH, TRUE_WORDS).total, 0]
    assert (CELLS.__name__, TEXT.__name__) == ("cell_reward", "text_reward")


def test_both_are_reward_functions_of_ms_swift():
    """A class that is made without arguments and called with the completions first."""
    assert CellReward()(["[15, 14, 11]"], truth=[TRUTH], solution=["?"]) == pytest.approx([1.4])
    assert TextReward()([""], ids=[TRUTH], truth=[ROWS]) == [0]


def test_a_reward_without_a_truth_does_not_apply():
    assert math.isnan(CELLS.parts("[1, 2, 3]", []).total)
    assert math.isnan(TEXT.parts("", TRUTH, []).total)
    assert CELLS(["[1, 2, 3]"], truth=[[]]) == [None]
    assert TEXT([""], ids=[TRUTH], truth=[[]]) == [None]


@pytest.mark.parametrize("missing", ["", None])
def test_a_reward_does_not_apply_to_the_other_query(missing):
    """In the form of a file, in bare ids, and with nulls, which Arrow puts for what is missing."""
    blank = [{"region": id, **dict.fromkeys(WORDS, missing)} for id in TRUTH]
    truth, ids = [blank, TRUTH, [{"region": id} for id in TRUTH], ROWS], [[], [], [], TRUTH]
    right, said = (
        CELLS(["[15, 14, 11]"] * 4, truth=truth),
        TEXT([answer()] * 4, ids=ids, truth=truth),
    )
    assert right == [pytest.approx(1.4)] * 3 + [None]
    assert said == [None] * 3 + [TEXT.parts(answer(), TRUTH, TRUE_WORDS).total]
    # also where a column of ids is filled
    assert TEXT([answer()] * 2, ids=[TRUTH] * 2, truth=truth[:2]) == [None] * 2


def test_a_row_that_lacks_a_field_is_named():
    with pytest.raises(CorpusError, match=r"expected a row of truth with region.*export"):
        TEXT([answer()], ids=[TRUTH], truth=[[{"region": "15", "time": "speech"}]])
    with pytest.raises(CorpusError, match="expected a row of truth with region"):
        CELLS(["[15, 14, 11]"], truth=[[{"cell": "15"}]])


def test_rows_of_a_file_are_the_rows_of_the_scores():
    assert [told(row) for row in ROWS] == TRUE_WORDS


def test_rewards_know_no_trainer():
    tree = ast.parse(inspect.getsource(rewards))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.split(".")[0] in ("trl", "swift", "lightning") for name in names)

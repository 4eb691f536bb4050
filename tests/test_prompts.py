"""The questions say what the picture shows, and the form that the readers read."""

import pytest
import torch

from specsegdiff.cells import RegionGrid, SlicRegions
from specsegdiff.errors import ConfigError
from specsegdiff.frontend import Axes, StftConfig
from specsegdiff.narration.parsing import parse_findings
from specsegdiff.narration.prompts import (
    describe_picture,
    describe_prompt,
    messages,
    select_prompt,
)
from specsegdiff.narration.schema import FREQUENCIES, PHONES, TIMES

AXES = Axes(StftConfig(), n_samples=40_000)
GRID = RegionGrid(AXES)


def test_query_1_names_the_number_of_regions():
    prompt = select_prompt(RegionGrid(AXES, rows=2, columns=5), k=4)
    assert "4 different integers from 1 to 10" in prompt.system
    assert "2 rows by 5 columns" in prompt.user
    assert "0 to 2.50 s" in prompt.user
    assert "0 to 8.0 kHz" in prompt.user


def test_query_2_names_every_legal_word_and_the_ids():
    prompt = describe_prompt(GRID, ["15", "2"], transcript="  good\nmorning ")
    assert all(word in prompt.system for word in (*TIMES, *FREQUENCIES, *PHONES))
    assert "[15, 2]" in prompt.user
    assert prompt.user.endswith("What is said: good morning")
    assert "said" not in describe_prompt(GRID, ["15"]).user


def test_the_form_that_query_2_shows_is_no_answer():
    """A model that repeats its instructions has found nothing."""
    prompt = describe_prompt(GRID, ["15", "2"])
    assert parse_findings(prompt.system, ids=["15", "2"]).findings == ()


def test_a_picture_with_mel_rows_or_superpixels_is_described_as_such():
    assert "on a mel scale" in describe_picture(RegionGrid(AXES, scale="mel"))
    halves = torch.zeros(AXES.shape, dtype=torch.int64)
    halves[:256] = 1
    text = describe_picture(SlicRegions(AXES, halves))
    assert "2 numbered regions, outlined" in text
    assert "rows" not in text


def test_a_chat_holds_picture_question_and_answer():
    prompt = select_prompt(GRID)
    assert messages(prompt) == [
        {"role": "system", "content": [{"type": "text", "text": prompt.system}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt.user}]},
    ]
    told = messages(prompt, answer="[1, 2, 3]", image="a.png")
    assert told[1]["content"][0] == {"type": "image", "image": "a.png"}
    assert told[2] == {"role": "assistant", "content": [{"type": "text", "text": "[1, 2, 3]"}]}


def test_questions_about_no_region_are_refused():
    for k in (0, 17):
        with pytest.raises(ConfigError, match="1 to 16 regions"):
            select_prompt(GRID, k=k)
    for ids in ([], ["17"], ["1", "1"], ["R1"]):
        with pytest.raises(ConfigError):
            describe_prompt(GRID, ids)

"""The benchmark of mix-frame post-training: rates over seeds, and differences on the same draws."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from specsegdiff.data.pairs import Pair

pytest.importorskip("lightning", reason="training needs the extra 'train'")
pytest.importorskip("peft", reason="post-training needs the extra 'vlm'")

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from detection import Scored, compared
from mfpt import summary

DETECTOR = SimpleNamespace(labels=("bonafide", "spoof"))


def run(margins):
    """A real recording and its fake in each of some groups; margins of real and fake."""
    found = []
    for number, (real, fake) in enumerate(margins):
        pair = Pair(str(number), Path("r"), Path("f"))
        for value, kept in ((real, None), (fake, pair)):
            found.append(Scored(str(number), kept, torch.tensor([0.0, value])))
    return found


RIGHT = run([(-1.0, 1.0), (-2.0, 2.0), (-1.5, 1.5), (-1.2, 1.2)])
WRONG = run([(1.0, -1.0), (2.0, -2.0), (1.5, -1.5), (1.2, -1.2)])


def test_a_run_differs_from_itself_by_nothing_and_from_its_opposite_by_all():
    assert compared([RIGHT], [RIGHT], DETECTOR) == [0.0, 0.0, 0.0]
    assert compared([RIGHT], [WRONG], DETECTOR) == [-100.0, -100.0, -100.0]
    # without others it is the rate itself, a mean over seeds
    assert compared([RIGHT, WRONG], [], DETECTOR) == [50.0, 50.0, 50.0]


def test_the_interval_is_of_the_difference_on_the_same_groups():
    mixed = run([(-1.0, 1.0), (-2.0, 2.0), (1.5, -1.5), (-1.2, 1.2)])
    alone, low, high = compared([mixed], [], DETECTOR)
    assert low < alone < high
    # both runs err where the same group is drawn, so their difference has no spread
    assert compared([mixed], [mixed], DETECTOR) == [0.0, 0.0, 0.0]


def test_a_summary_compares_with_before_and_with_the_second_stage_alone():
    runs = {
        ("before", 0.0): [{"all": WRONG}],
        ("utterance", 0.2): [{"all": WRONG}, {"all": RIGHT}],
        ("mfpt", 0.2): [{"all": RIGHT}, {"all": RIGHT}],
    }
    before, second, both = summary(runs, DETECTOR)
    assert (before["seeds"], both["seeds"]) == (1, 2)
    assert "over_before" not in before
    assert "over_utterance" not in second
    assert second["eer"]["all"][0] == 50.0
    assert second["over_before"]["all"][0] == -50.0
    assert both["over_before"]["all"][0] == -100.0
    assert both["over_utterance"]["all"][0] == -50.0

"""Frame error rate and segment F1: hand cases, slow counts, laws, and what they refuse."""

import pytest
import torch

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.metrics.detection import eer
from specsegdiff.metrics.localisation import frame_eer, segment_f1

EXACT = 1e-12


def sample(seed, *, b=6, t=23, shift=1.0):
    """Runs of spoofed frames, scored higher by ``shift``."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.rand(b, t, generator=draw).cumsum(1).long() % 3 == 1
    return torch.randn(b, t, generator=draw) + shift * truth, truth


def slow_segments(scores, truth, valid, size):
    """Maximum and any of each stretch of frames, recording by recording."""
    found = []
    for row in range(len(scores)):
        for start in range(0, scores.shape[1], size):
            frames = [k for k in range(start, min(start + size, scores.shape[1])) if valid[row, k]]
            if frames:
                best = max(float(scores[row, k]) for k in frames)
                found.append((best, any(bool(truth[row, k]) for k in frames)))
    return torch.tensor([s for s, _ in found]), torch.tensor([c for _, c in found])


@pytest.mark.parametrize("size", [1, 4, 23, 50])
@pytest.mark.parametrize("seed", range(3))
def test_both_metrics_are_those_of_slow_segments(seed, size):
    scores, truth = sample(seed)
    valid = torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed)) < 0.8
    slow_scores, slow_truth = slow_segments(scores, truth, valid, size)
    if slow_truth.any() and not slow_truth.all():
        found = frame_eer(scores, truth, valid=valid, per_segment=size)
        assert found == pytest.approx(eer(slow_scores, slow_truth), abs=EXACT)
    found = segment_f1(scores, truth, threshold=0.4, valid=valid, per_segment=size)
    called = slow_scores >= 0.4
    hits = int((called & slow_truth).sum())
    assert found.precision == pytest.approx(hits / int(called.sum()), abs=EXACT)
    assert found.recall == pytest.approx(hits / int(slow_truth.sum()), abs=EXACT)
    mean = 2 * found.precision * found.recall / (found.precision + found.recall)
    assert found.f1 == pytest.approx(mean, abs=EXACT)


def test_a_case_by_hand():
    truth = torch.tensor([[False, True, True, True, False, False]])
    scores = torch.tensor([[0.1, 0.9, 0.8, 0.3, 0.4, 0.2]])
    # between 0.8 and 0.4 a third is missed; at 0.4 a third is an alarm
    assert frame_eer(scores, truth) == pytest.approx(1 / 3)
    assert segment_f1(scores, truth, threshold=0.4) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert segment_f1(scores, truth, threshold=0.4, per_segment=2).f1 == pytest.approx(4 / 5)
    # the threshold belongs to what is called
    assert segment_f1(scores, truth, threshold=0.9).recall == pytest.approx(1 / 3)


def test_an_order_of_frames_or_recordings_does_not_matter():
    scores, truth = sample(5)
    order = torch.randperm(truth.numel(), generator=torch.Generator().manual_seed(1))
    mixed = (
        scores.flatten()[order].reshape(scores.shape),
        truth.flatten()[order].reshape(truth.shape),
    )
    assert frame_eer(*mixed) == pytest.approx(frame_eer(scores, truth), abs=EXACT)
    assert segment_f1(*mixed, threshold=0) == pytest.approx(segment_f1(scores, truth, threshold=0))


def test_perfect_and_upside_down_scores():
    _, truth = sample(2)
    perfect = truth.float()
    assert frame_eer(perfect, truth) == 0
    assert frame_eer(-perfect, truth) == 1
    assert frame_eer(torch.zeros(truth.shape), truth) == 0.5
    assert segment_f1(perfect, truth, threshold=0.5) == (1, 1, 1)
    assert segment_f1(-perfect, truth, threshold=-0.5).recall == 0


def test_nothing_called_and_nothing_there():
    scores, truth = sample(3)
    nothing = torch.zeros_like(truth)
    assert segment_f1(scores, truth, threshold=99.0) == (1, 0, 0)
    assert segment_f1(scores, nothing, threshold=0.0) == (0, 1, 0)
    assert segment_f1(scores, nothing, threshold=99.0) == (1, 1, 1)


def test_frames_that_do_not_count_may_hold_anything():
    scores, truth = sample(4)
    valid = torch.ones_like(truth)
    valid[:, 20:] = False
    spoilt = scores.masked_fill(~valid, torch.nan)
    expected = frame_eer(scores[:, :20], truth[:, :20])
    assert frame_eer(spoilt, truth, valid=valid) == pytest.approx(expected, abs=EXACT)


def test_wrong_input_is_named():
    scores, truth = sample(1)
    with pytest.raises(ShapeError, match="on the scorer's frames"):
        frame_eer(scores[:, 1:], truth)
    with pytest.raises(ShapeError, match="for every frame"):
        frame_eer(scores, truth.float())
    with pytest.raises(ShapeError, match="for every frame"):
        segment_f1(scores[0], truth[0], threshold=0)
    with pytest.raises(ShapeError, match="valid must be"):
        frame_eer(scores, truth, valid=truth[1:])
    with pytest.raises(ShapeError, match="finite"):
        frame_eer(scores / 0, truth)
    with pytest.raises(ShapeError, match="both classes"):
        frame_eer(scores, torch.zeros_like(truth))
    with pytest.raises(ConfigError, match="per_segment"):
        frame_eer(scores, truth, per_segment=0)

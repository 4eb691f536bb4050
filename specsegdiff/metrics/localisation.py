"""How well scores of frames find the spoofed stretches of a recording: frame error rate, segment
F1."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.metrics.detection import eer
from specsegdiff.shapes import is_finite


class SegmentScores(NamedTuple):
    """Precision, recall and F1 of spoofed segments, in [0, 1]."""

    precision: float
    "Share of the segments called spoofed that are; 1 where none is called."
    recall: float
    "Share of the spoofed segments that are called; 1 where there are none."
    f1: float
    "Their harmonic mean."


def frame_eer(
    scores: Float[Tensor, "b t"],
    is_spoof: Bool[Tensor, "b t"],
    *,
    valid: Bool[Tensor, "b t"] | None = None,
    per_segment: int = 1,
) -> float:
    """Equal error rate over the frames of all recordings, higher scores for spoof, in [0, 1].

    Segments of ``per_segment`` frames, the last of a recording perhaps shorter, have the highest
    score of their frames and are spoofed where one frame is, as in PartialSpoof (Zhang et al. 2022,
    arXiv 2204.05177, who keep the lowest score of bona fide). Frames out of ``valid`` are left out,
    such as those that fill up a batch. Raises `ShapeError` as `eer`, and where shapes differ.

    >>> truth = torch.tensor([[False, True, True, True, False, False]])
    >>> scores = torch.tensor([[0.1, 0.9, 0.8, 0.3, 0.4, 0.2]])
    >>> round(frame_eer(scores, truth), 3), frame_eer(scores, truth, per_segment=2)
    (0.333, 0.0)
    """
    score, truth = segments(scores, is_spoof, valid=valid, per_segment=per_segment)
    return eer(score, truth)


def segment_f1(
    scores: Float[Tensor, "b t"],
    is_spoof: Bool[Tensor, "b t"],
    *,
    threshold: float,
    valid: Bool[Tensor, "b t"] | None = None,
    per_segment: int = 1,
) -> SegmentScores:
    """Precision, recall and F1 of the segments whose score reaches ``threshold``, over all
    recordings together.

    Segments are those of `frame_eer`. Source: segment-based metrics of Mesaros et al. 2016,
    doi 10.3390/app6060162.

    >>> truth = torch.tensor([[False, True, True, False]])
    >>> segment_f1(torch.tensor([[0.1, 0.9, 0.3, 0.8]]), truth, threshold=0.5)
    SegmentScores(precision=0.5, recall=0.5, f1=0.5)
    """
    score, truth = segments(scores, is_spoof, valid=valid, per_segment=per_segment)
    called = score >= threshold
    hits = int((called & truth).sum())
    precision = hits / int(called.sum()) if called.any() else 1.0
    recall = hits / int(truth.sum()) if truth.any() else 1.0
    total = int(called.sum()) + int(truth.sum())
    return SegmentScores(precision, recall, 2 * hits / total if total else 1.0)


def segments(
    scores: Float[Tensor, "b t"],
    is_spoof: Bool[Tensor, "b t"],
    *,
    valid: Bool[Tensor, "b t"] | None,
    per_segment: int,
) -> tuple[Float[Tensor, "s"], Bool[Tensor, "s"]]:
    """Score and class of every segment of every recording that holds a valid frame."""
    if scores.ndim != 2 or scores.shape != is_spoof.shape or is_spoof.dtype != torch.bool:
        raise ShapeError(
            "expected a score and a bool for every frame, (b, t) each, got "
            f"{tuple(scores.shape)} and {tuple(is_spoof.shape)} {is_spoof.dtype}; take labels on "
            "the scorer's frames"
        )
    if valid is not None and (valid.shape != scores.shape or valid.dtype != torch.bool):
        raise ShapeError(
            f"valid must be {tuple(scores.shape)} bool, got {tuple(valid.shape)} {valid.dtype}"
        )
    if per_segment < 1:
        raise ConfigError(f"per_segment must be at least 1, got {per_segment!r}")
    keep = torch.ones_like(is_spoof) if valid is None else valid
    if not scores.is_floating_point() or not is_finite(scores[keep]):
        raise ShapeError("expected finite floating scores; leave out frames without a score")
    surplus = -scores.shape[1] % per_segment
    score = torch.nn.functional.pad(
        scores.detach().masked_fill(~keep, -torch.inf), (0, surplus), value=-torch.inf
    )
    truth = torch.nn.functional.pad(is_spoof & keep, (0, surplus))
    score = score.unflatten(1, (-1, per_segment)).amax(dim=2).flatten()
    truth = truth.unflatten(1, (-1, per_segment)).any(dim=2).flatten()
    held = score > -torch.inf
    return score[held], truth[held]

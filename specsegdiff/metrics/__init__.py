"""Scores: pure functions, and torchmetrics classes around them that are imported on first use."""

from typing import TYPE_CHECKING, Any

from specsegdiff.metrics.faithfulness import ad, ag, ai, ff, fid_in, perturbation_curves
from specsegdiff.metrics.intervals import bootstrap_interval
from specsegdiff.metrics.segmentation import (
    average_precision,
    evaluate,
    foreground_dice,
    generalized_dice,
    iou,
    precision,
    recall,
    roc_auc,
)

if TYPE_CHECKING:
    from specsegdiff.metrics.modules import (
        AverageDrop,
        AverageGain,
        AverageIncrease,
        AveragePrecision,
        FaithfulnessOnSpectra,
        ForegroundDice,
        GeneralizedDice,
        InputFidelity,
        IoU,
    )

__all__ = [
    "AverageDrop",
    "AverageGain",
    "AverageIncrease",
    "AveragePrecision",
    "FaithfulnessOnSpectra",
    "ForegroundDice",
    "GeneralizedDice",
    "InputFidelity",
    "IoU",
    "ad",
    "ag",
    "ai",
    "average_precision",
    "bootstrap_interval",
    "evaluate",
    "ff",
    "fid_in",
    "foreground_dice",
    "generalized_dice",
    "iou",
    "perturbation_curves",
    "precision",
    "recall",
    "roc_auc",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from specsegdiff.metrics import modules

    return getattr(modules, name)

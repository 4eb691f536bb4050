"""The segmentation and faithfulness scores as torchmetrics classes: means over the items of all
batches and processes.

Importing this module imports torchmetrics, so `specsegdiff.metrics` does so on first use.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from specsegdiff.metrics import segmentation
from specsegdiff.metrics.faithfulness import Probabilities, ad, ag, ai, ff, fid_in
from specsegdiff.shapes import Map, Mask


class _ItemMean(Metric):
    """Mean of a per-item score over the items where it is defined; NaN where it is for none.

    The states carry ``name``: `torchmetrics.MetricCollection` merges metrics whose states have
    equal names and, after the first batch, equal values, which two different scores of a perfect
    batch have.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    def __init__(self, score: Callable[..., Tensor], *, name: str, **options: Any) -> None:
        super().__init__(**options)
        self._score = score
        self._total, self._items = f"{name}_total", f"{name}_items"
        self.add_state(self._total, default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state(
            self._items, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum"
        )

    def _add(self, scores: Tensor) -> None:
        setattr(self, self._total, getattr(self, self._total) + scores.nansum())
        setattr(self, self._items, getattr(self, self._items) + (~scores.isnan()).sum())

    def compute(self) -> Tensor:
        """Mean over the items seen since the last reset, a scalar."""
        return getattr(self, self._total) / getattr(self, self._items)


class _MaskMean(_ItemMean):
    def update(self, prediction: Mask, truth: Mask, *, valid: Mask | None = None) -> None:
        """Add the items of two masks ``(b, f, t)``."""
        self._add(self._score(prediction, truth, valid=valid))


class GeneralizedDice(_MaskMean):
    """Mean `specsegdiff.metrics.generalized_dice` over items.

    ``options`` go to `torchmetrics.Metric`.

    >>> metric = GeneralizedDice()
    >>> metric.update(torch.ones(2, 3, 4, dtype=torch.bool), torch.ones(2, 3, 4, dtype=torch.bool))
    >>> metric.compute()
    tensor(1.)
    """

    def __init__(
        self,
        *,
        weight: segmentation.Weight = "square",
        include_background: bool = True,
        **options: Any,
    ) -> None:
        score = partial(
            segmentation.generalized_dice, weight=weight, include_background=include_background
        )
        classes = "both" if include_background else "foreground"
        super().__init__(score, name=f"generalized_dice_{weight}_{classes}", **options)


class ForegroundDice(_MaskMean):
    """Mean `specsegdiff.metrics.foreground_dice` over items; ``options`` go to `Metric`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(segmentation.foreground_dice, name="foreground_dice", **options)


class IoU(_MaskMean):
    """Mean `specsegdiff.metrics.iou` over items; ``options`` go to `Metric`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(segmentation.iou, name="iou", **options)


class AveragePrecision(_ItemMean):
    """Mean `specsegdiff.metrics.average_precision` over the items with a true bin.

    ``options`` go to `torchmetrics.Metric`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(segmentation.average_precision, name="average_precision", **options)

    def update(self, scores: Map, truth: Mask, *, valid: Mask | None = None) -> None:
        """Add the items of a map and a mask ``(b, f, t)``."""
        self._add(self._score(scores, truth, valid=valid))


class _KeptMean(_ItemMean):
    def update(self, full: Probabilities, masked_in: Probabilities) -> None:
        """Add items: probabilities ``(b, k)`` of whole recordings and of what a mask keeps."""
        self._add(self._score(full, masked_in))


class AverageIncrease(_KeptMean):
    """AI, the mean `specsegdiff.metrics.faithfulness.ai` over items; ``options`` go to `Metric`.

    >>> metric = AverageIncrease()
    >>> full = torch.tensor([[0.6, 0.4], [0.6, 0.4]])
    >>> metric.update(full, torch.tensor([[0.7, 0.3], [0.5, 0.5]]))
    >>> metric.compute()
    tensor(50.)
    """

    def __init__(self, *, target: int | None = None, **options: Any) -> None:
        score = partial(ai, target=target)
        super().__init__(score, name=f"ai_{target}", **options)


class AverageDrop(_KeptMean):
    """AD, the mean `specsegdiff.metrics.faithfulness.ad` over items; ``options`` go to `Metric`."""

    higher_is_better = False

    def __init__(
        self, *, target: int | None = None, double_softmax: bool = False, **options: Any
    ) -> None:
        score = partial(ad, target=target, double_softmax=double_softmax)
        times = "twice" if double_softmax else "once"
        super().__init__(score, name=f"ad_{target}_{times}", **options)


class AverageGain(_KeptMean):
    """AG, the mean `specsegdiff.metrics.faithfulness.ag` over items; ``options`` go to `Metric`."""

    def __init__(self, *, target: int | None = None, **options: Any) -> None:
        score = partial(ag, target=target)
        super().__init__(score, name=f"ag_{target}", **options)


class InputFidelity(_KeptMean):
    """Fid-In, the mean `specsegdiff.metrics.faithfulness.fid_in`; ``options`` go to `Metric`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(fid_in, name="fid_in", **options)


class FaithfulnessOnSpectra(_ItemMean):
    """FF, the mean `specsegdiff.metrics.faithfulness.ff` over items; ``options`` go to `Metric`."""

    def __init__(self, *, target: int | None = None, **options: Any) -> None:
        score = partial(ff, target=target)
        super().__init__(score, name=f"ff_{target}", **options)

    def update(self, full: Probabilities, masked_out: Probabilities) -> None:
        """Add items: probabilities ``(b, k)`` of whole recordings and of what a mask leaves."""
        self._add(self._score(full, masked_out))

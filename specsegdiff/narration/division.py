"""What a narrator divides the plane into, the same for the one by rule and for models."""

from collections.abc import Callable
from typing import TypeAlias

from specsegdiff.cells import Regions
from specsegdiff.errors import ShapeError
from specsegdiff.explanation import Explanation

Division: TypeAlias = Regions | Callable[[Explanation], Regions]
"""Regions of one recording, or what makes them for each."""


def divided(explanation: Explanation, division: Division) -> Regions:
    """Regions of an explanation; raises `ShapeError` where they are those of another recording.

    >>> from specsegdiff import asset, explain
    >>> from specsegdiff.cells import RegionGrid
    >>> ex = explain(asset("example.flac"))  # doctest: +SKIP
    >>> divided(ex, lambda ex: RegionGrid(ex.axes, rows=3)).count  # doctest: +SKIP
    12
    """
    regions = division(explanation) if callable(division) else division
    if regions.axes != explanation.axes:
        raise ShapeError(
            f"the regions divide {regions.axes.n_samples} samples of {regions.axes.config}, and "
            f"the explanation has {explanation.axes.n_samples} of {explanation.axes.config}; pass "
            "a function of the explanation, such as lambda ex: RegionGrid(ex.axes)"
        )
    return regions

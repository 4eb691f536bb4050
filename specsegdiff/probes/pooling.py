"""Means of tokens by region: what is in no region is dropped, not weighted down."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from specsegdiff.errors import ShapeError
from specsegdiff.shapes import is_finite

IGNORE = -1
"Label of tokens that belong to no region."


@dataclass(frozen=True, eq=False)
class Pooled:
    """Means of tokens by region; make them with `pool_regions` or `pool_all`."""

    values: Float[Tensor, "b r d"]
    "Mean of each region's tokens; zeros where it has none."
    counts: Int[Tensor, "b r"]
    "Tokens of each region."

    def __post_init__(self) -> None:
        shape = tuple(self.values.shape)
        if len(shape) != 3 or tuple(self.counts.shape) != shape[:2]:
            raise ShapeError(
                f"expected means (b, r, d) and counts (b, r), got {shape} and "
                f"{tuple(self.counts.shape)}"
            )
        if not self.values.is_floating_point() or not is_finite(self.values):
            raise ShapeError(
                f"expected finite floating means, got {self.values.dtype} with "
                f"{int((~torch.isfinite(self.values)).sum())} NaN or infinite values; "
                "repair the tokens they were made of"
            )

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Join the items of several batches; lengths of sequences need not agree, regions must."""
        if not parts or len({part.values.shape[1:] for part in parts}) > 1:
            raise ShapeError(
                "expected one or more batches with the same regions and token length, got "
                f"{sorted({tuple(part.values.shape[1:]) for part in parts})}"
            )
        return cls(torch.cat([p.values for p in parts]), torch.cat([p.counts for p in parts]))


def pool_regions(
    tokens: Float[Tensor, "b n d"], labels: Int[Tensor, "b n"], *, count: int
) -> Pooled:
    """Mean of the tokens of each of ``count`` regions; tokens with the label `IGNORE` are dropped.

    Raises `ShapeError` where a token is not finite, or where labels do not match: another shape, no
    integers, or a label that is no region.

    >>> tokens = torch.tensor([[[1.0], [3.0], [100.0], [5.0]]])
    >>> pooled = pool_regions(tokens, torch.tensor([[0, 0, -1, 2]]), count=3)
    >>> pooled.values[0, :, 0].tolist(), pooled.counts[0].tolist()
    ([2.0, 0.0, 5.0], [2, 0, 1])
    """
    _check(tokens, labels, count)
    inside = labels[..., None] == torch.arange(count, device=labels.device)
    counts = inside.sum(1)
    # a sum of a thousand tokens does not fit half precision
    exact = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    totals = einsum(inside.to(exact), exact, "b n r, b n d -> b r d")
    return Pooled(totals / counts.clamp_min(1)[..., None], counts)


def pool_all(tokens: Float[Tensor, "b n d"]) -> Pooled:
    """Mean of all tokens as one region: the ablation that indexes nothing.

    Of a single token, such as the CLS token ``cls[:, None]``, it is the other ablation.
    """
    labels = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    return pool_regions(tokens, labels, count=1)


def _check(tokens: Tensor, labels: Tensor, count: int) -> None:
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or 0 in tokens.shape:
        came = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ShapeError(f"expected tokens (b, n, d) without an empty axis, got {came}")
    if not tokens.is_floating_point() or not is_finite(tokens):
        raise ShapeError(
            f"expected finite floating tokens, got {tokens.dtype} with "
            f"{int((~torch.isfinite(tokens)).sum())} NaN or infinite values; repair the encoder "
            "or its input"
        )
    if not isinstance(labels, Tensor) or labels.shape != tokens.shape[:2]:
        came = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ShapeError(
            f"expected one label per token {tuple(tokens.shape[:2])}, got {came}; "
            "make them for the same frames or patches"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ShapeError(f"expected integer labels, got {labels.dtype}; number the regions")
    low, high = int(labels.min()), int(labels.max())
    if low < IGNORE or high >= count:
        raise ShapeError(
            f"expected labels from {IGNORE} (no region) to {count - 1}, got {low} to {high}; "
            "check which regions these labels number"
        )

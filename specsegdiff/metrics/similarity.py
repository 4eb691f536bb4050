"""Content or artifact: how alike are the maps of one recording under several vocoders?

The paper's Figure 3 shows attributions that look alike whatever the vocoder, while the artifacts do
not. Here that is a number. All maps become masks by their own top share, as the true masks are, so
that maps and truth are compared in one unit: the phi coefficient (`phi`), which is 1 for equal
masks and 0 for independent ones. With ``M_i`` the mask of a method under vocoder i, ``T_i`` the
true one, and V vocoders:

===========  ====================================================================
maps         mean of ``phi(M_i, M_j)`` over all i < j
truths       mean of ``phi(T_i, T_j)`` over all i < j
gap          ``maps - truths``
specificity  mean of ``phi(M_i, T_i) - phi(M_i, T_j)`` over all i and j != i
===========  ====================================================================

A method that ignores the vocoder, and so draws content, has maps 1, the largest gap, and
specificity 0. The true masks have gap 0 and the largest specificity, ``1 - truths``. Noise has maps
0 and specificity 0: a gap below 0 alone is no merit, so both are read together.
"""

from itertools import combinations, permutations
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from specsegdiff.errors import ShapeError
from specsegdiff.shapes import Mask, check_map, check_same_shape

Stack: TypeAlias = Bool[Tensor, "v f t"]
"""Masks of one recording under v vocoders, on one grid."""


class Similarity(NamedTuple):
    """How alike the masks of one recording are; each value lies in [-1, 1]."""

    maps: float
    "Among the masks of the method."
    truths: float
    "Among the true masks."
    specificity: float
    "How much nearer a mask is to its own truth than to another vocoder's."

    @property
    def gap(self) -> float:
        """How much more alike the method's masks are than the true ones."""
        return self.maps - self.truths


def similarity(maps: Stack, truths: Stack) -> Similarity:
    """Similarity of masks ``(v, f, t)``, one a vocoder, and of the true masks in the same order.

    Raises `ShapeError` unless both are bool, of one shape, and of two vocoders or more.

    >>> truths = torch.tensor([[[True, False, False, False]], [[False, True, False, False]]])
    >>> content = truths[:1].expand(2, -1, -1)
    >>> [round(value, 3) for value in similarity(content, truths)]
    [1.0, -0.333, 0.0]
    >>> similarity(truths, truths).gap
    0.0
    """
    for name, value in (("maps", maps), ("truths", truths)):
        check_map(value, name=name)
        if value.dtype != torch.bool or value.ndim != 3 or len(value) < 2:
            raise ShapeError(
                f"expected {name} as bool masks (v, f, t) of two vocoders or more, got "
                f"{tuple(value.shape)} {value.dtype}; take specsegdiff.masks.top_share of each map"
            )
    check_same_shape(maps, truths, names=("maps", "truths"))
    first, second = torch.tensor(list(combinations(range(len(maps)), 2))).T
    own, other = torch.tensor(list(permutations(range(len(maps)), 2))).T
    return Similarity(
        maps=float(phi(maps[first], maps[second]).mean()),
        truths=float(phi(truths[first], truths[second]).mean()),
        specificity=float((phi(maps, truths)[own] - phi(maps[own], truths[other])).mean()),
    )


def phi(first: Mask, second: Mask) -> Float[Tensor, "b"]:
    """Phi coefficient of masks ``(b, f, t)``: the correlation of their bins, ``(b,)`` in [-1, 1].

    For two masks with the same share p of the bins it is ``(dice - p) / (1 - p)``, Dice with chance
    taken out. A mask without or with every bin correlates with nothing: 1 where both masks are
    equal, else 0.

    >>> mask = torch.tensor([[[True, True, False, False]]])
    >>> [phi(mask, other).item() for other in (mask, ~mask, torch.ones_like(mask))]
    [1.0, -1.0, 0.0]
    """
    check_same_shape(first, second, names=("first", "second"))
    a, b = (mask.flatten(1).double() for mask in (first, second))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    spread = (a.square().sum(1) * b.square().sum(1)).sqrt()
    equal = (first == second).flatten(1).all(1).double()
    return torch.where(spread > 0, (a * b).sum(1) / spread.where(spread > 0, 1.0), equal)

"""The last step to full resolution: what a coarse patch blurs is read off the condition again."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class Refine(nn.Module):
    """Refines a prediction on patches of half the size, then of a quarter and so on, a width for
    each: what a coarse patch blurs, it reads off the condition.

    Everything it takes and gives lies on the coarse grid, ``(b, c, f, t)``, four patches of half
    the size to a coarse one, sixteen of a quarter.
    """

    def __init__(
        self, patch: tuple[int, int], *, views: int, widths: Sequence[int], parts: int = 2
    ) -> None:
        super().__init__()
        width, *others = widths
        self.parts = {"p": parts, "q": parts}
        self.size = {"a": patch[0] // parts, "c": patch[1] // parts}
        bins = self.size["a"] * self.size["c"]
        self.seen = nn.Conv2d(views * bins, width, 3, padding=1)
        self.join = nn.Conv2d(width + bins, width, 3, padding=1)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, bins, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(cast(Tensor, self.last.bias))
        self.finer = None
        if others:
            self.finer = Refine(patch, views=views, widths=others, parts=2 * parts)

    def view(self, condition: Float[Tensor, "b c f t"]) -> Float[Tensor, "b d f t"]:
        """What `forward` needs of the folded condition; it depends on neither step nor draw."""
        seen = self.seen(self._split(condition))
        own = rearrange(seen, "b d (f p) (t q) -> b (d p q) f t", **self.parts)
        return own if self.finer is None else torch.cat([own, self.finer.view(condition)], dim=1)

    def forward(
        self, prediction: Float[Tensor, "b c f t"], view: Float[Tensor, "b d f t"]
    ) -> Float[Tensor, "b c f t"]:
        """The prediction, corrected."""
        own = self.seen.out_channels * self.parts["p"] * self.parts["q"]
        seen = rearrange(view[:, :own], "b (d p q) f t -> b d (f p) (t q)", **self.parts)
        x = F.silu(self.join(F.silu(torch.cat([seen, self._split(prediction)], dim=1))))
        x = self.last(F.silu(x + self.middle(x)))
        x = rearrange(x, "b (a c) (f p) (t q) -> b (p a q c) f t", **self.parts, **self.size)
        refined = prediction + x
        return refined if self.finer is None else self.finer(refined, view[:, own:])

    def _split(self, grid: Tensor) -> Tensor:
        sizes = self.parts | self.size
        return rearrange(grid, "b (v p a q c) f t -> b (v a c) (f p) (t q)", **sizes)

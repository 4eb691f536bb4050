"""The last step to full resolution: what a coarse patch blurs is read off the condition again."""

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class Refine(nn.Module):
    """Refines a prediction on patches of half the size: what a coarse patch blurs, it reads off the
    condition.

    Everything it takes and gives lies on the coarse grid, ``(b, c, f, t)``, four fine patches to a
    coarse one.
    """

    def __init__(self, patch: tuple[int, int], *, views: int, width: int) -> None:
        super().__init__()
        self.size = {"a": patch[0] // 2, "c": patch[1] // 2}
        bins = self.size["a"] * self.size["c"]
        self.seen = nn.Conv2d(views * bins, width, 3, padding=1)
        self.join = nn.Conv2d(width + bins, width, 3, padding=1)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, bins, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(cast(Tensor, self.last.bias))

    def view(self, condition: Float[Tensor, "b c f t"]) -> Float[Tensor, "b d f t"]:
        """What `forward` needs of the folded condition; it depends on neither step nor draw."""
        seen = self.seen(self._split(condition))
        return rearrange(seen, "b d (f p) (t q) -> b (d p q) f t", p=2, q=2)

    def forward(
        self, prediction: Float[Tensor, "b c f t"], view: Float[Tensor, "b d f t"]
    ) -> Float[Tensor, "b c f t"]:
        """Correction to add to a prediction."""
        seen = rearrange(view, "b (d p q) f t -> b d (f p) (t q)", p=2, q=2)
        x = F.silu(self.join(F.silu(torch.cat([seen, self._split(prediction)], dim=1))))
        x = self.last(F.silu(x + self.middle(x)))
        return rearrange(x, "b (a c) (f p) (t q) -> b (p a q c) f t", p=2, q=2, **self.size)

    def _split(self, grid: Tensor) -> Tensor:
        return rearrange(grid, "b (v p a q c) f t -> b (v a c) (f p) (t q)", p=2, q=2, **self.size)

"""AttnLRP on the time-frequency plane."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from baselines import lrp
from baselines.lrp import Flow
from baselines.lrp_rules import LRPRules, check_zennit
from baselines.plane import Item, OnPlane, Part, Plane, Scale, as_found
from specsegdiff.errors import ConfigError
from specsegdiff.frontend import Stft
from specsegdiff.shapes import Map, Wave


class AttnLRP(OnPlane):
    """Attention-aware layer-wise relevance propagation (Achtibat et al. 2024, arXiv 2402.05602).

    The raw logit is handed down through the detector by the rules in `baselines.lrp_rules`, then
    through the inverse transform, which is linear, to the bins. Real and imaginary part of a bin
    add up to its magnitude times the gradient in it, as in DFT-LRP (Frommholz et al. 2024).

    ``rules`` are γ 10 for convolutions and 0.1 for linear layers by default, which needs zennit;
    with both 0 it is not needed. What biases, ε and softmax absorb is missing in the sum of a map:
    `attribute` returns how much, and `flows` where.

    ``scale`` changes no map: the logarithm of a magnitude is an element-wise function, and
    relevance passes through those unchanged (Eq. 9).

    One recording passes at a time, and a few windows of a long one (`Plane.parts`), so the memory
    of a pass grows neither with the batch nor with the length, and no item depends on another. The
    detector runs in evaluation mode and is left as it was found.

    Raises `ConfigError` on other settings, `DependencyError` where zennit is needed and missing,
    `ShapeError` on waves that are not ``(b, n)`` and finite, and `RuleError` that names every
    function of the detector without a rule; `check` lists them beforehand.

    LRP is patented; by the README of lxt, its use is free of charge for personal and scientific
    purposes. zennit is under the LGPL.

    >>> from specsegdiff.models.aasist import AASIST
    >>> lrp = AttnLRP(AASIST.from_preset("tiny"), rules=LRPRules(gamma_conv=0, gamma_linear=0))
    >>> tuple(lrp(torch.randn(2, 4_000)).shape), lrp.check()
    ((2, 513, 16), [])
    """

    def __init__(
        self,
        detector: Callable[..., Any],
        *,
        target: str | int = "spoof",
        stft: Stft | None = None,
        scale: Scale = "linear",
        rules: LRPRules | None = None,
    ) -> None:
        if scale not in ("linear", "log"):
            raise ConfigError(f"scale must be 'linear' or 'log', got {scale!r}")
        if rules is not None and not isinstance(rules, LRPRules):
            raise ConfigError(
                f"rules must be an LRPRules, got {rules!r}; "
                "LRPRules(gamma_conv=0, gamma_linear=0) is the epsilon rule"
            )
        self.rules = rules or LRPRules()
        check_zennit(self.rules)
        super().__init__(Plane(detector, target=target, stft=stft, scale="linear"))
        self.root = detector if isinstance(detector, nn.Module) else None

    def flows(self, wave: Wave) -> list[Flow]:
        """What every function of the detector received and passed on for a wave ``(1, n)``, in
        order; the logit is the sum of the map plus all that they absorbed, to rounding.

        All windows of a long recording pass at once, so memory grows with its length."""
        with torch.inference_mode(False), as_found(self.plane.wrapper):
            return [
                flow
                for item in self.plane.items(wave)
                for flow in lrp.flows(
                    self._score(item), item.value, rules=self.rules, root=self.root
                )
            ]

    def check(self, wave: Wave | None = None) -> list[str]:
        """Functions of the detector without a rule, with the module that calls them; an empty list
        is a clean bill.

        Runs one forward pass, on one second of noise at 16 kHz, or on ``wave`` ``(1, n)``.
        """
        if wave is None:
            wave = 0.1 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode(False), as_found(self.plane.wrapper):
            item = next(iter(self.plane.items(wave)))
            return lrp.gaps(self._score(item), item.value, root=self.root)

    def _score(self, item: Item) -> Callable[[Tensor], Tensor]:
        return lambda value: self.plane.score(value, item.phase, item.length)

    def _explain(self, item: Item) -> tuple[Map, Float[Tensor, ""]]:
        logits = []

        def relevance(part: Part) -> Tensor:
            found, logit = lrp.propagate(
                part.score, part.item.value, rules=self.rules, root=self.root
            )
            logits.append(logit * part.weight)
            return found

        (result,) = self.plane.over_parts(item, relevance)
        return result, torch.cat(logits).sum()

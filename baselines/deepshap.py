"""DeepSHAP on the time-frequency plane, with captum's rules or with complete ones."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from baselines.contrast import RuleError
from baselines.deeplift import deeplift
from baselines.deepshap_check import RuleSet, check_rule_set
from baselines.plane import (
    Item,
    OnPlane,
    Part,
    Plane,
    References,
    Scale,
    check_references,
    count_of,
    import_captum,
)
from specsegdiff.frontend import Stft
from specsegdiff.shapes import Map


class DeepSHAP(OnPlane):
    """DeepLIFT against references, averaged (Lundberg & Lee 2017, arXiv 1705.07874, section 4.2).

    - ``rules="full"``: operations have rules, whether modules or functions call them
      (`baselines.deeplift`), and one without is a `RuleError`. A map sums to ``f(x) - mean
      f(references)`` to rounding.
    - ``rules="captum"``: captum's DeepLiftShap, as papers ran it. It corrects modules of ten
      classes alone, and not in every place. Through anything else it passes the plain gradient, so
      through GELU, SELU, LayerNorm, products and all functions; ``delta`` says by how much the sum
      is off. An activation module that runs more than once is a `RuleError`.

    `baselines.check_rules` lists, for both, what is not handled in a detector.

    ``references`` are waves of real speech, 20 in the public re-implementation of the paper;
    without them, the one reference is silence. Shorter ones are repeated, longer ones cut. Their
    magnitudes meet the phase of the explained recording. ``chunk`` references pass the network at
    once, as many as the memory holds by default. Windows of a long recording pass it a few at a
    time (`Plane.parts`) with full rules; with captum's they pass together, since its rule for
    softmax makes each hang on the others, and the memory grows with the length. Where a choice is a
    tie at the reference, as of equal nodes of a graph in silence, rounding chooses, so that a pass
    with another number of rows may divide the same sum otherwise, by about 2 % of a map. Raises
    `ConfigError` on other settings, and `ShapeError` on waves that are not ``(b, n)`` and finite.
    """

    def __init__(
        self,
        detector: Callable[..., Any],
        *,
        target: str | int = "spoof",
        stft: Stft | None = None,
        scale: Scale = "linear",
        rules: RuleSet = "full",
        references: References | None = None,
        chunk: int | None = None,
    ) -> None:
        check_rule_set(rules)
        check_references(references)
        super().__init__(Plane(detector, target=target, stft=stft, scale=scale, chunk=chunk))
        self.rules = rules
        self.references = references

    def _explain(self, item: Item) -> tuple[Map, Float[Tensor, ""]]:
        explain = _full if self.rules == "full" else _captum
        # first, since it names what is wrong with a detector
        change = self.plane.change(item, self.references)

        def rows(chosen: range) -> Tensor:
            return explain(self.plane, item, self.plane.baseline(item, self.references, chosen))

        return self.plane.mean(rows, count_of(self.references)), change


def deepshap_captum(detector: Callable[..., Any]) -> DeepSHAP:
    """Entry point ``deepshap-captum``: `DeepSHAP` with captum's rules against silence, as the entry
    point ``deepshap`` has full ones; references need recordings, and so Python."""
    return DeepSHAP(detector, rules="captum")


def _full(plane: Plane, item: Item, references: Float[Tensor, "k f t"]) -> Float[Tensor, "k f t"]:
    def contributions(part: Part) -> Tensor:
        ends = references[:, :, part.frames].contiguous()
        value = part.item.value.expand_as(ends).contiguous()
        phase = part.item.phase.expand_as(ends).contiguous()
        return deeplift(lambda x: part.plane.score(x, phase, part.item.length), value, ends)[0]

    return plane.over_parts(item, contributions)


def _captum(plane: Plane, item: Item, references: Float[Tensor, "k f t"]) -> Float[Tensor, "k f t"]:
    import_captum()
    from captum.attr import DeepLift

    # DeepLiftShap is the mean of these. Its softmax rule subtracts a mean over the whole batch, so
    # that references in one pass would influence each other: here each has a pass of its own. So
    # would parts of a recording change their numbers, and it passes whole.
    parts = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting forward, backward hooks")
        try:
            for reference in references.split(1):
                part = DeepLift(plane.wrapper).attribute(
                    item.value.clone().requires_grad_(),
                    baselines=reference,
                    target=plane.column,
                    additional_forward_args=(item.phase, item.length),
                )
                parts.append(part.detach())
        except RuntimeError as error:
            if "used more than once" not in str(error):
                raise
            raise RuleError(
                "captum cannot explain an activation module that runs more than once in a pass; "
                "give each run a module of its own, or use rules='full' "
                "(check_rules(detector, rules='captum') names it)"
            ) from error
    return torch.cat(parts)

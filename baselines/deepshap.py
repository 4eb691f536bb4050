"""DeepSHAP on the time-frequency plane, with captum's rules or with complete ones."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from baselines.contrast import Operation, RuleError, deeplift, survey
from baselines.plane import (
    Attribution,
    Item,
    Plane,
    References,
    Scale,
    as_found,
    check_batch,
    check_count,
    check_references,
    import_captum,
    mean_row,
)
from specsegdiff.errors import ConfigError
from specsegdiff.frontend import RawWrapper, Stft
from specsegdiff.shapes import Map, Wave

RuleSet: TypeAlias = Literal["full", "captum"]
"Which operations the rescale rule reaches."


class DeepSHAP:
    """DeepLIFT against references, averaged (Lundberg & Lee 2017, arXiv 1705.07874, section 4.2).

    - ``rules="full"``: operations have rules, whether modules or functions call them
      (`baselines.contrast`), and one without is a `RuleError`. A map sums to ``f(x) - mean
      f(references)`` to rounding.
    - ``rules="captum"``: captum's DeepLiftShap, as papers ran it. It corrects modules of ten
      classes alone. Through anything else it passes the plain gradient, so through GELU, SELU,
      LayerNorm, products and all functions; ``delta`` says by how much the sum is off. An
      activation module that runs more than once is a `RuleError`.

    ``references`` are waves of real speech, 20 in the public re-implementation of the paper;
    without them, the one reference is silence. Shorter ones are repeated, longer ones cut. Their
    magnitudes meet the phase of the explained recording. ``chunk`` references pass the network at
    once, as many as the memory holds by default. Raises `ConfigError` on other settings, and
    `ShapeError` on waves that are not ``(b, n)`` and finite.
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
        _check_rule_set(rules)
        check_references(references)
        if chunk is not None:
            check_count(chunk, name="chunk")
        self.plane = Plane(detector, target=target, stft=stft, scale=scale)
        self.rules = rules
        self.references = references
        self.chunk = chunk

    def __call__(self, wave: Wave) -> Map:
        """Attribution ``(b, f, t)`` of waves ``(b, n)``, on the axes of `Stft`."""
        return self.attribute(wave).map

    def attribute(self, wave: Wave) -> Attribution:
        """Attribution of waves ``(b, n)``, and how far each is from ``f(x) - mean f(references)``,
        ``(b,)``."""
        return self.plane.attribute(wave, self._explain)

    def _explain(self, item: Item) -> tuple[Map, Float[Tensor, ""]]:
        explain = _full if self.rules == "full" else _captum
        references = self.plane.baseline(item, self.references)

        def rows(chosen: range) -> Tensor:
            return explain(self.plane, item, references[chosen.start : chosen.stop])

        mean = mean_row(rows, len(references), chunk=self.chunk, device=self.plane.device)
        return mean, self.plane.change(item, references, chunk=self.chunk)


@dataclass(frozen=True)
class Gap:
    """A step of a detector that a rule set does not handle."""

    module: str
    "Path of the module that runs it, from the detector; empty for the spectrogram wrapper."
    operation: str
    "What it runs, as ATen names it."
    reason: str
    "Why that is not handled."

    def __str__(self) -> str:
        return f"{self.module or 'wrapper'}: {self.operation} ({self.reason})"


def check_rules(
    detector: Callable[..., Any],
    *,
    rules: RuleSet = "full",
    scale: Scale = "linear",
    stft: Stft | None = None,
    wave: Wave | None = None,
) -> list[Gap]:
    """Steps of a detector that a rule set cannot handle, in order; an empty list is a clean bill.

    Runs one pass on noise against silence, one second at 16 kHz, or on ``wave`` ``(1, n)``, with no
    gradient; the detector is left as it was found. For ``"captum"`` these are the steps whose
    non-linearity is passed over with the plain gradient, and modules that run more than once, for
    which captum stops.

    >>> class Net(torch.nn.Module):
    ...     def forward(self, wave):
    ...         return torch.stack([wave.exp().mean(1), wave.mean(1)], dim=1)
    >>> check_rules(Net())
    []
    >>> print(check_rules(Net(), rules="captum")[0])
    Net: exp (captum sees modules alone, and this runs in the forward of Net)
    """
    _check_rule_set(rules)
    wrapper = RawWrapper(detector, stft, scale=scale)
    device = next((value.device for value in wrapper.parameters()), torch.device("cpu"))
    if wave is None:
        wave = 0.1 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    check_batch(wave)
    with as_found(wrapper), torch.no_grad():
        value, phase, length = wrapper.split(wave[:1].to(device))
        silence = torch.full_like(value, wrapper.silence)
        names = {id(module): _path(path, module) for path, module in wrapper.named_modules()}
        steps = survey(lambda x: wrapper(x, phase, length), value, silence, names=names)
    return _captum_gaps(steps) if rules == "captum" else _full_gaps(steps)


def _full_gaps(steps: Iterable[Operation]) -> list[Gap]:
    return [Gap(step.module, step.name, step.reason) for step in steps if step.reason]


def _captum_gaps(steps: Iterable[Operation]) -> list[Gap]:
    import_captum()
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

    gaps, runs = [], Counter[str]()
    for step in steps:
        kind = "no module" if step.kind is None else step.kind.__name__
        if step.kind in SUPPORTED_NON_LINEAR:
            runs[step.module] += 1
            if runs[step.module] == 2:
                gaps.append(Gap(step.module, step.name, f"{kind} runs more than once"))
        elif step.kind is not None and step.kind.__module__.startswith("torch.nn.modules"):
            gaps.append(Gap(step.module, step.name, f"captum has no rule for {kind}"))
        else:
            reason = f"captum sees modules alone, and this runs in the forward of {kind}"
            gaps.append(Gap(step.module, step.name, reason))
    return gaps


def _path(path: str, module: nn.Module) -> str:
    # paths of a wrapper start with "detector"
    return path.removeprefix("detector").removeprefix(".") or type(module).__name__


def _full(plane: Plane, item: Item, references: Float[Tensor, "k f t"]) -> Float[Tensor, "k f t"]:
    value = item.value.expand_as(references).contiguous()
    phase = item.phase.expand_as(references).contiguous()
    return deeplift(lambda x: plane.score(x, phase, item.length), value, references)[0]


def _captum(plane: Plane, item: Item, references: Float[Tensor, "k f t"]) -> Float[Tensor, "k f t"]:
    import_captum()
    from captum.attr import DeepLift

    # DeepLiftShap is the mean of these. Its softmax rule subtracts a mean over the whole batch, so
    # that references in one pass would influence each other: here each has a pass of its own.
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


def _check_rule_set(rules: object) -> None:
    if rules not in ("full", "captum"):
        raise ConfigError(f"rules must be 'full' or 'captum', got {rules!r}")

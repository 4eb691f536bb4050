"""What a rule set of DeepSHAP does not handle in a detector, told before it runs."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from baselines.contrast import Operation
from baselines.deeplift import survey
from baselines.plane import Scale, as_found, check_batch, device_of, import_captum
from specsegdiff.errors import ConfigError
from specsegdiff.frontend import RawWrapper, Stft
from specsegdiff.shapes import Wave

RuleSet: TypeAlias = Literal["full", "captum"]
"Which operations the rescale rule reaches."


@dataclass(frozen=True)
class Gap:
    """A step of a detector that a rule set does not handle."""

    module: str
    """Path of the module that runs it, from the detector; for the detector itself and the wrapper
    around it, their class; empty outside of any."""
    operation: str
    "What it runs, as ATen names it, or the module's class."
    reason: str
    "Why that is not handled."

    def __str__(self) -> str:
        return f"{self.module or 'no module'}: {self.operation} ({self.reason})"


def check_rules(
    detector: Callable[..., Any],
    *,
    rules: RuleSet = "full",
    scale: Scale = "linear",
    stft: Stft | None = None,
    wave: Wave | None = None,
) -> list[Gap]:
    """Steps of a detector that a rule set cannot handle, in order; an empty list is a clean bill.

    Runs one pass on noise against silence, one second at 16 kHz, or on ``wave`` ``(1, n)``; the
    detector is left as it was found. For ``"captum"``, steps that it does not see, and so passes
    over with the plain gradient, come first; then the modules that captum 0.9 sees and corrects
    wrongly, because of what they are or of how they are wired.

    >>> class Net(torch.nn.Module):
    ...     def forward(self, wave):
    ...         return torch.stack([wave.exp().mean(1), wave.mean(1)], dim=1)
    >>> check_rules(Net())
    []
    >>> print(check_rules(Net(), rules="captum")[0])
    Net: exp (captum sees modules alone, and this runs in the forward of Net)
    """
    check_rule_set(rules)
    wrapper = RawWrapper(detector, stft, scale=scale)
    if wave is None:
        wave = 0.1 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    check_batch(wave)
    names = {id(module): _path(path, module) for path, module in wrapper.named_modules()}
    with as_found(wrapper), torch.inference_mode(False):
        value, phase, length = wrapper.split(wave[:1].detach().clone().to(device_of(wrapper)))
        silence = torch.full_like(value, wrapper.silence)
        steps = survey(lambda x: wrapper(x, phase, length), value, silence, names=names)
        if rules == "full":
            return [Gap(step.module, step.name, step.reason) for step in steps if step.reason]
        unseen = list(_unseen(steps))
        with torch.enable_grad(), _wired(wrapper) as wiring:
            logits = wrapper(value.requires_grad_(), phase, length)
        return [*unseen, *wiring.gaps(logits, names)]


def check_rule_set(rules: object) -> None:
    """Raise `ConfigError` unless ``rules`` names a rule set."""
    if rules not in ("full", "captum"):
        raise ConfigError(f"rules must be 'full' or 'captum', got {rules!r}")


def _path(path: str, module: nn.Module) -> str:
    # paths of a wrapper start with "detector"
    return path.removeprefix("detector").removeprefix(".") or type(module).__name__


# ------------------------------------------------------------------ what captum does not handle


def _supported() -> tuple[type[nn.Module], ...]:
    import_captum()
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

    return tuple(SUPPORTED_NON_LINEAR)


def _unseen(steps: Iterable[Operation]) -> Iterator[Gap]:
    """Steps that no hook of captum's reaches."""
    supported = _supported()
    for step in steps:
        if step.kind in supported:
            continue
        kind = "no module" if step.kind is None else step.kind.__name__
        if step.kind is not None and step.kind.__module__.startswith("torch.nn.modules"):
            reason = f"captum has no rule for {kind}"
        else:
            reason = f"captum sees modules alone, and this runs in the forward of {kind}"
        yield Gap(step.module, step.name, reason)


Place: TypeAlias = tuple[Any, int]
"A tensor as autograd sees it: the function that made it, and which of its results it is."


@dataclass
class _Wiring:
    """How the modules that captum corrects are wired together, seen in one pass.

    Its correction is a hook on the gradient of a module's input, and takes the gradient of the
    module's output from another hook. Where an output is the next module's input, the hook that
    reads comes before the one that corrects (captum issue 1104). Where others take the same input,
    the hook replaces their gradients as well.
    """

    runs: Counter[nn.Module] = field(default_factory=Counter)
    inputs: list[tuple[nn.Module, Place]] = field(default_factory=list)
    makers: dict[Place, nn.Module] = field(default_factory=dict)

    def before(self, module: nn.Module, operands: tuple[Tensor]) -> None:
        """Note what a module takes."""
        self.runs[module] += 1
        if operands[0].grad_fn is not None:
            self.inputs.append((module, (operands[0].grad_fn, operands[0].output_nr)))

    def after(self, module: nn.Module, operands: tuple[Tensor], result: Tensor) -> None:
        """Note what a module returns."""
        self.makers[result.grad_fn, result.output_nr] = module

    def gaps(self, logits: Tensor, names: Mapping[int, str]) -> Iterator[Gap]:
        """What captum does wrong by these modules, in order of their first run."""
        uses = _uses(logits)
        readers = {place: module for module, place in self.inputs}
        stale = {
            self.makers[place]: reader for place, reader in readers.items() if place in self.makers
        }
        shared = {module for module, place in self.inputs if uses[place] > 1}
        for module, count in self.runs.items():
            kind = type(module).__name__
            for is_wrong, reason in (
                (count > 1, f"{kind} runs more than once"),
                (isinstance(module, nn.Softmax), "captum's rule for Softmax does not add up"),
                (_is_irregular(module), f"captum's rule for {kind} needs windows side by side"),
                (
                    module in stale,
                    f"captum gives it the plain gradient of {names.get(id(stale.get(module)))}, "
                    "which takes its result directly",
                ),
                (module in shared, "captum drops the gradient of whatever else takes its input"),
            ):
                if is_wrong:
                    yield Gap(names[id(module)], kind, reason)


@contextlib.contextmanager
def _wired(wrapper: nn.Module) -> Iterator[_Wiring]:
    wiring, supported = _Wiring(), _supported()
    with contextlib.ExitStack() as stack:
        for module in wrapper.modules():
            if type(module) in supported:
                stack.enter_context(module.register_forward_pre_hook(wiring.before))
                stack.enter_context(module.register_forward_hook(wiring.after))
        yield wiring


def _uses(result: Tensor) -> Counter[Place]:
    """How often each tensor is an operand in the graph behind ``result``."""
    counts = Counter[Place]()
    todo, seen = [result.grad_fn], {result.grad_fn}
    while todo:
        for place in getattr(todo.pop(), "next_functions", ()):
            counts[place] += 1
            if place[0] not in seen:
                seen.add(place[0])
                todo.append(place[0])
    return counts


def _is_irregular(module: nn.Module) -> bool:
    """Whether windows of a max-pool overlap or have holes; captum inverts neither."""
    if not isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d):
        return False
    size, stride, dilation = (
        torch.tensor(option) for option in (module.kernel_size, module.stride, module.dilation)
    )
    return bool(((stride < size) | (dilation != 1)).any())

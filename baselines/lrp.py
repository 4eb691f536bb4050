"""AttnLRP: the relevance of an input for the score of a network.

Layer-wise relevance propagation hands an output down to the input, function by function (Bach et
al. 2015, PLoS ONE 10(7)). AttnLRP (Achtibat et al. 2024, arXiv 2402.05602) has the rules for
transformers; they are in `baselines.lrp_rules`.

Functions are seen through ``__torch_function__`` while the network runs. Nothing of the network or
of torch is patched, so there is nothing to put back, and functional calls have rules like modules.
Functions of torch that are written in Python are opened until a rule is found. One without a rule
is an error, never a gradient in disguise.

LRP is patented. The authors of lxt state that it may be used free of charge for personal and
scientific purposes; check this before any other use. zennit is under the LGPL and stays an
optional package of its own.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from baselines.contrast import RuleError
from baselines.lrp_gradients import GammaGradient, GraftedGradient, IdentityGradient
from baselines.lrp_rules import (
    SYNONYMS,
    TAKEN_APART,
    Call,
    LRPRules,
    check_zennit,
    count_active,
    rule_of,
)


@dataclass(frozen=True)
class Flow:
    """The relevance that one call of a function got from above and handed down."""

    function: str
    "Name of the function in torch, such as ``conv1d``."
    module: str
    "Path of the innermost module that calls it, and its class."
    received: float
    "Relevance of its results."
    passed: float
    "Relevance of its operands, as far as it comes through this call."

    @property
    def absorbed(self) -> float:
        """What it kept: the share of constants, of ε, and of the softmax's rest."""
        return self.received - self.passed


def propagate(
    score: Callable[[Tensor], Tensor],
    value: Tensor,
    *,
    rules: LRPRules | None = None,
    root: nn.Module | None = None,
) -> tuple[Tensor, Tensor]:
    """Relevance of ``value``, in its shape, for the sum of ``score(value)``, and this score.

    ``score`` runs a network in evaluation mode; ``root`` is that network, for the names in errors.
    Raises `RuleError` that names all functions without a rule, and `DependencyError` where a γ rule
    is asked for and zennit is missing.

    >>> weight, x = torch.tensor([[1.0, -2.0]]), torch.tensor([3.0, 1.0])
    >>> linear = lambda x: torch.relu(torch.nn.functional.linear(x, weight))
    >>> relevance, score = propagate(linear, x, rules=LRPRules(gamma_linear=0, epsilon=0))
    >>> relevance, score
    (tensor([ 3., -2.]), tensor([1.]))
    """
    relevance, scores, _ = _run(score, value, rules=rules or LRPRules(), root=root, watch=False)
    return relevance, scores


def flows(
    score: Callable[[Tensor], Tensor],
    value: Tensor,
    *,
    rules: LRPRules | None = None,
    root: nn.Module | None = None,
) -> list[Flow]:
    """What every call of a function received and passed on, in order of the forward pass.

    The score is the relevance of ``value`` plus all that is absorbed, to rounding. Functions that
    change a tensor in place are not listed. Takes more memory than `propagate`.
    """
    _, _, meters = _run(score, value, rules=rules or LRPRules(), root=root, watch=True)
    return [Flow(m.function, m.module, m.received, m.passed) for m in meters]


def gaps(score: Callable[[Tensor], Tensor], value: Tensor, *, root: nn.Module | None) -> list[str]:
    """Functions without a rule that a forward pass meets, as ``function in module``; empty is a
    clean bill."""
    rules = LRPRules(gamma_conv=0, gamma_linear=0)
    _, scores, run = _forward(score, value, rules=rules, root=root, watch=False)
    return run.missing(root, scores)


def _run(
    score: Callable[[Tensor], Tensor],
    value: Tensor,
    *,
    rules: LRPRules,
    root: nn.Module | None,
    watch: bool,
) -> tuple[Tensor, Tensor, "list[_Meter]"]:
    check_zennit(rules)
    with torch.inference_mode(False), torch.enable_grad():
        leaf, scores, run = _forward(score, value, rules=rules, root=root, watch=watch)
        missing = run.missing(root, scores)
        if missing:
            raise RuleError(
                f"AttnLRP has no rule for {len(missing)} function(s): {', '.join(missing)}; "
                "replace them by functions that have one (baselines.lrp_rules lists them)"
            )
        (gradient,) = (
            torch.autograd.grad(scores.sum(), leaf, allow_unused=True)
            if scores.requires_grad
            else (None,)
        )
    if gradient is None:
        raise RuleError(
            "the score does not depend on the input: the network runs under no_grad, or detaches; "
            "let gradients through"
        )
    return (leaf * gradient).detach(), scores.detach(), run.meters or []


def _forward(
    score: Callable[[Tensor], Tensor],
    value: Tensor,
    *,
    rules: LRPRules,
    root: nn.Module | None,
    watch: bool,
) -> "tuple[Tensor, Tensor, _Propagation]":
    with torch.inference_mode(False), torch.enable_grad():
        leaf = value.detach().clone().requires_grad_()
        run = _Propagation(rules, names=_paths(root), watch=watch)
        # a copy, since a network may change its input in place, and autograd refuses that to leaves
        start = leaf.clone()
        with run:
            scores = score(start)
    return leaf, scores, run


# ------------------------------------------------------------------ seeing every function


class _Propagation(TorchFunctionMode):
    """While it is entered, functions of tensors record their rule in place of their gradient."""

    def __init__(self, rules: LRPRules, *, names: Mapping[int, str], watch: bool) -> None:
        super().__init__()
        self.rules = rules
        self.names = names
        self.open: list[Any] = []
        self.unknown: list[str] = []
        self.meters: list[_Meter] | None = [] if watch else None
        self.meter: _Meter | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function under its rule."""
        args, kwargs = _mapped(_without_weights, (tuple(args), kwargs or {}))
        if not torch.is_grad_enabled() or not count_active((args, kwargs)):
            return func(*args, **kwargs)
        body = _opened(func)
        # a method of Tensor that calls the kernel of its own name comes back under this name
        if body is not None and func not in self.open:
            self.open.append(func)
            try:
                with self:
                    return body(*args, **kwargs)
            finally:
                self.open.pop()
        name, in_place = _name_of(func)
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        call = Call(self, func, name, args, kwargs, in_place)
        rule = rule_of(name)
        if rule is None:
            return self.without_rule(call)
        if self.meters is None or in_place or rule in TAKEN_APART:
            return rule(call)
        meter = _Meter(name, _caller(self.names))
        self.meters.append(meter)
        return self._metered(rule, call, meter)

    def without_rule(self, call: Call) -> Any:
        """Run a function plainly, and note it where relevance would flow through."""
        result = call.plain()
        if count_active(result):
            place = f"{call.name} in {_caller(self.names)}"
            if place not in self.unknown:
                self.unknown.append(place)
        return result

    def before_rule(self, result: Tensor) -> None:
        """Take note of a result whose gradient a rule is about to change."""
        if self.meter is not None:
            self.meter.on_result(result)

    def missing(self, root: nn.Module | None, scores: Tensor) -> list[str]:
        """Everything that has no rule, or that cannot be seen, in a pass that gave ``scores``."""
        # scores are not kept: their graph leads back here, and memory would never be freed
        modules = [] if root is None else root.named_modules()
        compiled = [
            f"all functions in {_described(path, module)}, which is compiled; pass the original"
            for path, module in modules
            if isinstance(module, torch.jit.ScriptModule)
            or type(module).__name__ == "OptimizedModule"
        ]
        return [*compiled, *self.unknown, *_foreign_functions(scores)]

    def _metered(self, rule: Callable[[Call], Any], call: Call, meter: "_Meter") -> Any:
        call.args = _mapped(meter.on_operand, call.args)
        call.kwargs = _mapped(meter.on_operand, call.kwargs)
        outer, self.meter = self.meter, meter
        try:
            result = rule(call)
        finally:
            self.meter = outer
        _mapped(meter.on_result, result)
        return result


class _Meter:
    """Sums of activation times gradient at both sides of one call."""

    def __init__(self, function: str, module: str) -> None:
        self.function = function
        self.module = module
        self.received = 0.0
        self.passed = 0.0
        self._seen: set[int] = set()

    def on_operand(self, x: Tensor) -> Tensor:
        """A view of an operand that counts what comes back through it."""
        if not x.requires_grad:
            return x
        view, value = x.view_as(x), x.detach()

        def count(gradient: Tensor) -> None:
            self.passed += _relevance(value, gradient)

        view.register_hook(count)
        return view

    def on_result(self, x: Tensor) -> Tensor:
        """The same tensor, counted before its rule changes the gradient."""
        if x.requires_grad and id(x) not in self._seen:
            self._seen.add(id(x))
            value = x.detach()

            def count(gradient: Tensor) -> None:
                self.received += _relevance(value, gradient)

            x.register_hook(count)
        return x


def _relevance(value: Tensor, gradient: Tensor) -> float:
    product = (gradient.conj() * value).real if value.is_complex() else gradient * value
    # a masked score is minus infinity, and gets no gradient
    return float(torch.where(gradient == 0, 0, product).double().sum())


# ------------------------------------------------------------------ names, places, parts


def _name_of(func: Any) -> tuple[str, bool]:
    """Name of a function without underscores, and whether it changes its first operand."""
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__", "__delete__"):
        # an attribute, such as x.T or x.real
        return getattr(func.__self__, "__name__", name), False
    if name.startswith("__") and name.endswith("__"):
        short = name[2:-2]
        if short[0] == "i" and short[1:] in _OPERATORS:
            return SYNONYMS.get(short[1:], short[1:]), True
        if short[0] == "r" and short[1:] in _OPERATORS[:4]:
            short = short[1:]
        return SYNONYMS.get(short, short), short == "setitem"
    short = name if name == "requires_grad_" else name.rstrip("_")
    return SYNONYMS.get(short, short), short != name


_OPERATORS = ("add", "sub", "mul", "matmul", "truediv", "pow")
"Also with an i in front, for in place; the first four also with an r, for swapped operands."

_GUARDS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def _opened(func: Any) -> Callable[..., Any] | None:
    """The body of a function of torch that is written in Python, None for any other.

    Such a function first asks whether its operands take over. The body here is told that they
    don't, so that the functions it calls are seen instead.
    """
    if isinstance(func, FunctionType) and set(_GUARDS) & set(func.__code__.co_names):
        return _unguarded(func)
    return None


@cache
def _unguarded(func: FunctionType) -> FunctionType:
    names = func.__globals__ | dict.fromkeys(_GUARDS, lambda *operands: False)
    body = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


def _paths(root: nn.Module | None) -> dict[int, str]:
    if root is None:
        return {}
    return {id(module): _described(path, module) for path, module in root.named_modules()}


def _described(path: str, module: nn.Module) -> str:
    return f"{path} ({type(module).__name__})" if path else type(module).__name__


def _caller(names: Mapping[int, str]) -> str:
    """The innermost module whose method is running."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            return names.get(id(module), type(module).__name__)
        frame = frame.f_back
    return "no module"


def _foreign_functions(result: Tensor) -> list[str]:
    """Functions with a gradient of their own in Python, which no rule has seen."""
    todo: list[Any] = [] if result.grad_fn is None else [result.grad_fn]
    seen, found = set(todo), []
    while todo:
        node = todo.pop()
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            kind = type(node)._forward_cls
            name = f"the autograd function {kind.__name__}"
            if kind not in (IdentityGradient, GraftedGradient, GammaGradient) and name not in found:
                found.append(name)
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                todo.append(before)
    return found


def _mapped(change: Callable[[Tensor], Any], value: Any) -> Any:
    """``value`` with its tensors changed, in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(change, part) for name, part in value.items()}
    if type(value) is list or type(value) is tuple:
        return type(value)(_mapped(change, part) for part in value)
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        # named results, such as those of max: looked at, not rebuilt
        for part in value:
            _mapped(change, part)
    return value


def _without_weights(x: Tensor) -> Tensor:
    """The tensor; a constant where it is a leaf, so a weight of the network."""
    return x.detach() if x.requires_grad and x.is_leaf else x

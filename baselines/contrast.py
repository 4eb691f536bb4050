"""A tensor at two ends of a network, and how every operation runs on it.

DeepLIFT (Shrikumar et al. 2017, arXiv 1704.02685) explains ``f(x) - f(x')`` by multipliers m with
``Σ m (x - x') = f(x) - f(x')``. `baselines.deeplift` finds them as follows. A `Contrast` passes
through the network in place of its input. It holds three tensors: the value at the actual input,
the value at the reference, and their difference, the *change*. Every operation runs at both ends,
and its rule (`baselines.deeplift_rules`) says how the change of its result follows from the changes
of its operands: by a linear map that depends on both ends and is exact. So the change of the output
is a linear function of that of the input, and the multipliers are its gradient.

Operations are seen below modules and functions (``__torch_dispatch__``), after composite ones are
taken apart: a rule holds wherever the operation is called from, and nothing of the model is
touched. An operation without a rule is an error, never a gradient in disguise.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import enable_reentrant_dispatch
from torch.utils._pytree import tree_flatten, tree_map

from specsegdiff.errors import SpecSegDiffError

aten = torch.ops.aten


class RuleError(SpecSegDiffError, NotImplementedError):
    """A step of a network that a rule set cannot carry a difference through; see `operation`."""

    def __init__(self, message: str, operation: "Operation | None" = None) -> None:
        super().__init__(message)
        self.operation = operation


class Contrast(Tensor):
    """A tensor of the network at two ends, and the change between them.

    ``change`` is ``actual - reference`` to rounding, and has gradients to the input's change. It is
    None for whole numbers and truth values, and for what is made of those alone.
    """

    actual: Tensor
    reference: Tensor
    change: Tensor | None

    @staticmethod
    def __new__(cls, actual: Tensor, reference: Tensor, change: Tensor | None) -> "Contrast":
        """Wrap three tensors of one shape."""
        self: Contrast = torch.Tensor._make_wrapper_subclass(
            cls,
            actual.shape,
            strides=actual.stride(),
            storage_offset=actual.storage_offset(),
            dtype=actual.dtype,
            device=actual.device,
        )
        self.actual, self.reference = actual, reference
        self.change = None if change is None else _laid_out(change, actual)
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation at both ends, and carry the change through it."""
        # inference mode alone does not take operations apart that are made of others
        if torch.is_inference_mode_enabled() and func._can_decompose():
            return func.decompose(*args, **(kwargs or {}))
        # a network's own no_grad says what is trained, not what it computes: it is lifted here
        with enable_reentrant_dispatch(), torch.inference_mode(False), torch.enable_grad():
            return _apply(func, tuple(args), dict(kwargs or {}))

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Contrast({tuple(self.shape)}, {self.dtype})"


@dataclass(frozen=True)
class Operation:
    """A step of a network that is not linear in its input."""

    name: str
    "Name in ATen, such as ``gelu``."
    module: str
    "Path of the innermost module that runs it; empty outside of any."
    kind: type[nn.Module] | None
    "Class of that module."
    reason: str
    "Why no difference can be carried through it; empty where one can."


@dataclass(frozen=True)
class Call:
    """One operation with its operands, and its results at both ends."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    actual: Any
    reference: Any

    def __getitem__(self, place: int) -> Any:
        return self.args[place] if place < len(self.args) else None

    def option(self, name: str, place: int, default: Any = None) -> Any:
        """An argument that may come by place or by name."""
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)

    def rerun(self, operands: Mapping[int, Any]) -> Any:
        """The operation with some operands replaced; the others must be constant."""
        args = tuple(operands.get(place, value) for place, value in enumerate(self.args))
        if depends((args, self.kwargs)):
            raise rule_error(self.func, "an operand that it takes as constant depends on the input")
        if "reduce" in self.kwargs:
            raise rule_error(self.func, "it reduces what it writes")
        return self.func(*args, **self.kwargs)


@dataclass(frozen=True)
class Rule:
    """How the changes of an operation's results follow from those of its operands."""

    change: Callable[[Call], Any]
    "The results' changes, in the results' structure; None where a result has none."
    is_linear: Callable[[Call], bool] = field(default=lambda call: False)
    "Whether this call is linear in what depends on the network's input."


@dataclass
class Pass:
    """One pass of a network: the rules that hold, and what it meets."""

    rules: Mapping[Any, Rule]
    "Rules by operation."
    names: Mapping[int, str] = field(default_factory=dict)
    "Paths of modules by their ids, for errors and for ``found``."
    found: list[Operation] | None = None
    """Where steps that are not linear are noted, in order; those without a rule are then taken as
    constant. None: such a step is a `RuleError`."""
    inside_rule: bool = False
    "A rule that is spelled out in other operations is one step all the same."

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While entered, operations on contrasts belong to this pass."""
        token = _PASS.set(self)
        try:
            yield
        finally:
            _PASS.reset(token)


_PASS: ContextVar[Pass | None] = ContextVar("pass", default=None)


# ------------------------------------------------------------------ running an operation


def constant(made: Any) -> Any:
    """A floating or complex tensor as a contrast without change; anything else as it is."""
    if not isinstance(made, Tensor) or isinstance(made, Contrast) or not _is_number(made):
        return made
    return Contrast(made, made.clone(), torch.zeros_like(made))


def _apply(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if torch.Tag.inplace_view in func.tags:
        return _reshape_in_place(func, args, kwargs)
    if func._schema.is_mutable:
        return _change_in_place(func, args, kwargs)
    # a view of a constant is one of all its three tensors, since it may yet be written to
    is_view = any(result.alias_info for result in func._schema.returns)
    args, kwargs = tree_map(_weight if is_view else _settled, (args, kwargs))
    if not depends((args, kwargs)):
        with torch.no_grad():
            return tree_map(constant, func(*args, **kwargs))
    if func.overloadpacket in _LIKENESSES:
        return constant(func(*tree_map(actual_of, args), **tree_map(actual_of, kwargs)))
    with torch.no_grad():
        actual, reference = (
            func(*tree_map(end, args), **tree_map(end, kwargs)) for end in (actual_of, reference_of)
        )
    call = Call(func, args, kwargs, actual, reference)
    leaves = tree_flatten((args, kwargs))[0]
    changes = [leaf.change for leaf in leaves if isinstance(leaf, Contrast)]
    if all(change is None for change in changes) or not _has_numbers(actual):
        return tree_map(lambda *ends: _decided(call, *ends), actual, reference)
    return _wrap(call, actual, reference, _changes(call))


_LIKENESSES = {
    *(aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like),
    *(aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.new_empty_strided),
}
"Operations that take the kind of a tensor, and nothing of its values."


def _changes(call: Call) -> Any:
    run = _PASS.get()
    if run is None:
        raise rule_error(call.func, "the pass that its operand comes from is over")
    rule = run.rules.get(call.func.overloadpacket)
    if run.found is None or run.inside_rule:
        if rule is None:
            raise rule_error(call.func, "it has no rule")
        return rule.change(call)
    run.inside_rule = True
    try:
        if rule is None:
            raise rule_error(call.func, "it has no rule")
        changes = rule.change(call)
        if not rule.is_linear(call):
            run.found.append(_operation(call.func, reason=""))
    except RuleError as error:
        changes = tree_map(_no_change, call.actual)
        run.found.append(error.operation or _operation(call.func, reason=str(error)))
    finally:
        run.inside_rule = False
    return changes


def _change_in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute out of place, then copy into all three tensors, whose views see it as they should."""
    target = args[0]
    functional = _out_of_place(func)
    if functional is None:
        raise rule_error(func, "it writes to its arguments")
    result = _apply(functional, args, kwargs)
    if not isinstance(target, Contrast):
        if isinstance(result, Contrast):
            raise rule_error(
                func,
                "it writes what depends on the input into a tensor made without it; "
                "make that one from the input with new_zeros or zeros_like",
            )
        return target.copy_(result)
    change = None if target.change is None else change_of(result, func)
    with torch.no_grad():
        target.actual.copy_(actual_of(result))
        target.reference.copy_(reference_of(result))
    if target.change is not None:
        target.change.copy_(change)
    return target


def _reshape_in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``transpose_`` and its kind: all three tensors become views, and the wrapper says so."""
    from torch.utils._mode_utils import no_dispatch

    target, view = args[0], getattr(aten, name_of(func).removesuffix("_"))
    target.actual = view(target.actual, *args[1:], **kwargs)
    target.reference = view(target.reference, *args[1:], **kwargs)
    if target.change is not None:
        target.change = view(target.change, *args[1:], **kwargs)
    with no_dispatch():
        func(*args, **kwargs)
    return target


def _decided(call: Call, actual: Any, reference: Any) -> Any:
    """A result without a change: plain where both ends agree, so that masks cost nothing."""
    if not isinstance(actual, Tensor):
        if actual != reference:
            raise rule_error(
                call.func,
                f"it takes {actual!r} into Python at the actual input and {reference!r} at the "
                "reference, so the network may run differently",
            )
        return actual
    if actual.shape != reference.shape:
        raise rule_error(
            call.func,
            f"its result is of shape {tuple(actual.shape)} at the actual input and "
            f"{tuple(reference.shape)} at the reference",
        )
    return actual if torch.equal(actual, reference) else Contrast(actual, reference, None)


def _wrap(call: Call, actual: Any, reference: Any, change: Any) -> Any:
    if isinstance(actual, list | tuple):
        parts = [_wrap(call, *part) for part in zip(actual, reference, change, strict=True)]
        return parts if isinstance(actual, list) else tuple(parts)
    if change is None:
        return _decided(call, actual, reference)
    return Contrast(actual, reference, change)


def _out_of_place(func: Any) -> Any:
    name = name_of(func)
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    return getattr(packet, func._overloadname, None)


def _laid_out(change: Tensor, like: Tensor) -> Tensor:
    """``change`` with the strides of ``like``, so that views of both view the same places."""
    strides = zip(change.stride(), like.stride(), like.shape, strict=True)
    if all(mine == theirs for mine, theirs, size in strides if size > 1):
        return change
    made = torch.empty_strided(like.shape, like.stride(), dtype=change.dtype, device=change.device)
    return made.copy_(change)


def _settled(value: Any) -> Any:
    """A plain copy in place of a constant contrast, and no gradient to weights."""
    is_constant = isinstance(value, Contrast) and value.change is not None
    # a copy, since autograd may keep it while the network writes to the constant
    settled = is_constant and not value.change.requires_grad
    return value.actual.clone() if settled else _weight(value)


def _weight(value: Any) -> Any:
    is_plain = isinstance(value, Tensor) and not isinstance(value, Contrast)
    return value.detach() if is_plain and value.requires_grad else value


def _has_numbers(results: Any) -> bool:
    return any(isinstance(r, Tensor) and _is_number(r) for r in tree_flatten(results)[0])


def _is_number(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _no_change(result: Any) -> Tensor | None:
    return torch.zeros_like(result) if isinstance(result, Tensor) and _is_number(result) else None


# ------------------------------------------------------------------ operands


def actual_of(value: Any) -> Any:
    """An operand at the actual input."""
    return value.actual if isinstance(value, Contrast) else value


def reference_of(value: Any) -> Any:
    """An operand at the reference."""
    return value.reference if isinstance(value, Contrast) else value


def mean_of(operand: Any) -> Any:
    """An operand at the mean of both ends."""
    both = isinstance(operand, Contrast)
    return (operand.actual + operand.reference) / 2 if both else operand


def change_of(operand: Any, func: Any) -> Any:
    """Change of an operand: of a constant, zero; of a list, those of its members.

    Raises `RuleError` on behalf of ``func`` where the operand has none.
    """
    if isinstance(operand, Contrast):
        if operand.change is None:
            raise rule_error(
                func,
                "an operand follows from the input only by a hard decision (comparison, rounding "
                "to integers), which no rule can divide among the inputs",
            )
        return operand.change
    if isinstance(operand, Tensor):
        return torch.zeros_like(operand)
    if isinstance(operand, list | tuple):
        return [change_of(member, func) for member in operand]
    return None if operand is None else 0


def depends(operand: Any) -> bool:
    """Whether an operand, or a member of it, differs between both ends."""
    return any(isinstance(leaf, Contrast) for leaf in tree_flatten(operand)[0])


# ------------------------------------------------------------------ errors that name the place


def rule_error(func: Any, reason: str) -> RuleError:
    """The error of an operation that cannot be carried through, with the module that runs it."""
    operation = _operation(func, reason=reason)
    where = "" if operation.kind is None else f" in {operation.kind.__name__}"
    return RuleError(
        f"no difference can be carried through {operation.name}{where}: {reason}; write this step "
        "with other operations, or use another method (check_rules(detector) lists all such steps)",
        operation,
    )


def name_of(func: Any) -> str:
    """Name of an operation in ATen."""
    return func if isinstance(func, str) else func._schema.name.split("::")[1]


def _operation(func: Any, *, reason: str) -> Operation:
    run, module = _PASS.get(), _innermost_module()
    path = "" if run is None or module is None else run.names.get(id(module), "")
    return Operation(name_of(func), path, None if module is None else type(module), reason)


def _innermost_module() -> nn.Module | None:
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None

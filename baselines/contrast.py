"""DeepLIFT for every operation of a network: differences from a reference, carried exactly.

DeepLIFT (Shrikumar et al. 2017, arXiv 1704.02685) explains ``f(x) - f(x')`` by multipliers m with
``Σ m (x - x') = f(x) - f(x')``. Here they are found as follows. A `Contrast` passes through the
network in place of its input. It holds three tensors: the value at the item, the value at the
reference, and their difference, the *change*. Every operation runs at both ends, and its rule says
how the change of its result follows from the changes of its operands: by a linear map that depends
on both ends and is exact. So the change of the output is a linear function of that of the input,
and the multipliers are its gradient.

Operations are seen below modules and functions (``__torch_dispatch__``), after composite ones are
taken apart: a rule holds wherever the operation is called from, and nothing of the model is
touched. An operation without a rule is an error, never a gradient in disguise.

========================  ========================================================================
operation                 map of the changes Δ, with a and r for the two ends
========================  ========================================================================
linear, views             the operation itself, without its constant part
element-wise f            rescale rule: ``Δ (f(a) - f(r)) / (a - r)``
product, matmul, conv     ``Δx mean(y) + mean(x) Δy``: the mean of both orders of change
quotient                  a product with the reciprocal, whose slope is ``-1 / (a r)``
softmax                   ``ρ (Δ - ΔL)``, ρ the logarithmic mean of both softmaxes
logsumexp L, log-softmax  ``ΔL = Σ ρ Δ / Σ ρ``, and ``Δ - ΔL``
LayerNorm and its kind    as sums, products and ``1 / √``; batch norm in evaluation is linear
maximum, max-pool         all to the winner of the end with the larger maximum
top-k, gather, where      mean of both choices; what the change of choice adds is spread over the
                          line that is chosen from, in proportion to ``(a - r)²``
========================  ========================================================================
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, enable_reentrant_dispatch
from torch.utils._pytree import tree_flatten, tree_map

from baselines import deepshap_rules as rules
from specsegdiff.errors import SpecSegDiffError

aten = torch.ops.aten


class RuleError(SpecSegDiffError, NotImplementedError):
    """A step of a network that a rule set cannot carry a difference through; see `operation`."""

    def __init__(self, message: str, operation: "Operation | None" = None) -> None:
        super().__init__(message)
        self.operation = operation


class Contrast(Tensor):
    """A tensor of the network at two ends, item and reference, and the change between them.

    ``change`` is ``item - reference`` to rounding, and has gradients to the input's change. It is
    None for whole numbers and truth values, and for what is made of those alone.
    """

    item: Tensor
    reference: Tensor
    change: Tensor | None

    @staticmethod
    def __new__(cls, item: Tensor, reference: Tensor, change: Tensor | None) -> "Contrast":
        """Wrap three tensors of one shape."""
        self: Contrast = torch.Tensor._make_wrapper_subclass(
            cls,
            item.shape,
            strides=item.stride(),
            storage_offset=item.storage_offset(),
            dtype=item.dtype,
            device=item.device,
        )
        self.item, self.reference = item, reference
        self.change = None if change is None else _laid_out(change, item)
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation at both ends, and carry the change through it."""
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


def deeplift(
    network: Callable[[Tensor], Tensor], item: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor]:
    """Contributions of an input ``(k, ...)`` to ``network(item) - network(reference)``, and this
    difference, ``(k,)``.

    ``network`` maps ``(k, ...)`` to ``(k,)`` without one row influencing another, in evaluation
    mode. The contributions of a row sum to its difference, to rounding. Raises `RuleError` on an
    operation without a rule.

    >>> x, y = torch.tensor([[2.0, 3.0]]), torch.tensor([[0.0, 1.0]])
    >>> deeplift(lambda v: v[:, 0] * v[:, 1], x, y)  # 2 * mean(1, 3) and 2 * mean(0, 2)
    (tensor([[4., 2.]]), tensor([6.]))
    """
    change = (item - reference).detach().requires_grad_()
    result = _pass(network, item, reference, change)
    if not isinstance(result, Contrast):
        return torch.zeros_like(item), torch.zeros_like(result)
    carried = _change_of(result, "the output")
    if not carried.requires_grad:
        return torch.zeros_like(item), result.item - result.reference
    (multiplier,) = torch.autograd.grad(carried.sum(), change)
    return (multiplier * change).detach(), result.item - result.reference


def survey(
    network: Callable[[Tensor], Tensor],
    item: Tensor,
    reference: Tensor,
    *,
    names: Mapping[int, str],
) -> list[Operation]:
    """All steps of a pass that are not linear in its input, in order; ``names`` maps ids of modules
    to their paths.

    Steps without a rule are told, not raised, and the pass goes on as if they were constant. Where
    the network takes a decision in Python, the list ends with that step.
    """
    run = _Survey(names)
    token = _SURVEY.set(run)
    try:
        _pass(network, item, reference, (item - reference).detach().requires_grad_())
    except RuleError as error:
        # the pass cannot go on behind this one
        if error.operation is None:
            raise
        run.found.append(error.operation)
    finally:
        _SURVEY.reset(token)
    return run.found


def _pass(
    network: Callable[[Tensor], Tensor], item: Tensor, reference: Tensor, change: Tensor
) -> Tensor:
    with _separate_operations(), _Boards(), torch.enable_grad():
        # copies, since a network may change its input in place, which autograd refuses to leaves
        return network(Contrast(item.detach().clone(), reference.detach().clone(), change.clone()))


# ------------------------------------------------------------------ running an operation


@dataclass(frozen=True)
class Call:
    """One operation with its operands, and its results at both ends."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    item: Any
    reference: Any

    def __getitem__(self, place: int) -> Any:
        return self.args[place] if place < len(self.args) else None

    def option(self, name: str, place: int, default: Any = None) -> Any:
        """An argument that may come by place or by name."""
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)


@dataclass(frozen=True)
class Rule:
    """How the changes of an operation's results follow from those of its operands."""

    change: Callable[[Call], Any]
    "The results' changes, in the results' structure; None where a result has none."
    is_linear: Callable[[Call], bool] = field(default=lambda call: False)
    "Whether this call is linear in what depends on the network's input."


@dataclass
class _Survey:
    names: Mapping[int, str]
    found: list[Operation] = field(default_factory=list)
    inside_rule: bool = False


_SURVEY: ContextVar[_Survey | None] = ContextVar("survey", default=None)


@contextlib.contextmanager
def _separate_operations() -> Iterator[None]:
    """Keep away kernels that run a whole layer, or attention, as one operation."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Boards(TorchFunctionMode):
    """New tensors as constant contrasts, since a network may write into them what depends on its
    input: the state of an LSTM, a board that is filled part by part."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        return _constant(made) if func in _FACTORIES else made


def _constant(made: Any) -> Any:
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
    if not _depends((args, kwargs)):
        with torch.no_grad():
            return tree_map(_constant, func(*args, **kwargs))
    if func.overloadpacket in _LIKENESSES:
        return _constant(func(*tree_map(_item, args), **tree_map(_item, kwargs)))
    with torch.no_grad():
        ends = [func(*tree_map(end, args), **tree_map(end, kwargs)) for end in (_item, _reference)]
    call = Call(func, args, kwargs, *ends)
    leaves = tree_flatten((args, kwargs))[0]
    changes = [leaf.change for leaf in leaves if isinstance(leaf, Contrast)]
    if all(change is None for change in changes) or not _has_numbers(call.item):
        return tree_map(lambda item, reference: _decided(call, item, reference), *ends)
    return _wrap(call, *ends, _changes(call))


def _changes(call: Call) -> Any:
    survey, rule = _SURVEY.get(), _RULES.get(call.func.overloadpacket)
    # a rule that is spelled out in other operations is one step all the same
    if survey is None or survey.inside_rule:
        if rule is None:
            raise _error(call.func, "it has no rule")
        return rule.change(call)
    survey.inside_rule = True
    try:
        if rule is None:
            raise _error(call.func, "it has no rule")
        changes = rule.change(call)
        if not rule.is_linear(call):
            survey.found.append(_operation(call.func, reason=""))
    except RuleError as error:
        changes = tree_map(_no_change, call.item)
        survey.found.append(error.operation or _operation(call.func, reason=str(error)))
    finally:
        survey.inside_rule = False
    return changes


def _change_in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute out of place, then copy into all three tensors, whose views see it as they should."""
    target = args[0]
    functional = _out_of_place(func)
    if functional is None:
        raise _error(func, "it writes to its arguments")
    result = _apply(functional, args, kwargs)
    if not isinstance(target, Contrast):
        if isinstance(result, Contrast):
            raise _error(
                func,
                "it writes what depends on the input into a tensor made without it; "
                "make that one from the input with new_zeros or zeros_like",
            )
        return target.copy_(result)
    change = None if target.change is None else _change_of(result, func)
    with torch.no_grad():
        target.item.copy_(_item(result))
        target.reference.copy_(_reference(result))
    if target.change is not None:
        target.change.copy_(change)
    return target


def _reshape_in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``transpose_`` and its kind: all three tensors become views, and the wrapper says so."""
    from torch.utils._mode_utils import no_dispatch

    target, view = args[0], getattr(aten, _name(func).removesuffix("_"))
    target.item = view(target.item, *args[1:], **kwargs)
    target.reference = view(target.reference, *args[1:], **kwargs)
    if target.change is not None:
        target.change = view(target.change, *args[1:], **kwargs)
    with no_dispatch():
        func(*args, **kwargs)
    return target


def _decided(call: Call, item: Any, reference: Any) -> Any:
    """A result without a change: plain where both ends agree, so that masks cost nothing."""
    if not isinstance(item, Tensor):
        if item != reference:
            raise _error(
                call.func,
                f"it takes {item!r} into Python at the item and {reference!r} at the reference, so "
                "the network may run differently",
            )
        return item
    if item.shape != reference.shape:
        raise _error(
            call.func,
            f"its result is of shape {tuple(item.shape)} at the item and {tuple(reference.shape)} "
            "at the reference",
        )
    return item if torch.equal(item, reference) else Contrast(item, reference, None)


def _wrap(call: Call, item: Any, reference: Any, change: Any) -> Any:
    if isinstance(item, list | tuple):
        parts = [_wrap(call, *part) for part in zip(item, reference, change, strict=True)]
        return parts if isinstance(item, list) else tuple(parts)
    if change is None:
        return _decided(call, item, reference)
    return Contrast(item, reference, change)


def _out_of_place(func: Any) -> Any:
    name = _name(func)
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
    constant = isinstance(value, Contrast) and value.change is not None
    # a copy, since autograd may keep it while the network writes to the constant
    return value.item.clone() if constant and not value.change.requires_grad else _weight(value)


def _weight(value: Any) -> Any:
    is_plain = isinstance(value, Tensor) and not isinstance(value, Contrast)
    return value.detach() if is_plain and value.requires_grad else value


def _item(value: Any) -> Any:
    return value.item if isinstance(value, Contrast) else value


def _reference(value: Any) -> Any:
    return value.reference if isinstance(value, Contrast) else value


def _has_numbers(results: Any) -> bool:
    return any(isinstance(r, Tensor) and _is_number(r) for r in tree_flatten(results)[0])


def _is_number(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _no_change(result: Any) -> Tensor | None:
    return torch.zeros_like(result) if isinstance(result, Tensor) and _is_number(result) else None


# ------------------------------------------------------------------ errors that name the place


def _error(func: Any, reason: str) -> RuleError:
    operation = _operation(func, reason=reason)
    where = "" if operation.kind is None else f" in {operation.kind.__name__}"
    return RuleError(
        f"no difference can be carried through {operation.name}{where}: {reason}; write this step "
        "with other operations, or use another method (check_rules(detector) lists all such steps)",
        operation,
    )


def _operation(func: Any, *, reason: str) -> Operation:
    survey, module = _SURVEY.get(), _innermost_module()
    path = "" if survey is None or module is None else survey.names.get(id(module), "")
    return Operation(_name(func), path, None if module is None else type(module), reason)


def _innermost_module() -> nn.Module | None:
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _name(func: Any) -> str:
    return func if isinstance(func, str) else func._schema.name.split("::")[1]


# ------------------------------------------------------------------ kinds of rules


def _change_of(operand: Any, func: Any) -> Any:
    """Change of an operand: of a constant, zero; of a list, those of its members."""
    if isinstance(operand, Contrast):
        if operand.change is None:
            raise _error(
                func,
                "an operand follows from the input only by a hard decision (comparison, rounding "
                "to integers), which no rule can divide among the inputs",
            )
        return operand.change
    if isinstance(operand, Tensor):
        return torch.zeros_like(operand)
    if isinstance(operand, list | tuple):
        return [_change_of(member, func) for member in operand]
    return None if operand is None else 0


def _mean_of(operand: Any) -> Any:
    both = isinstance(operand, Contrast)
    return (operand.item + operand.reference) / 2 if both else operand


def _depends(operand: Any) -> bool:
    return any(isinstance(leaf, Contrast) for leaf in tree_flatten(operand)[0])


def _rerun(call: Call, operands: Mapping[int, Any]) -> Any:
    """The operation with some operands replaced; the others must be constant."""
    args = tuple(operands.get(place, value) for place, value in enumerate(call.args))
    if _depends((args, call.kwargs)):
        raise _error(call.func, "an operand that it takes as constant depends on the input")
    if "reduce" in call.kwargs:
        raise _error(call.func, "it reduces what it writes")
    return call.func(*args, **call.kwargs)


def _linear(*places: int) -> Rule:
    """Of an operation that is linear in its operands at ``places`` together."""

    def change(call: Call) -> Any:
        return _rerun(
            call, {p: _change_of(call[p], call.func) for p in places if p < len(call.args)}
        )

    return Rule(change, is_linear=lambda call: True)


def _bilinear(first: int, second: int, *offsets: int) -> Rule:
    """Of a product of two operands, plus further operands that are added.

    ``x y - x' y' = (x - x') (y + y') / 2 + (x + x') / 2 (y - y')``: the mean of what both orders of
    change give, which is the Shapley value of two players.
    """

    def change(call: Call) -> Any:
        x, y = call[first], call[second]
        added = {p: _change_of(call[p], call.func) for p in offsets if p < len(call.args)}
        absent = {p: None if z is None else torch.zeros_like(z) for p, z in added.items()}
        parts = []
        if _depends(x):
            parts.append({first: _change_of(x, call.func), second: _mean_of(y)})
        if _depends(y):
            parts.append({first: _mean_of(x), second: _change_of(y, call.func)})
        if not parts:
            parts.append({first: torch.zeros_like(x)})
        result = _rerun(call, parts[0] | added)
        return result + _rerun(call, parts[1] | absent) if len(parts) > 1 else result

    def is_linear(call: Call) -> bool:
        return not (_depends(call[first]) and _depends(call[second]))

    return Rule(change, is_linear)


def _elementwise(slope: Callable[[Call, Tensor, Tensor], Tensor], *, results: int = 1) -> Rule:
    """Of a function of each element of the first operand, by its slope between both ends."""

    def change(call: Call) -> Any:
        x = call[0]
        if not isinstance(x, Contrast):
            raise _error(call.func, "an operand that it takes as constant depends on the input")
        change = _change_of(x, call.func) * slope(call, x.item, x.reference)
        return change if results == 1 else (change, *(None,) * (results - 1))

    return Rule(change)


def _as_function(call: Call) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        result = _rerun(call, {0: x})
        return result[0] if isinstance(result, tuple) else result

    return function


def _piecewise(call: Call, a: Tensor, r: Tensor) -> Tensor:
    return rules.secant(_as_function(call), a, r)


def _smooth(*kinks: float) -> Callable[[Call, Tensor, Tensor], Tensor]:
    return lambda call, a, r: rules.smooth_secant(_as_function(call), a, r, kinks=kinks)


def _closed(slope: Callable[[Tensor, Tensor], Tensor], factor: float = 1.0) -> Rule:
    return _elementwise(lambda call, a, r: factor * slope(a, r))


def _spelled(formula: Callable[..., Any]) -> Rule:
    """Of an operation that is spelled out in others."""

    def change(call: Call) -> Any:
        result = formula(*call.args, **call.kwargs)
        return tree_map(lambda part: None if part is None else _change_of(part, call.func), result)

    return Rule(change)


# ------------------------------------------------------------------ rules of single operations


def _quotient_change(call: Call) -> Any:
    if call.kwargs.get("rounding_mode") is not None:
        raise _error(call.func, "it rounds")
    if not _depends(call[1]):
        return _rerun(call, {0: _change_of(call[0], call.func)})
    return _change_of(rules.quotient(*call.args), call.func)


def _copy_change(call: Call) -> Any:
    # aten.copy has no derivative
    target, source = call[0], _change_of(call[1], call.func)
    return source.to(target.dtype).expand(target.shape).clone()


def _strided_change(call: Call) -> Any:
    x, change = call[0], _change_of(call[0], call.func)
    if (change.stride(), change.storage_offset()) != (x.item.stride(), x.item.storage_offset()):
        raise _error(call.func, "its operand is laid out otherwise than its change")
    return _rerun(call, {0: change})


def _softmax_change(call: Call) -> Any:
    x = call[0]
    return rules.softmax_change(_change_of(x, call.func), x.item, x.reference, call[1])


def _log_softmax_change(call: Call) -> Any:
    x = call[0]
    return rules.log_softmax_change(_change_of(x, call.func), x.item, x.reference, call[1])


def _logsumexp_change(call: Call) -> Any:
    x, keepdim = call[0], call.option("keepdim", 2, False)
    change = _change_of(x, call.func)
    return rules.logsumexp_change(change, x.item, x.reference, call[1], keepdim=keepdim)


def _abs_change(call: Call) -> Any:
    x = call[0]
    return rules.abs_change(_change_of(x, call.func), x.item, x.reference)


def _amax_change(call: Call) -> Any:
    x, dims = call[0], call.option("dim", 1, [])
    keepdim = call.option("keepdim", 2, False)
    axes = sorted(axis % x.ndim for axis in (dims or range(x.ndim)))
    lines = [_lines(part, axes) for part in (_change_of(x, call.func), x.item, x.reference)]
    picks = [line.argmax(-1, keepdim=True) for line in lines[1:]]
    change = rules.winner_change(*lines, dim=-1, first=picks[0], second=picks[1])[..., 0]
    if keepdim:
        for axis in axes:
            change = change.unsqueeze(axis)
    return change


def _lines(x: Tensor, axes: list[int]) -> Tensor:
    """``x`` with ``axes`` moved to the end as one."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    return x.permute(*kept, *axes).flatten(len(kept)) if x.ndim else x[None]


def _max_change(call: Call) -> Any:
    if len(call.args) == 1:
        return _amax_change(call)
    x, dim, keepdim = call[0], call[1], call.option("keepdim", 2, False)
    picks = [ends[1] if keepdim else ends[1].unsqueeze(dim) for ends in (call.item, call.reference)]
    change = rules.winner_change(
        _change_of(x, call.func), x.item, x.reference, dim=dim, first=picks[0], second=picks[1]
    )
    return change if keepdim else change.squeeze(dim), None


def _pool_change(axes: int) -> Callable[[Call], Any]:
    """Max-pooling over the last ``axes`` axes; its indices count along them as one."""

    def change(call: Call) -> Any:
        x, shape = call[0], call.item[0].shape
        flat = [part.flatten(-axes) for part in (_change_of(x, call.func), x.item, x.reference)]
        picks = [ends[1].flatten(-axes) for ends in (call.item, call.reference)]
        change = rules.winner_change(*flat, dim=-1, first=picks[0], second=picks[1])
        return change.reshape(shape), None

    return change


def _chosen(call: Call, dim: int, first: Tensor, second: Tensor) -> Tensor:
    x = call[0]
    change = _change_of(x, call.func)
    return rules.chosen_change(change, x.item, x.reference, dim=dim, first=first, second=second)


def _gather_change(call: Call) -> Any:
    if not _depends(call[2]):
        return _rerun(call, {0: _change_of(call[0], call.func)})
    if not _depends(call[0]):
        raise _error(call.func, "a hard decision chooses among constants")
    return _chosen(call, call[1], call[2].item, call[2].reference)


def _sorted_change(call: Call) -> Any:
    # topk(x, k, dim), sort(x, dim), sort.stable(x, *, stable, dim)
    place = 2 if "topk" in _name(call.func) else 1
    return _chosen(call, call.option("dim", place, -1), call.item[1], call.reference[1]), None


def _where_change(call: Call) -> Any:
    condition, *operands = call.args
    if not _depends(condition):
        return _rerun(call, {p: _change_of(call[p], call.func) for p in (1, 2)})
    changes = tuple(_change_of(operand, call.func) for operand in operands)
    ends = tuple((_item(operand), _reference(operand)) for operand in operands)
    return rules.switched_change(
        changes,  # type: ignore[arg-type]
        ends,  # type: ignore[arg-type]
        first=condition.item,
        second=condition.reference,
    )


def _operands_linear(*places: int) -> Callable[[Call], bool]:
    return lambda call: not any(_depends(call[place]) for place in places)


def _power_change(call: Call) -> Any:
    base, exponent = call.args
    if _depends(base) and not isinstance(exponent, Tensor):
        slope = rules.power_slope(base.item, base.reference, float(exponent))
        return _change_of(base, call.func) * slope
    if _depends(exponent) and not isinstance(base, Tensor):
        rate = math.log(base)
        slope = rate * rules.exp_slope(rate * exponent.item, rate * exponent.reference)
        return _change_of(exponent, call.func) * slope
    raise _error(call.func, "both its base and its exponent are tensors")


def _is_affine(call: Call) -> bool:
    """Tell whether a batch norm uses stored statistics: the flag ``training`` is off."""
    return not call[5]


# ------------------------------------------------------------------ which operation has which rule


def _table(groups: Mapping[str, Rule]) -> dict[Any, Rule]:
    """Rules by operation, from names separated by blanks; those that this torch lacks are left
    out."""
    return {
        getattr(aten, name): rule
        for names, rule in groups.items()
        for name in names.split()
        if hasattr(aten, name)
    }


_FACTORIES = {torch.zeros, torch.ones, torch.full, torch.empty}

_LIKENESSES = {
    *(aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like),
    *(aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.new_empty_strided),
}

_RULES = _table(
    {
        # linear in their first operand, whatever the others are
        "view _unsafe_view reshape _reshape_alias permute transpose t squeeze unsqueeze expand "
        "select slice narrow split split_with_sizes unsafe_split unsafe_split_with_sizes "
        "unsafe_chunk chunk unbind unfold diagonal alias clone flip roll repeat "
        "view_as_real view_as_complex real imag _conj _conj_physical conj_physical resolve_conj "
        "_neg_view resolve_neg neg sum mean cumsum trace tril triu diag_embed lift_fresh "
        "avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d im2col col2im "
        "upsample_nearest1d upsample_nearest2d upsample_linear1d upsample_bilinear2d "
        "upsample_bicubic2d pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d "
        "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d channel_shuffle "
        "unfold_backward _fft_r2c _fft_c2r _fft_c2c index_select index take cat stack zero polar "
        "_to_copy": _linear(0),
        # the gradient passes where the network stops it for its training
        "detach": Rule(lambda call: aten.alias(_change_of(call[0], call.func)), lambda call: True),
        # and linear in further ones
        "add sub rsub lerp complex fill slice_scatter select_scatter": _linear(0, 1),
        "constant_pad_nd masked_fill masked_scatter index_put": _linear(0, 2),
        "scatter scatter_add index_add index_copy index_fill": _linear(0, 3),
        "copy": Rule(_copy_change, is_linear=lambda call: True),
        "as_strided": Rule(_strided_change, is_linear=lambda call: True),
        # products
        "mul mm bmm mv dot vdot": _bilinear(0, 1),
        "linear convolution _convolution conv2d": _bilinear(0, 1, 2),
        "addmm baddbmm addmv addbmm addr addcmul": _bilinear(1, 2, 0),
        "div": Rule(_quotient_change, _operands_linear(1)),
        "addcdiv": _spelled(rules.plus_quotient),
        # element-wise, straight between kinks
        "relu leaky_relu hardtanh relu6 clamp clamp_min clamp_max threshold _prelu_kernel "
        "hardsigmoid softshrink hardshrink sign floor ceil round trunc frac nan_to_num": (
            _elementwise(_piecewise)
        ),
        # element-wise, smooth
        "gelu silu mish sigmoid tanh softplus erf erfc sin cos tan asinh atan sinh cosh expm1 "
        "log1p exp2 softsign sinc": _elementwise(_smooth()),
        "log_sigmoid_forward": _elementwise(_smooth(), results=2),
        "elu celu": _elementwise(_smooth(0.0)),
        "hardswish": _elementwise(_smooth(-3.0, 3.0)),
        # element-wise, in closed form
        "exp": _closed(rules.exp_slope),
        "log": _closed(rules.log_slope),
        "log2": _closed(rules.log_slope, 1.4426950408889634),
        "log10": _closed(rules.log_slope, 0.4342944819032518),
        "sqrt": _closed(rules.sqrt_slope),
        "rsqrt": _closed(rules.rsqrt_slope),
        "reciprocal": _closed(rules.reciprocal_slope),
        "square": _closed(lambda a, r: a + r),
        "abs": Rule(_abs_change),
        "pow": Rule(_power_change),
        # softmax and its kind
        "_softmax _safe_softmax": Rule(_softmax_change),
        "_log_softmax": Rule(_log_softmax_change),
        "logsumexp": Rule(_logsumexp_change),
        # norms of activations
        "native_layer_norm": _spelled(rules.layer_norm),
        "_fused_rms_norm": _spelled(rules.rms_norm),
        "native_group_norm": _spelled(rules.group_norm),
        "native_batch_norm": Rule(_spelled(rules.batch_norm).change, _is_affine),
        "cudnn_batch_norm": Rule(
            lambda call: (*_spelled(rules.batch_norm).change(call), None), _is_affine
        ),
        "var": _spelled(rules.variance),
        "std": _spelled(rules.deviation),
        "var_mean": _spelled(rules.variance_and_mean),
        "std_mean": _spelled(rules.deviation_and_mean),
        "linalg_vector_norm": _spelled(rules.vector_norm),
        "glu": _spelled(rules.gated_linear),
        "prod": _spelled(rules.product),
        # choices
        "amax": Rule(_amax_change),
        "amin": _spelled(rules.least),
        "max": Rule(_max_change),
        "min": _spelled(rules.lowest),
        "maximum": _spelled(rules.largest),
        "minimum": _spelled(rules.smallest),
        "max_pool2d_with_indices adaptive_max_pool2d": Rule(_pool_change(2)),
        "max_pool3d_with_indices adaptive_max_pool3d": Rule(_pool_change(3)),
        "topk sort": Rule(_sorted_change),
        "gather": Rule(_gather_change, _operands_linear(2)),
        "where": Rule(_where_change, _operands_linear(0)),
    }
)

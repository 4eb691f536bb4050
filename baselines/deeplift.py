"""DeepLIFT for every operation of a network: what each input adds to the difference of two ends."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from baselines.contrast import Contrast, Operation, Pass, RuleError, change_of, constant
from baselines.deeplift_rules import RULES


def deeplift(
    network: Callable[[Tensor], Tensor], actual: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor]:
    """Contributions of an input ``(k, ...)`` to ``network(actual) - network(reference)``, and this
    difference, ``(k,)``.

    ``network`` maps ``(k, ...)`` to ``(k,)`` without one row influencing another, in evaluation
    mode. The contributions of a row sum to its difference, to rounding. Raises `RuleError` on an
    operation without a rule. How it works: `baselines.contrast`.

    >>> x, y = torch.tensor([[2.0, 3.0]]), torch.tensor([[0.0, 1.0]])
    >>> deeplift(lambda v: v[:, 0] * v[:, 1], x, y)  # 2 * mean(1, 3) and 2 * mean(0, 2)
    (tensor([[4., 2.]]), tensor([6.]))
    """
    change = (actual - reference).detach().requires_grad_()
    with Pass(RULES).running():
        result = _run(network, actual, reference, change)
        if not isinstance(result, Contrast):
            return torch.zeros_like(actual), torch.zeros_like(result)
        carried = change_of(result, "the output")
    if not carried.requires_grad:
        return torch.zeros_like(actual), result.actual - result.reference
    (multiplier,) = torch.autograd.grad(carried.sum(), change)
    return (multiplier * change).detach(), result.actual - result.reference


def survey(
    network: Callable[[Tensor], Tensor],
    actual: Tensor,
    reference: Tensor,
    *,
    names: Mapping[int, str],
) -> list[Operation]:
    """All steps of a pass that are not linear in its input, in order; ``names`` maps ids of modules
    to their paths.

    Steps without a rule are told, not raised, and the pass goes on as if they were constant. Where
    the network takes a decision in Python, the list ends with that step.
    """
    found: list[Operation] = []
    change = (actual - reference).detach().requires_grad_()
    try:
        with Pass(RULES, names, found).running():
            _run(network, actual, reference, change)
    except RuleError as error:
        # the pass cannot go on behind this one
        if error.operation is None:
            raise
        found.append(error.operation)
    return found


def _run(
    network: Callable[[Tensor], Tensor], actual: Tensor, reference: Tensor, change: Tensor
) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # no kernel runs attention as one operation
    with sdpa_kernel(SDPBackend.MATH), _Boards(), torch.enable_grad():
        # copies, since a network may change its input in place, which autograd refuses to leaves
        ends = actual.detach().clone(), reference.detach().clone()
        return network(Contrast(*ends, change.clone()))


class _Boards(TorchFunctionMode):
    """New tensors as constant contrasts, since a network may write into them what depends on its
    input: the state of an LSTM, a board that is filled part by part.

    While such a mode is entered, torch runs no layer of a transformer as one operation either.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        return constant(made) if func in _FACTORIES else made


_FACTORIES = {torch.zeros, torch.ones, torch.full, torch.empty}

"""What stands in place of a gradient in AttnLRP: autograd functions that hand down R / x."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST = 1e-10
"Activations below it in size pass no relevance through element-wise functions, as in lxt."


class IdentityGradient(torch.autograd.Function):
    """Identity rule (Eq. 9): the gradient is output over input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Value of the function; keeps output over input."""
        y = function(x)
        ctx.save_for_backward(ratio(y, x))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Gradient times output over input."""
        (ratio,) = ctx.saved_tensors
        return gradients[0] * ratio, None


class GraftedGradient(torch.autograd.Function):
    """The gradient of one tensor with the value of another."""

    @staticmethod
    def forward(ctx: Any, other: Tensor, value: Callable[[], Tensor]) -> Tensor:
        """Value of ``value()``."""
        return value()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient as it is, to ``other``."""
        return gradients[0], None


class GammaGradient(torch.autograd.Function):
    """zennit's generalised γ rule, between relevance and relevance over activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "Layer", gamma: float, epsilon: float) -> Tensor:
        """Value of the layer."""
        ctx.save_for_backward(x)
        ctx.layer, ctx.gamma, ctx.epsilon = layer, gamma, epsilon
        return layer.forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Relevance by the γ rule, over activation."""
        from zennit.rules import Gamma

        (x,) = ctx.saved_tensors
        # without an ε, zennit divides 0 by 0 where nothing has the output's sign
        rule = Gamma(gamma=ctx.gamma, stabilizer=max(ctx.epsilon, 1e-3 * SMALLEST))
        rule.stored_tensors["input"] = (x,)
        received = gradients[0] * ctx.layer.forward(x)
        (relevance,) = rule.backward(ctx.layer, (x,), (received,))
        return ratio(relevance, x, smallest=0.0), None, None, None


class Layer(nn.Module):
    """A functional linear layer as the module that zennit wants; the network's own is not used, so
    normalised weights and functional calls are layers too."""

    def __init__(
        self, function: Callable[..., Tensor], weight: Tensor, bias: Tensor | None
    ) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to ``x``, weight and bias."""
        return self.function(x, self.weight, self.bias)


def ratio(y: Tensor, x: Tensor, *, smallest: float = SMALLEST) -> Tensor:
    """``y / x``, and 0 where x is 0 or below ``smallest`` in size."""
    tiny = x.abs() <= smallest
    return torch.where(tiny, 0, y / torch.where(tiny, 1, x))

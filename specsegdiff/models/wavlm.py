"""WavLM's attention with projections that are called as layers, so that adapters reach them."""

from functools import cache
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def call_projections(model: Any) -> None:
    """Let a `transformers.WavLMModel` call its query, key, value and output layers.

    Its own attention reads their weights and leaves the layers aside: what peft wraps around them
    would stay without effect and without gradient, and nothing would tell. The numbers are the
    same, and so are the names of all tensors.
    """
    for layer in model.encoder.layers:
        layer.attention.__class__ = _called_attention()


@cache
def _called_attention() -> type:
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    class CalledAttention(WavLMAttention):
        """`WavLMAttention` by calls of its layers; heads are returned as None."""

        def torch_multi_head_self_attention(  # type: ignore[override]  # no masks, no heads
            self, hidden_states: Float[Tensor, "b t d"], attention_mask: None, bias: Tensor
        ) -> tuple[Float[Tensor, "b t d"], None]:
            """Attention among frames; ``bias`` ``(b h, t, t)`` is added to the scores."""
            query, key, value = (
                rearrange(project(hidden_states), "b t (h d) -> b h t d", h=self.num_heads)
                for project in (self.q_proj, self.k_proj, self.v_proj)
            )
            mixed = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=rearrange(bias, "(b h) t u -> b h t u", h=self.num_heads),
                dropout_p=self.dropout if self.training else 0.0,
            )
            return self.out_proj(rearrange(mixed, "b h t d -> b t (h d)")), None

    return CalledAttention

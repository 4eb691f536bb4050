"""Graph attention of AASIST: nodes of frequency and of time, joined, pooled and classified.

Written anew after clovaai/aasist at a04c9863 (NAVER Corp., MIT licence) and its paper, Jung et al.
2022, arXiv 2110.01200. Both published detectors end in it: AASIST, and SSL_Anti-spoofing on
wav2vec 2.0 features. Every non-linearity is a module of its own that runs once in a pass and
nothing is changed in place, so that hooks of attributions see each of them.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from specsegdiff.errors import ConfigError
from specsegdiff.models.detector import LABELS


@dataclass(frozen=True)
class GraphConfig:
    """Sizes of the graph part; the defaults are AASIST's."""

    dims: tuple[int, int] = (64, 32)
    "Width of a node before and after the two kinds of nodes are joined (``gat_dims``)."
    pool_ratios: tuple[float, float, float] = (0.5, 0.7, 0.5)
    """Share of nodes that pooling keeps: spectral, temporal, joined. The fourth ``pool_ratios`` of
    the published configuration is never read."""
    temperatures: tuple[float, float, float] = (2.0, 2.0, 100.0)
    """Divisors of the attention scores: spectral, temporal, joined. The fourth published one is
    never read."""

    def __post_init__(self) -> None:
        if len(self.dims) != 2 or any(not isinstance(d, int) or d < 1 for d in self.dims):
            raise ConfigError(f"GraphConfig.dims must be two positive integers, got {self.dims!r}")
        if len(self.pool_ratios) != 3 or not all(0 < ratio <= 1 for ratio in self.pool_ratios):
            raise ConfigError(
                f"GraphConfig.pool_ratios must be three shares in (0, 1], got {self.pool_ratios!r}"
            )
        if len(self.temperatures) != 3 or not all(t > 0 for t in self.temperatures):
            raise ConfigError(
                f"GraphConfig.temperatures must be three positive numbers, got "
                f"{self.temperatures!r}"
            )


def _score(width: int) -> nn.Linear:
    layer = nn.Linear(width, 1, bias=False)
    nn.init.xavier_normal_(layer.weight)
    return layer


def _norm_nodes(norm: nn.BatchNorm1d, nodes: Float[Tensor, "b v d"]) -> Float[Tensor, "b v d"]:
    """Batch norm over items and nodes alike."""
    return rearrange(norm(rearrange(nodes, "b v d -> b d v")), "b d v -> b v d")


class GraphAttention(nn.Module):
    """Attention among the nodes of one kind, scored by their element-wise products."""

    def __init__(self, in_dim: int, out_dim: int, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.drop = nn.Dropout(0.2)
        self.hidden = nn.Linear(in_dim, out_dim)
        self.tanh = nn.Tanh()
        self.score = _score(out_dim)
        self.softmax = nn.Softmax(dim=-1)
        self.mix = nn.Linear(in_dim, out_dim)
        self.own = nn.Linear(in_dim, out_dim)
        self.norm = nn.BatchNorm1d(out_dim)
        self.selu = nn.SELU()

    def forward(self, nodes: Float[Tensor, "b v d"]) -> Float[Tensor, "b v e"]:
        """Map nodes ``(b, v, in)`` to ``(b, v, out)``."""
        nodes = self.drop(nodes)
        products = nodes[:, :, None] * nodes[:, None]
        scores = self.score(self.tanh(self.hidden(products)))[..., 0]
        weights = self.softmax(scores / self.temperature)
        return self.selu(_norm_nodes(self.norm, self.mix(weights @ nodes) + self.own(nodes)))


class JointAttention(nn.Module):
    """Attention among nodes of two kinds, with scores by kind of edge, and a master node that reads
    them all: the paper's heterogeneous stacking graph attention layer (HS-GAL)."""

    def __init__(self, in_dim: int, out_dim: int, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.project_temporal = nn.Linear(in_dim, in_dim)
        self.project_spectral = nn.Linear(in_dim, in_dim)
        self.drop = nn.Dropout(0.2)
        self.hidden = nn.Linear(in_dim, out_dim)
        self.tanh = nn.Tanh()
        self.score_temporal = _score(out_dim)
        self.score_spectral = _score(out_dim)
        self.score_across = _score(out_dim)
        self.softmax = nn.Softmax(dim=-1)
        self.mix = nn.Linear(in_dim, out_dim)
        self.own = nn.Linear(in_dim, out_dim)
        self.norm = nn.BatchNorm1d(out_dim)
        self.selu = nn.SELU()
        self.hidden_master = nn.Linear(in_dim, out_dim)
        self.tanh_master = nn.Tanh()
        self.score_master = _score(out_dim)
        self.softmax_master = nn.Softmax(dim=-2)
        self.mix_master = nn.Linear(in_dim, out_dim)
        self.own_master = nn.Linear(in_dim, out_dim)

    def forward(
        self,
        temporal: Float[Tensor, "b t d"],
        spectral: Float[Tensor, "b s d"],
        master: Float[Tensor, "#b 1 d"],
    ) -> tuple[Float[Tensor, "b t e"], Float[Tensor, "b s e"], Float[Tensor, "b 1 e"]]:
        """Map the nodes of both kinds and the master from width ``in`` to width ``out``."""
        sizes = (temporal.shape[1], spectral.shape[1])
        nodes = torch.cat([self.project_temporal(temporal), self.project_spectral(spectral)], dim=1)
        nodes = self.drop(nodes)
        weights = self.softmax(self._scores(nodes, n_temporal=sizes[0]) / self.temperature)
        # the master is updated from the nodes as they were, not as they become
        master = self._read(nodes, master)
        nodes = self.selu(_norm_nodes(self.norm, self.mix(weights @ nodes) + self.own(nodes)))
        temporal, spectral = nodes.split(sizes, dim=1)
        return temporal, spectral, master

    def _scores(self, nodes: Tensor, *, n_temporal: int) -> Float[Tensor, "b v w"]:
        hidden = self.tanh(self.hidden(nodes[:, :, None] * nodes[:, None]))
        is_temporal = torch.arange(nodes.shape[1], device=nodes.device) < n_temporal
        within = is_temporal[:, None] == is_temporal
        same = torch.where(
            is_temporal[:, None, None], self.score_temporal(hidden), self.score_spectral(hidden)
        )
        return torch.where(within[..., None], same, self.score_across(hidden))[..., 0]

    def _read(self, nodes: Tensor, master: Tensor) -> Float[Tensor, "b 1 e"]:
        scores = self.score_master(self.tanh_master(self.hidden_master(nodes * master)))
        weights = self.softmax_master(scores / self.temperature)
        return self.mix_master(weights.transpose(1, 2) @ nodes) + self.own_master(master)


class GraphPool(nn.Module):
    """Keep the share of nodes with the highest score, scaled by it, highest first."""

    def __init__(self, ratio: float, dim: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.drop = nn.Dropout(0.3)
        self.score = nn.Linear(dim, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, nodes: Float[Tensor, "b v d"]) -> Float[Tensor, "b w d"]:
        """Map ``(b, v, d)`` to ``(b, max(1, floor(ratio * v)), d)``."""
        scores = self.sigmoid(self.score(self.drop(nodes)))
        kept = scores.topk(max(int(self.ratio * nodes.shape[1]), 1), dim=1).indices
        return (nodes * scores).gather(1, kept.expand(-1, -1, nodes.shape[2]))


class Branch(nn.Module):
    """Two joint attentions with pooling between them, and a learned master node: one side of the
    paper's max graph operation."""

    def __init__(self, config: GraphConfig) -> None:
        super().__init__()
        wide, narrow = config.dims
        ratio, temperature = config.pool_ratios[2], config.temperatures[2]
        self.master = nn.Parameter(torch.randn(1, 1, wide))
        self.first = JointAttention(wide, narrow, temperature=temperature)
        self.pool_temporal = GraphPool(ratio, narrow)
        self.pool_spectral = GraphPool(ratio, narrow)
        self.second = JointAttention(narrow, narrow, temperature=temperature)

    def forward(self, temporal: Tensor, spectral: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map nodes to narrow ones, temporal and spectral, and the master ``(b, 1, d)``."""
        temporal, spectral, master = self.first(temporal, spectral, self.master)
        temporal, spectral = self.pool_temporal(temporal), self.pool_spectral(spectral)
        more = self.second(temporal, spectral, master)
        return temporal + more[0], spectral + more[1], master + more[2]


class GraphBackend(nn.Module):
    """From spectral nodes ``(b, s, c)`` and temporal nodes ``(b, t, c)`` to logits ``(b, 2)``.

    The number of spectral nodes is fixed, since each has a learned position; time is free.
    """

    def __init__(self, config: GraphConfig, *, channels: int, spectral_nodes: int) -> None:
        super().__init__()
        wide, narrow = config.dims
        self.position = nn.Parameter(torch.randn(1, spectral_nodes, channels))
        spectral, temporal, _ = config.temperatures
        self.attend_spectral = GraphAttention(channels, wide, temperature=spectral)
        self.attend_temporal = GraphAttention(channels, wide, temperature=temporal)
        self.pool_spectral = GraphPool(config.pool_ratios[0], wide)
        self.pool_temporal = GraphPool(config.pool_ratios[1], wide)
        self.branches = nn.ModuleList([Branch(config), Branch(config)])
        self.drop_way = nn.Dropout(0.2)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(5 * narrow, len(LABELS))

    def forward(
        self, spectral: Float[Tensor, "b s c"], temporal: Float[Tensor, "b t c"]
    ) -> Float[Tensor, "b 2"]:
        """Join both kinds of nodes twice, take the element-wise maximum, read out and classify."""
        spectral = self.pool_spectral(self.attend_spectral(spectral + self.position))
        temporal = self.pool_temporal(self.attend_temporal(temporal))
        ways = [branch(temporal, spectral) for branch in self.branches]
        temporal, spectral, master = (
            torch.maximum(self.drop_way(one), self.drop_way(two))
            for one, two in zip(*ways, strict=True)
        )
        readout = [
            value
            for nodes in (temporal, spectral)
            for value in (nodes.abs().max(dim=1).values, nodes.mean(dim=1))
        ]
        return self.out(self.drop(torch.cat([*readout, master[:, 0]], dim=1)))

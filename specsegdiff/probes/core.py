"""One linear probe per region of a token sequence, and decisions that name their regions.

A region's log-odds can come from its own tokens alone. After segmentation-guided spatial indexing
(Al-Zyoud and El Saddik 2026, arXiv 2606.00098), whose pooling and fusion are not public: here the
mean, and a sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specsegdiff import hub
from specsegdiff.errors import ConfigError, DependencyError, ShapeError
from specsegdiff.probes.decision import Decision, Evidence
from specsegdiff.probes.pooling import Pooled, pool_regions

PULL = 0.01
"Weight of the pull of `RegionProbes.weighed` towards equal say; it keeps the say finite."


@dataclass(frozen=True)
class ProbeConfig:
    """What probes expect, and how they are fitted."""

    regions: tuple[str, ...]
    "Names; a token of label i belongs to ``regions[i]``."
    size: int
    "Length of a token."
    minimum: int = 1
    "Tokens that a region needs; with fewer its probe abstains."
    penalty: float = 100.0
    """Weight of half the squared length of a probe's weights beside the sum of its losses, on
    standardised means."""
    tokens: str = ""
    "What the tokens are, such as a model and its layer: nothing else in a file says so."

    def __post_init__(self) -> None:
        if not self.regions or len(set(self.regions)) < len(self.regions):
            raise ConfigError(
                f"ProbeConfig.regions must be one or more different names, got {self.regions!r}"
            )
        for name in ("size", "minimum"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"ProbeConfig.{name} must be a positive integer, got {value!r}")
        if not 0 < self.penalty < float("inf"):
            raise ConfigError(
                f"ProbeConfig.penalty must be positive and finite, got {self.penalty!r}"
            )


class RegionProbes(hub.Stored):
    """A logistic regression for each region on the mean of its tokens; make them with `fit`.

    The score of an item is the sum over its regions of log-odds times say. An absent region adds
    nothing, as log-odds of 0 do. Say is never negative, so what speaks for spoof in a region speaks
    for spoof in the score; it is equal until `weighed` sets it from held-out items.

    >>> draw = torch.Generator().manual_seed(0)
    >>> tokens, spoof = torch.randn(40, 6, 2, generator=draw), torch.arange(40) % 2 == 0
    >>> tokens[spoof, :3] += 2.0  # the left half betrays a spoof, the right one does not
    >>> labels = torch.tensor([0, 0, 0, 1, 1, 1]).expand(40, 6)
    >>> config = ProbeConfig(("left", "right"), size=2, penalty=1.0)
    >>> pooled = pool_regions(tokens, labels, count=2)
    >>> probes = RegionProbes.fit(pooled, spoof, config)
    >>> decision = probes.decide(tokens[:1], labels[:1])[0]
    >>> decision.is_spoof, decision.rests_on
    (True, ('left',))
    """

    config_kind = ProbeConfig
    weight: Float[Tensor, "r d"]
    bias: Float[Tensor, " r"]
    say: Float[Tensor, " r"]
    fitted: Bool[Tensor, " r"]

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config = config
        count = len(config.regions)
        # exact sums need more than float32 where tokens are far from 0
        self.register_buffer("weight", torch.zeros(count, config.size, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("say", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("fitted", torch.zeros(count, dtype=torch.bool))

    @classmethod
    def fit(cls, pooled: Pooled, is_spoof: Bool[Tensor, "b"], config: ProbeConfig) -> Self:
        """Fit each region's probe to the items in which the region is there.

        Both classes weigh the same. A region that is not there in both classes gets no probe, and
        always abstains. Raises `ShapeError` where means or labels do not fit, there is one class
        only, or no region gets a probe; `DependencyError` without scikit-learn.
        """
        linear = _logistic()
        probes = cls(config)
        spoof = probes._truth(pooled, is_spoof)
        values = pooled.values.detach().cpu().double().numpy()
        for region, present in enumerate(probes._enough(pooled).numpy().T):
            truth = spoof[present]
            if not 0 < truth.sum() < len(truth):
                continue
            rows = values[present, region]
            mean, scale = rows.mean(0), rows.std(0)
            # what varies by less than float32 can tell is constant
            scale[scale <= 1e-6 * np.abs(mean)] = 1.0
            model = linear(C=1 / config.penalty, class_weight="balanced", max_iter=2000)
            model.fit((rows - mean) / scale, truth)
            weight = model.coef_[0] / scale
            probes.weight[region] = torch.from_numpy(weight)
            probes.bias[region] = float(model.intercept_[0] - weight @ mean)
            probes.fitted[region] = True
        if not probes.fitted.any():
            raise ShapeError(
                f"no region of {config.regions} has {config.minimum} or more tokens in items of "
                "both classes; check the labels, or lower ProbeConfig.minimum"
            )
        probes.say.copy_(probes.fitted.double() / probes.fitted.sum())
        return probes.eval()

    def weighed(self, pooled: Pooled, is_spoof: Bool[Tensor, "b"]) -> Self:
        """Return probes whose say makes the score of held-out items most likely.

        The logistic loss, both classes weighing the same, has no intercept, keeps say at 0 or
        above, and is pulled towards equal say by `PULL`. A region that is no better than chance
        on those items ends near 0. Raises `ShapeError` as `fit` does.
        """
        from scipy.optimize import minimize

        spoof = self._truth(pooled, is_spoof)
        log_odds = self.log_odds(pooled).nan_to_num(0.0).numpy()
        sign = np.where(spoof, 1.0, -1.0)
        share = np.where(spoof, 0.5 / spoof.sum(), 0.5 / (~spoof).sum())
        fitted = self.fitted.cpu().numpy()
        equal = fitted / fitted.sum()

        def loss(say: Any) -> tuple[float, Any]:
            margin = sign * (log_odds @ say)
            slope = -share * sign * np.exp(-np.logaddexp(0.0, margin))
            value = share @ np.logaddexp(0.0, -margin) + PULL * np.sum((say - equal) ** 2)
            return float(value), slope @ log_odds + 2 * PULL * (say - equal)

        bounds = [(0.0, None if there else 0.0) for there in fitted]
        found = minimize(loss, equal, jac=True, bounds=bounds, method="L-BFGS-B")
        probes = type(self)(self.config)
        probes.load_state_dict({**self.state_dict(), "say": torch.from_numpy(found.x)})
        return probes.eval()

    def log_odds(self, pooled: Pooled) -> Float[Tensor, "b r"]:
        """What each region's probe says, float64; NaN where it abstains."""
        # on the CPU: not every device has float64
        values = pooled.values.detach().cpu().double()
        present = self._present(pooled)
        odds = einsum(values, self.weight.to(values), "b r d, r d -> b r") + self.bias.to(values)
        return odds.where(present, torch.nan)

    def contributions(self, pooled: Pooled) -> Float[Tensor, "b r"]:
        """Part of each region in the score, float64; 0 where it abstains. Their sum is the score,
        which means nothing where all abstain: `scores` has NaN there."""
        odds = self.log_odds(pooled)
        return odds.nan_to_num(0.0) * self.say.to(odds)

    def scores(self, pooled: Pooled) -> Float[Tensor, "b"]:
        """Log-odds of spoof, float64; NaN where every region abstains."""
        none = ~self._present(pooled).any(1)
        return self.contributions(pooled).sum(1).masked_fill(none, torch.nan)

    def forward(
        self, tokens: Float[Tensor, "b n d"], labels: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b"]:
        """`scores` of tokens with their labels."""
        return self.scores(self._pool(tokens, labels))

    def decide(
        self, tokens: Float[Tensor, "b n d"], labels: Int[Tensor, "b n"]
    ) -> tuple[Decision, ...]:
        """Judge items and say by what: a `Decision` for each."""
        return self.judge(self._pool(tokens, labels))

    def judge(self, pooled: Pooled) -> tuple[Decision, ...]:
        """`decide` of tokens that are pooled already."""
        rows = zip(
            self.scores(pooled).tolist(),
            self.log_odds(pooled).tolist(),
            self.contributions(pooled).tolist(),
            pooled.counts.tolist(),
            self._present(pooled).tolist(),
            strict=True,
        )
        return tuple(self._decision(*row) for row in rows)

    def token_contributions(
        self, tokens: Float[Tensor, "b n d"], labels: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b n"]:
        """Part of each token in the score, float64; 0 where it or its region was not read.

        Exact, since a probe of a mean is the mean of the probe; a region's bias is shared equally.
        """
        pooled = self._pool(tokens, labels)
        values, labels = tokens.detach().cpu().double(), labels.cpu()
        odds = einsum(values, self.weight.to(values), "b n d, r d -> b n r") + self.bias.to(values)
        part = self.say.to(values) * self._present(pooled) / pooled.counts.cpu().clamp_min(1)
        inside = labels[..., None] == torch.arange(len(self.config.regions))
        return einsum(odds, inside.to(odds), part, "b n r, b n r, b r -> b n")

    def _decision(
        self,
        score: float,
        log_odds: Sequence[float],
        contributions: Sequence[float],
        counts: Sequence[int],
        present: Sequence[bool],
    ) -> Decision:
        names = self.config.regions
        evidence = [
            Evidence(*found)
            for found, there in zip(
                zip(names, counts, log_odds, contributions, strict=True), present, strict=True
            )
            if there
        ]
        return Decision(
            score=score if evidence else None,
            evidence=tuple(sorted(evidence, key=lambda e: -abs(e.contribution))),
            absent=tuple(name for name, there in zip(names, present, strict=True) if not there),
        )

    def _pool(self, tokens: Tensor, labels: Tensor) -> Pooled:
        return pool_regions(tokens, labels, count=len(self.config.regions))

    def _present(self, pooled: Pooled) -> Bool[Tensor, "b r"]:
        """Regions that can be judged by: they have enough tokens, and a probe."""
        return self._enough(pooled) & self.fitted.cpu()

    def _enough(self, pooled: Pooled) -> Bool[Tensor, "b r"]:
        expected = (len(self.config.regions), self.config.size)
        if tuple(pooled.values.shape[1:]) != expected:
            raise ShapeError(
                f"these probes read {expected[0]} regions {self.config.regions} of tokens of "
                f"length {expected[1]} ({self.config.tokens or 'unnamed'}), got "
                f"{tuple(pooled.values.shape[1:])}; pass tokens and labels as in training"
            )
        return pooled.counts.cpu() >= self.config.minimum

    def _truth(self, pooled: Pooled, is_spoof: Tensor) -> Any:
        self._enough(pooled)
        shape, kind = getattr(is_spoof, "shape", None), getattr(is_spoof, "dtype", type(is_spoof))
        if kind != torch.bool or shape != pooled.counts.shape[:1]:
            raise ShapeError(
                f"expected a tensor of one bool per item ({len(pooled.counts)},), got {kind}, "
                f"shape {shape}"
            )
        spoof = is_spoof.cpu().numpy()
        if not 0 < spoof.sum() < len(spoof):
            raise ShapeError(
                f"expected both classes, got {int(spoof.sum())} spoofed of {len(spoof)} items; "
                "a probe needs real items and spoofed ones"
            )
        return spoof


def _logistic() -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise DependencyError(
            "fitting probes needs scikit-learn: pip install 'specsegdiff[probes]'; "
            "probes that were fitted before need no more than torch"
        ) from error
    return LogisticRegression

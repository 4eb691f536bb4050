"""AttM and ECAPA-TDNN on an encoder: all layers, gated and merged, then a speaker network's head.

AttM (Pan et al. 2024, arXiv 2406.10283) weighs the layers of the encoder by what they hold on
average; ECAPA-TDNN (Desplanques et al. 2020, arXiv 2005.07143) reads the merged frames. Written
anew after pandarialTJU/AttM_INTERSPEECH24, whose sizes the defaults are; it was the best back end
of mix-frame post-training (arXiv 2606.25328).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from specsegdiff import hub
from specsegdiff.errors import ConfigError
from specsegdiff.models.detector import LABELS, Long, over_windows
from specsegdiff.models.encoder import (
    WAVLM_LARGE,
    BackboneConfig,
    SSLDetector,
    build_backbone,
    hidden_states,
    read_backbone,
)
from specsegdiff.shapes import Wave


@dataclass(frozen=True)
class AttMECAPAConfig:
    """Everything that shapes the detector; the defaults are the published sizes on WavLM Large."""

    backbone: BackboneConfig = WAVLM_LARGE
    "The encoder; AttM takes all of its layers, two or more."
    normalise: bool = True
    "Brings each window to zero mean and unit variance before the encoder."
    n_samples: int = 64_600
    "Window in samples, about 4 s."
    long: Long = "windows"
    "A longer recording is covered with windows, or only its first one counts ('first')."
    channels: int = 512
    "Width of ECAPA's blocks."
    scale: int = 8
    "Parts of a block's channels, each of which reads the one before it."
    dilations: tuple[int, ...] = (2, 3, 4)
    "Distance of taps in each block."
    merged: int = 1536
    "Channels that the blocks' outputs are merged to."
    attention: int = 256
    "Width of the pooling's attention."
    embedding: int = 192
    "Width of a recording's embedding."
    temperature: float = 1.0
    "Divides the logits in `p_spoof`; fitted on validation data, the forward pass ignores it."

    def __post_init__(self) -> None:
        if self.long not in ("windows", "first"):
            raise ConfigError(
                f"AttMECAPAConfig.long must be 'windows' or 'first', got {self.long!r}"
            )
        if self.backbone.num_hidden_layers < 2:
            raise ConfigError("AttMECAPAConfig needs an encoder of two layers or more to merge")
        if self.scale < 2 or self.channels % self.scale:
            raise ConfigError(
                f"AttMECAPAConfig.channels={self.channels!r} is no multiple of "
                f"scale={self.scale!r} of 2 or more"
            )
        sizes = (*self.dilations, self.merged, self.attention, self.embedding)
        if not self.dilations or min(sizes) < 1:
            raise ConfigError(f"AttMECAPAConfig needs positive sizes, got {self!r}")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(
                f"AttMECAPAConfig.temperature must be positive, got {self.temperature!r}"
            )
        if self.n_samples < self.backbone.reach + self.backbone.hop:
            raise ConfigError(
                f"AttMECAPAConfig.n_samples={self.n_samples!r} gives no two frames; use at least "
                f"{self.backbone.reach + self.backbone.hop}"
            )


class AttM(nn.Module):
    """Merges layers ``(b, l, t, d)`` to ``(b, t, d)``: each times a gate in [0, 1] that depends on
    the layers' means over time, then all side by side through two linear layers.

    The first of these has ``(l d)^2 / 4`` weights: 151 million for WavLM Large.

    >>> tuple(AttM(layers=4, width=8)(torch.randn(2, 4, 5, 8)).shape)
    (2, 5, 8)
    """

    def __init__(self, *, layers: int, width: int) -> None:
        super().__init__()
        # plain matrices of unit normal draws in the public code: no bias
        self.score = nn.Linear(width, 1, bias=False)
        self.squeeze = nn.Linear(layers, layers // 2, bias=False)
        self.expand = nn.Linear(layers // 2, layers, bias=False)
        for matrix in (self.score, self.squeeze, self.expand):
            nn.init.normal_(matrix.weight)
        self.act = nn.SiLU()
        self.act_squeezed = nn.SiLU()
        self.merge = nn.Sequential(
            nn.Linear(layers * width, layers * width // 4),
            nn.SiLU(),
            nn.Linear(layers * width // 4, width),
        )

    def gates(self, states: Float[Tensor, "b l t d"]) -> Float[Tensor, "b l"]:
        """Weight of each layer."""
        scores = self.act(self.score(states.mean(dim=2))[..., 0])
        return self.expand(self.act_squeezed(self.squeeze(scores))).sigmoid()

    def forward(self, states: Float[Tensor, "b l t d"]) -> Float[Tensor, "b t d"]:
        """Merged frames."""
        gated = states * self.gates(states)[:, :, None, None]
        # the public code puts the layers of one feature side by side
        return self.merge(gated.permute(0, 2, 3, 1).flatten(2))


class SERes2Block(nn.Module):
    """Dilated convolutions over parts of the channels, each reading the one before it, and a gate
    on every channel (Res2Net, arXiv 1904.01169; squeeze and excitation, arXiv 1709.01507)."""

    def __init__(self, channels: int, *, dilation: int, scale: int) -> None:
        super().__init__()
        width = channels // scale
        self.enter = _unit(channels, channels)
        self.parts = nn.ModuleList(
            _unit(width, width, kernel=3, dilation=dilation) for _ in range(scale - 1)
        )
        self.leave = _unit(channels, channels)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool1d(1),
            nn.Conv1d(channels, 128, 1),
            nn.ReLU(),
            nn.Conv1d(128, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b c t"]:
        """Map ``(b, c, t)`` to ``(b, c, t)``."""
        *pieces, last = self.enter(x).chunk(len(self.parts) + 1, dim=1)
        done: list[Tensor] = []
        for part, piece in zip(self.parts, pieces, strict=True):
            done.append(part(piece + done[-1] if done else piece))
        y = self.leave(torch.cat([*done, last], dim=1))
        return x + y * self.gate(y)


class ECAPA(nn.Module):
    """ECAPA-TDNN as in AttM's code: frames ``(b, t, d)`` to logits ``(b, 2)``."""

    def __init__(self, width: int, config: AttMECAPAConfig) -> None:
        super().__init__()
        c, merged = config.channels, config.merged
        self.enter = nn.Linear(width, c)
        self.norm = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(c))
        self.blocks = nn.ModuleList(
            SERes2Block(c, dilation=dilation, scale=config.scale) for dilation in config.dilations
        )
        self.merge = nn.Sequential(nn.Conv1d(len(config.dilations) * c, merged, 1), nn.ReLU())
        self.attention = nn.Sequential(
            nn.Conv1d(3 * merged, config.attention, 1),
            nn.ReLU(),
            nn.BatchNorm1d(config.attention),
            nn.Tanh(),
            nn.Conv1d(config.attention, merged, 1),
            nn.Softmax(dim=2),
        )
        self.out = nn.Sequential(
            nn.BatchNorm1d(2 * merged),
            nn.Linear(2 * merged, config.embedding),
            nn.BatchNorm1d(config.embedding),
            nn.Linear(config.embedding, 2),
        )

    def forward(self, frames: Float[Tensor, "b t d"]) -> Float[Tensor, "b 2"]:
        """Logits of each recording."""
        x = self.norm(self.enter(frames).transpose(1, 2))
        outputs: list[Tensor] = []
        for block in self.blocks:
            outputs.append(block(x + sum(outputs)))
        y = self.merge(torch.cat(outputs, dim=1))
        mean = y.mean(dim=2, keepdim=True).expand_as(y)
        spread = y.var(dim=2, keepdim=True).clamp_min(1e-4).sqrt().expand_as(y)
        weights = self.attention(torch.cat([y, mean, spread], dim=1))
        mean = (y * weights).sum(dim=2)
        spread = ((y.square() * weights).sum(dim=2) - mean.square()).clamp_min(1e-4).sqrt()
        return self.out(torch.cat([mean, spread], dim=1))


class AttMECAPA(hub.Stored):
    """Detector on all layers of an encoder: logits ``(b, 2)`` of ``("spoof", "bonafide")``.

    Lengths are handled as in `specsegdiff.models.wav2vec2_aasist.Wav2Vec2AASIST`.

    >>> from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST
    >>> model = AttMECAPA.from_detector(Wav2Vec2AASIST.from_preset("tiny"), channels=16, merged=24)
    >>> tuple(model.eval()(torch.randn(2, 10_000)).shape)
    (2, 2)
    """

    labels: tuple[str, ...] = LABELS
    "Names of the logits."
    config_kind = AttMECAPAConfig
    name = "AttM-ECAPA"
    "What a verdict calls the model; `from_pretrained` sets the folder's or hub id's name."

    def __init__(self, config: AttMECAPAConfig | None = None) -> None:
        super().__init__()
        self.config = config or AttMECAPAConfig()
        encoder = self.config.backbone
        self.backbone = build_backbone(encoder)
        self.attm = AttM(layers=encoder.num_hidden_layers, width=encoder.hidden_size)
        self.ecapa = ECAPA(encoder.hidden_size, self.config)

    @classmethod
    def from_backbone(
        cls, source: str | Path, *, revision: str | None = None, normalise: bool, **changes: Any
    ) -> Self:
        """Build an untrained back end on an encoder of Hugging Face transformers, a folder or a Hub
        id such as ``microsoft/wavlm-large``; errors as in `read_backbone`.

        ``normalise`` is ``do_normalize`` of its ``preprocessor_config.json``; ``changes`` are other
        fields of `AttMECAPAConfig`.
        """
        config, encoder = read_backbone(source, revision=revision)
        model = cls(AttMECAPAConfig(backbone=config, normalise=normalise, **changes))
        model.backbone = encoder
        return model

    @classmethod
    def from_detector(cls, detector: SSLDetector, **changes: Any) -> Self:
        """Build an untrained back end on the encoder of another detector, which both share from now
        on; ``changes`` are fields of `AttMECAPAConfig`."""
        theirs = detector.config
        config = AttMECAPAConfig(
            backbone=theirs.backbone,
            normalise=theirs.normalise,
            n_samples=theirs.n_samples,
            long=theirs.long,
            **changes,
        )
        model = cls(config)
        model.backbone = detector.backbone
        return model

    def forward(self, wave: Wave) -> Float[Tensor, "b 2"]:
        """Logits of waveforms ``(b, n)``, float32 mono at 16 kHz; raises `ShapeError` on others."""
        return over_windows(
            self._classify, wave, length=self.config.n_samples, long=self.config.long
        )

    def _classify(self, wave: Float[Tensor, "b n"]) -> Float[Tensor, "b 2"]:
        config = self.config
        states = hidden_states(self.backbone, wave, config.backbone, normalise=config.normalise)
        return self.ecapa(self.attm(torch.stack(list(states), dim=1)))


def _unit(before: int, after: int, *, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution that keeps the length, ReLU, batch norm: in that order, as published."""
    reach = kernel // 2 * dilation
    return nn.Sequential(
        nn.Conv1d(before, after, kernel, dilation=dilation, padding=reach),
        nn.ReLU(),
        nn.BatchNorm1d(after),
    )

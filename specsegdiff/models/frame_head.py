"""A verdict for every frame: a linear head on an encoder's last layer.

Mix-frame post-training (arXiv 2606.25328) trains such a head on spliced clips and throws it away;
here it stays, as an explainer that says when a recording is spoofed.
"""

from dataclasses import dataclass, field
from typing import Self

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from specsegdiff import hub
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.frontend import Stft, StftConfig
from specsegdiff.models.encoder import (
    WAVLM_LARGE,
    BackboneConfig,
    SSLDetector,
    build_backbone,
    hidden_states,
)
from specsegdiff.shapes import Map, Wave, check_wave


@dataclass(frozen=True)
class FrameScorerConfig:
    """Everything that shapes a scorer; the defaults are WavLM Large on clips of the paper's
    length."""

    backbone: BackboneConfig = WAVLM_LARGE
    "The encoder."
    normalise: bool = True
    "Brings each window to zero mean and unit variance before the encoder."
    n_samples: int = 64_600
    "Window in samples, as in training; longer recordings are covered with such windows."
    stft: StftConfig = field(default_factory=StftConfig)
    "Axes of the maps."

    def __post_init__(self) -> None:
        if self.n_samples < self.backbone.reach:
            raise ConfigError(
                f"FrameScorerConfig.n_samples={self.n_samples!r} is shorter than a frame of "
                f"{self.backbone.reach} samples; take a longer window"
            )


def frame_head(width: int) -> nn.Linear:
    """Linear head of an encoder of that width, Xavier uniform as in the paper."""
    head = nn.Linear(width, 1)
    nn.init.xavier_uniform_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class FrameScorer(hub.Stored):
    """Scores each frame of recordings of any length; `forward` is an `Explainer`.

    Frame k covers the samples ``[hop k, hop k + reach)`` of the `BackboneConfig`. A recording
    longer than ``n_samples`` is covered with windows that start on frames, evenly spread, and where
    they overlap their logits are averaged.

    >>> from specsegdiff.models.wav2vec2_aasist import PRESETS, Wav2Vec2AASIST
    >>> scorer = FrameScorer.from_detector(Wav2Vec2AASIST.from_preset("tiny")).eval()
    >>> wave = torch.randn(2, 16_000)
    >>> tuple(scorer.p_spoof(wave).shape), tuple(scorer(wave).shape)
    ((2, 49), (2, 513, 63))
    """

    config_kind = FrameScorerConfig
    name = "frame-scorer"
    "What results call it; `from_pretrained` sets the folder's or hub id's name."

    def __init__(self, config: FrameScorerConfig | None = None) -> None:
        super().__init__()
        self.config = config or FrameScorerConfig()
        self.backbone = build_backbone(self.config.backbone)
        self.head = frame_head(self.config.backbone.hidden_size)

    @classmethod
    def from_detector(cls, detector: SSLDetector, *, n_samples: int | None = None) -> Self:
        """A new head on the encoder of ``detector``, which both share from now on; ``n_samples`` is
        the scorer's window, by default the detector's."""
        config = FrameScorerConfig(
            backbone=detector.config.backbone,
            normalise=detector.config.normalise,
            n_samples=n_samples or detector.config.n_samples,
        )
        # no second encoder in memory
        with torch.device("meta"):
            scorer = cls(config)
        scorer.head = frame_head(config.backbone.hidden_size)
        scorer.backbone = detector.backbone
        return scorer

    def forward(self, wave: Wave) -> Map:
        """Heat ``(b, f, t)`` on the axes of the `Stft`: `p_spoof` at each frame's time, the same in
        every bin, for the head knows no frequencies.

        Between centres of the encoder's frames it goes along a straight line, and beyond the first
        and the last it stays.
        """
        heat = self.p_spoof(wave)
        axes = Stft(self.config.stft).axes(wave.shape[-1])
        backbone = self.config.backbone
        samples = torch.arange(axes.shape[1], device=heat.device) * self.config.stft.hop
        place = ((samples - backbone.reach // 2) / backbone.hop).clamp(0, heat.shape[1] - 1)
        before = place.floor().long()
        after = (before + 1).clamp_max(heat.shape[1] - 1)
        level = torch.lerp(heat[:, before], heat[:, after], (place - before).to(heat))
        return repeat(level, "b t -> b f t", f=axes.shape[0])

    def p_spoof(self, wave: Wave) -> Float[Tensor, "b t"]:
        """Probability of spoof of each frame, in [0, 1], as far as training clips are like
        ``wave``."""
        return self.logits(wave).sigmoid()

    def logits(self, wave: Wave) -> Float[Tensor, "b t"]:
        """Log-odds of spoof of each frame of ``(b, n)``, float32 mono at 16 kHz.

        Waves below ``reach`` samples are padded with zeros to one frame. Raises `ShapeError` on
        others.
        """
        check_wave(wave)
        if wave.ndim != 2:
            raise ShapeError(
                f"a frame scorer takes waveforms (b, n), got {tuple(wave.shape)}; "
                "give one recording a batch axis with [None]"
            )
        backbone = self.config.backbone
        wave = nn.functional.pad(wave, (0, max(backbone.reach - wave.shape[-1], 0)))
        frames = backbone.n_frames(wave.shape[-1])
        window = min(frames, backbone.n_frames(self.config.n_samples))
        count = -(-frames // window)
        total = wave.new_zeros(len(wave), frames)
        seen = wave.new_zeros(frames)
        for index in range(count):
            start = round(index * (frames - window) / max(count - 1, 1))
            first = start * backbone.hop
            part = wave[:, first : first + self.config.n_samples]
            total[:, start : start + window] += self._score(part)
            seen[start : start + window] += 1
        return total / seen

    def _score(self, wave: Float[Tensor, "b n"]) -> Float[Tensor, "b t"]:
        config = self.config
        states = hidden_states(self.backbone, wave, config.backbone, normalise=config.normalise)
        *_, last = states
        if config.backbone.do_stable_layer_norm:
            last = self.backbone.encoder.layer_norm(last)
        return self.head(last)[..., 0].to(wave)

"""SegDiff conditioned on what a detector knows: the layers of its self-supervised backbone.

Source: arXiv 2506.03425 (ADDSegDiff): six transformer layers of a frozen Wav2Vec2-AASIST, a
two-layer MLP 1024 -> 320 and one RRDB. How 320 values of a wav2vec2 frame become the rows of a
spectrogram is not published, and the paper names this mapping as the cause of the gap to
SpecSegDiff: see `ADDSegDiffConfig.mapping`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.models.segdiff import PRESETS, SegDiff, SegDiffConfig
from specsegdiff.models.sizes import check_sizes
from specsegdiff.shapes import Map, Wave, check_wave
from specsegdiff.storage import MapStore


class FeatureSource(Protocol):
    """What ADDSegDiff needs of a detector; `models.wav2vec2_aasist.Wav2Vec2AASIST` is one."""

    def features(self, wave: Wave, layers: Sequence[int]) -> list[Float[Tensor, "b t d"]]:
        """Hidden states of waveforms ``(b, n)`` after the named layers."""


@runtime_checkable
class MapSource(FeatureSource, Protocol):
    """What `FrontConfig` needs beside that; `Wav2Vec2AASIST` on a spectrogram is one."""

    def front_map(self, wave: Wave, layer: int) -> Float[Tensor, "b c f t"]:
        """Map of a convolution of the detector's front end for waveforms ``(b, n)``."""


@dataclass(frozen=True)
class FrontConfig:
    """A convolution of the detector's front end that an ADDSegDiff reads beside the layers: unlike
    theirs, its map still has a frequency axis."""

    layer: int = 0
    "Convolution, counted from 0."
    channels: int = 24
    "Its width."
    rows: int = 128
    "Its rows, evenly spread over the bins of the STFT; row 0 begins at 0 Hz."
    hop: int = 160
    "Samples between two of its frames."
    window: int = 832
    "Samples that one of them sees."
    width: int = 32
    "Width of the convolution that reads it."
    maps: int = 2
    "Images that it becomes."

    def __post_init__(self) -> None:
        check_sizes(self, "layer", least=0)
        check_sizes(self, "channels", "rows", "hop", "window", "width", "maps")


@dataclass(frozen=True)
class ADDSegDiffConfig(SegDiffConfig):
    """`SegDiffConfig` and the way from features to images; the defaults are the published ones."""

    rrdb_blocks: int = 1
    "RRDB blocks of the condition encoder."
    layers: tuple[int, ...] = (0, 4, 9, 14, 19, 23)
    "Transformer layers of the detector's backbone, counted from 0."
    feature_size: int = 1024
    "Width of a hidden state."
    hidden: int = 320
    "Width of the MLP; with the mapping 'resize' its output's too, the paper's 320."
    mapping: Literal["resize", "grid"] = "resize"
    """'resize': the MLP's output is taken for 320 frequency rows and interpolated to the bins, an
    image a layer (the paper, as far as it is public). 'grid': all layers of a frame pass one MLP,
    whose output is `maps` values for every bin of that frame: each bin asks the features a question
    of its own, on the grid that the mask lies on."""
    maps: int = 2
    "Images that the mapping 'grid' makes of all layers together."
    feature_hop: int = 320
    "Samples between two frames of the features (wav2vec2: 20 ms at 16 kHz)."
    feature_window: int = 400
    "Samples that one frame of the features sees (wav2vec2: 25 ms)."
    front: FrontConfig | None = None
    "A convolution to read beside the layers; none in the paper."

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "feature_size", "hidden", "maps", "feature_hop", "feature_window")
        if not self.layers or any(type(i) is not int or i < 0 for i in self.layers):
            raise ConfigError(
                f"ADDSegDiffConfig.layers must name layers from 0 on, got {self.layers!r}"
            )
        if self.mapping not in ("resize", "grid"):
            raise ConfigError(
                f"ADDSegDiffConfig.mapping must be one of ('resize', 'grid'), got {self.mapping!r}"
            )
        if self.smoothed:
            raise ConfigError(
                "ADDSegDiffConfig.smoothed must be False: features have no magnitude to smooth"
            )


def spread_layers(count: int, wanted: int = 6) -> tuple[int, ...]:
    """Evenly spread layers of a backbone with ``count`` of them, first and last included.

    >>> spread_layers(12)
    (0, 2, 4, 7, 9, 11)
    """
    if not 1 <= wanted <= count:
        raise ConfigError(f"cannot spread {wanted} layers over {count}; ask for 1 to {count}")
    return tuple(int(i) for i in torch.linspace(0, count - 1, wanted).round())


def align(
    features: Float[Tensor, "b t d"], *, frames: int, stft_hop: int, hop: int, window: int
) -> Float[Tensor, "b d n"]:
    """Features at the centres of STFT frames ``stft_hop`` samples apart, linearly between two.

    A feature's time is the centre of the ``window`` samples that it sees, ``hop`` after the one
    before; before the first and after the last the nearest is repeated.
    """
    centre = torch.arange(frames, device=features.device, dtype=torch.float64) * stft_hop
    place = (centre - (window - 1) / 2) / hop
    place = place.clamp(0, features.shape[1] - 1)
    left = place.floor().long()
    right = (left + 1).clamp_max(features.shape[1] - 1)
    share = (place - left).to(features.dtype)[:, None]
    mixed = torch.lerp(features[:, left], features[:, right], share.expand(-1, features.shape[2]))
    return rearrange(mixed, "b n d -> b d n")


class ADDSegDiff(SegDiff):
    """Diffusion segmenter conditioned on a detector's features ``(b, layers * d, t)``, below which
    those of its front end follow where `ADDSegDiffConfig.front` names one.

    The detector is frozen and no part of the saved weights: pass the one it was trained on.
    """

    config_kind = ADDSegDiffConfig
    name = "ADDSegDiff"
    config: ADDSegDiffConfig

    def __init__(
        self, config: ADDSegDiffConfig | None = None, detector: FeatureSource | None = None
    ) -> None:
        config = config or ADDSegDiffConfig()
        resize = config.mapping == "resize"
        images = len(config.layers) if resize else config.maps
        super().__init__(config, images=images + (config.front.maps if config.front else 0))
        self.attach(detector)
        self.front = FrontReader(config.front, config.stft.n_freqs) if config.front else None
        wide = config.feature_size if resize else len(config.layers) * config.feature_size
        rows = config.hidden if resize else config.maps * config.stft.n_freqs
        self.project = nn.Sequential(
            nn.Linear(wide, config.hidden), nn.GELU(), nn.Linear(config.hidden, rows)
        )

    @classmethod
    def from_preset(
        cls, name: str, *, detector: FeatureSource | None = None, **changes: Any
    ) -> Self:
        """Build an untrained model on the networks of a `SegDiffConfig` preset, with fields of
        `ADDSegDiffConfig` changed by name."""
        if name not in PRESETS:
            raise ConfigError(f"no preset {name!r}; choose one of {sorted(PRESETS)}")
        base = {k: v for k, v in vars(PRESETS[name]).items() if k != "smoothed"}
        if name == "paper":
            del base["rrdb_blocks"]
        return cls(replace(ADDSegDiffConfig(**base), **changes), detector)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # without its detector it cannot look
        cls, source: str | Path, *, detector: FeatureSource | None, revision: str | None = None
    ) -> Self:
        """Load from a folder or a Hugging Face Hub id; raises `CheckpointError` or
        `ConfigError`. Without a detector it can be trained on features, and explain nothing."""
        model = super().from_pretrained(source, revision=revision)
        model.attach(detector)
        return model

    def attach(self, detector: FeatureSource | None) -> None:
        """Take the features of a detector; it is not trained, moved or saved with this model.

        Raises `ConfigError` on a detector without ``features``."""
        if detector is not None and not callable(getattr(detector, "features", None)):
            raise ConfigError(
                f"expected a detector with a method features(wave, layers), got a "
                f"{type(detector).__name__}; attach the detector it was trained on, "
                "such as a Wav2Vec2AASIST"
            )
        # past nn.Module, which would make its weights ours
        object.__setattr__(self, "detector", detector)

    # ------------------------------------------------------------------ the condition

    @torch.no_grad()
    def condition(self, wave: Wave, *, gain: Tensor | None = None) -> Map:
        """Features of waveforms ``(b, n)`` at the STFT's frames, ``(b, layers * d, t)``."""
        check_wave(wave)
        detector: FeatureSource | None = self.__dict__["detector"]
        if detector is None:
            raise ConfigError(
                "this ADDSegDiff has no detector to take features of; "
                "pass detector=..., or attach one"
            )
        config = self.config
        gain = self.level(wave) if gain is None else gain
        wave = wave * gain[..., None]
        found = detector.features(wave, config.layers)
        if any(layer.shape[-1] != config.feature_size for layer in found):
            raise ConfigError(
                f"expected features of width {config.feature_size}, got "
                f"{[layer.shape[-1] for layer in found]}; attach the detector it was trained on"
            )
        frames = config.stft.n_frames(wave.shape[-1])

        def on_frames(features: Tensor, hop: int, window: int) -> Tensor:
            return align(features, frames=frames, stft_hop=config.stft.hop, hop=hop, window=window)

        parts = [on_frames(x, config.feature_hop, config.feature_window) for x in found]
        if config.front is not None:
            seen = self._front_features(wave, config.front)
            parts.append(on_frames(seen, config.front.hop, config.front.window))
        return torch.cat(parts, dim=1)

    def _front_features(self, wave: Wave, front: FrontConfig) -> Float[Tensor, "b t d"]:
        """The front end's map, a vector a frame."""
        detector = self.__dict__["detector"]
        if not isinstance(detector, MapSource):
            raise ConfigError(
                f"a {type(detector).__name__} has no front_map, which this ADDSegDiff reads; "
                "attach the detector it was trained on"
            )
        found = detector.front_map(wave, front.layer)
        if found.shape[1:3] != (front.channels, front.rows):
            raise ConfigError(
                f"expected a front end of {front.channels} channels and {front.rows} rows, got "
                f"{tuple(found.shape[1:3])}; attach the detector it was trained on"
            )
        return rearrange(found, "b c f t -> b t (c f)")

    def observe(self, recording: MapStore, start: int, stop: int, *, gain: float) -> Map:
        """Condition of some frames; the detector sees no more than them, so windows agree
        roughly."""
        hop, window = self.config.stft.hop, self.config.feature_window
        last = min(recording.shape[1], (stop - 1) * hop + window)
        # at least what one feature needs, also where a window is the recording's last frame
        first = max(0, min(start * hop, last - window)) // hop * hop
        wave = recording.window(first, last)
        level = torch.full((1,), gain, dtype=wave.dtype)
        skipped = start - first // hop
        return self.condition(wave, gain=level)[..., skipped : skipped + stop - start]

    def images(self, condition: Map) -> Float[Tensor, "b c f t"]:
        """Images on the patch grid: those of the front end where there is one, then one a layer
        ('resize'), or `maps` of all of them ('grid')."""
        config, front = self.config, self.config.front
        hidden = len(config.layers) * config.feature_size
        wanted = hidden + (front.channels * front.rows if front else 0)
        if condition.ndim != 3 or condition.shape[1] != wanted:
            raise ShapeError(
                f"expected a condition (b, {wanted}, t), "
                f"got {tuple(condition.shape)}; make it with model.condition(wave)"
            )
        images = [self._images_of_layers(condition[:, :hidden])]
        if self.front is not None:
            images.insert(0, self._fold_all(self.front(condition[:, hidden:])))
        return torch.cat(images, dim=1)

    def _images_of_layers(self, condition: Map) -> Float[Tensor, "b c f t"]:
        config = self.config
        layers = len(config.layers)
        if config.mapping == "grid":
            bins = self.project(rearrange(condition, "b d t -> b t d"))
            return self._fold_all(rearrange(bins, "b t (m f) -> b m f t", m=config.maps))
        rows = self.project(rearrange(condition, "b (l d) t -> b l t d", l=layers))
        rows = rearrange(rows, "b l t r -> (b l) t r")
        bins = F.interpolate(rows, size=config.stft.n_freqs, mode="linear", align_corners=True)
        return self._fold_all(rearrange(bins, "(b l) t f -> b l f t", l=layers))

    def _fold_all(self, maps: Float[Tensor, "b m f t"]) -> Float[Tensor, "b c f t"]:
        """Fold several images, one after the other in the channels."""
        folded = self.fold(rearrange(maps, "b m f t -> (b m) f t"))
        return rearrange(folded, "(b m) c f t -> b (m c) f t", m=maps.shape[1])


class FrontReader(nn.Module):
    """Images on the bins of the STFT, of a map with fewer rows: two convolutions, whose channels
    become the bins between two rows (sub-pixel convolution, Shi et al. 2016, arXiv 1609.05158)."""

    def __init__(self, config: FrontConfig, bins: int) -> None:
        super().__init__()
        self.config, self.bins = config, bins
        self.step = max(1, round(bins / config.rows))
        if abs(bins - self.step * config.rows) >= self.step:
            raise ConfigError(
                f"FrontConfig.rows={config.rows} do not divide {bins} bins evenly; take a "
                "convolution whose rows are a half, a quarter and so on of them"
            )
        self.first = nn.Conv2d(config.channels, config.width, 3, padding=1)
        self.last = nn.Conv2d(config.width, config.maps * self.step, 3, padding=1)

    def forward(self, found: Map) -> Float[Tensor, "b m f t"]:
        """Images of a map ``(b, channels * rows, t)``; the last row is repeated above it."""
        x = rearrange(found, "b (c r) t -> b c r t", c=self.config.channels)
        x = self.last(F.gelu(self.first(x)))
        x = rearrange(x, "b (m s) r t -> b m (r s) t", s=self.step)
        missing = self.bins - x.shape[2]
        return F.pad(x, (0, 0, 0, max(missing, 0)), mode="replicate")[:, :, : self.bins]

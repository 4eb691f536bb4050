"""Splices: stretches of one recording that stand in another, and the label of every frame.

Mix-frame post-training (Pan, Hardik & Wu 2026, arXiv 2606.25328) learns from clips in which one
stretch is of the opposite class. The joins are artifacts of their own: splices within one class
(`SpliceConfig.control`) show whether a model finds synthesis or cuts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from specsegdiff.data.samples import SAMPLE_RATE
from specsegdiff.data.seeds import check_seed
from specsegdiff.errors import ConfigError, PairError, ShapeError
from specsegdiff.shapes import check_wave

Reading: TypeAlias = Literal["source_class", "injected"]
"""What a frame's label says: that its sound is spoofed, or that it was injected, whatever it is.
Public notes on the paper leave open which was meant; the first fits a detector of spoofing."""


@dataclass(frozen=True)
class SpliceConfig:
    """How clips are mixed; the defaults are the paper's, as far as it is known."""

    n_samples: int = 64_600
    "Samples of both clips and of the mixture, about 4 s."
    ratio: tuple[float, float] = (0.1, 0.3)
    "Smallest and largest share of the clip that is replaced; drawn evenly."
    n_segments: int = 1
    "Segments that this share is divided into, of equal length."
    crossfade_ms: float = 0.0
    """Length of the fade at each join in ms, of equal power, within the segment; 0 is a hard
    cut."""
    match_rms: bool = False
    "Brings the donor to the level of the base, each measured over its clip."
    control: bool = False
    "Mixes clips of one class instead of opposite ones."

    def __post_init__(self) -> None:
        low, high = self.ratio
        if not 0 < low <= high < 1:
            raise ConfigError(
                f"SpliceConfig.ratio must be 0 < low <= high < 1, got {self.ratio!r}; "
                "a segment must be shorter than the clip"
            )
        if self.n_segments < 1 or self.crossfade_ms < 0:
            raise ConfigError(
                "SpliceConfig needs n_segments >= 1 and crossfade_ms >= 0, got "
                f"{self.n_segments!r}, {self.crossfade_ms!r}"
            )
        shortest = int(low * self.n_samples) // self.n_segments
        room = self.n_samples - round(high * self.n_samples) - (self.n_segments - 1)
        if shortest < max(1, 2 * self.fade) or room < 0:
            raise ConfigError(
                f"{self.n_segments} segments of {shortest} samples or more, with fades of "
                f"{self.fade} at both ends, do not fit a clip of {self.n_samples}; take fewer "
                "segments, shorter fades or longer clips"
            )

    @property
    def fade(self) -> int:
        """Samples of a fade."""
        return round(self.crossfade_ms * SAMPLE_RATE / 1000)


@dataclass(frozen=True)
class Clip:
    """A recording, or a stretch of it, of one class throughout."""

    wave: Float[Tensor, "n"]
    "Mono samples."
    is_spoof: bool
    "Its class."
    sample_rate: int = SAMPLE_RATE
    "Its rate in Hz."


@dataclass(frozen=True)
class Spliced:
    """A mixture, and where it changes hands."""

    wave: Float[Tensor, "n"]
    "The samples."
    segments: tuple[tuple[int, int], ...]
    "First sample of each injected segment, and the first one behind it."
    base_is_spoof: bool
    "Class of what surrounds the segments."
    donor_is_spoof: bool
    "Class of the segments."

    def labels(
        self, *, hop: int, reach: int, reading: Reading = "source_class"
    ) -> Bool[Tensor, "t"]:
        """Label of each frame by its centre: frame k covers ``[hop k, hop k + reach)`` and is
        injected if sample ``hop k + reach // 2`` is.

        >>> clip = Spliced(torch.zeros(1_200), ((500, 800),), True, False)
        >>> clip.labels(hop=320, reach=400).tolist()
        [True, False, True]
        >>> clip.labels(hop=320, reach=400, reading="injected").tolist()
        [False, True, False]
        """
        if reading not in ("source_class", "injected"):
            raise ConfigError(f"reading must be 'source_class' or 'injected', got {reading!r}")
        starts = frame_starts(len(self.wave), hop=hop, reach=reach)
        centres = starts + reach // 2
        inside = torch.zeros(len(starts), dtype=torch.bool)
        for first, end in self.segments:
            inside |= (centres >= first) & (centres < end)
        if reading == "injected":
            return inside
        spoofed = torch.tensor([self.base_is_spoof, self.donor_is_spoof])
        return spoofed[inside.long()]

    def joins(self, *, hop: int, reach: int) -> Bool[Tensor, "t"]:
        """Whether each frame holds samples from both sides of a join."""
        starts = frame_starts(len(self.wave), hop=hop, reach=reach)
        crossed = torch.zeros(len(starts), dtype=torch.bool)
        for place in {edge for segment in self.segments for edge in segment}:
            # the clip's own ends are no joins
            if 0 < place < len(self.wave):
                crossed |= (starts < place) & (place < starts + reach)
        return crossed


def frame_starts(n_samples: int, *, hop: int, reach: int) -> Tensor:
    """First sample of each frame of an encoder, ``(t,)``; at least one, as in `BackboneConfig`.

    >>> len(frame_starts(64_600, hop=320, reach=400))
    201
    """
    return torch.arange(max(n_samples - reach, 0) // hop + 1) * hop


def splice(
    base: Clip,
    donor: Clip,
    *,
    segments: Sequence[tuple[int, int]],
    sources: Sequence[int],
    fade: int = 0,
) -> Spliced:
    """Replace ``segments`` of the base, ``(first, end)`` in samples, by as many samples of the
    donor that begin at ``sources``.

    A fade of ``fade`` samples goes along a quarter of a sine, base and donor having one power in
    sum; it lies within the segment, and there is none at the clip's own ends. Raises `PairError` on
    unequal rates, `ShapeError` on segments that reach beyond either clip, are empty, overlap, or
    are shorter than two fades.
    """
    for clip in (base, donor):
        check_wave(clip.wave)
        if clip.wave.ndim != 1:
            raise ShapeError(f"expected a waveform (n,), got {tuple(clip.wave.shape)}")
    if base.sample_rate != donor.sample_rate:
        raise PairError(
            f"the base is at {base.sample_rate} Hz and the donor at {donor.sample_rate} Hz; "
            "load both at one rate with specsegdiff.data.audio.load_audio"
        )
    if len(segments) != len(sources):
        raise ShapeError(f"{len(segments)} segments need as many sources, got {len(sources)}")
    wave, n, behind = base.wave.clone(), len(base.wave), 0
    for (first, end), source in sorted(zip(segments, sources, strict=True)):
        length = end - first
        if length < max(1, 2 * fade) or first < behind or end > n:
            raise ShapeError(
                f"segment {first}..{end} does not fit: segments must lie apart within 0..{n} and "
                f"be {max(1, 2 * fade)} samples or longer; shorten the segment or the fade"
            )
        if source < 0 or source + length > len(donor.wave):
            raise ShapeError(
                f"the donor has {len(donor.wave)} samples, but {source}..{source + length} are "
                "asked for; take an earlier or shorter segment"
            )
        weight = torch.ones(length, dtype=wave.dtype)
        if fade:
            ramp = torch.sin((torch.arange(fade) + 0.5) * torch.pi / (2 * fade)).to(wave.dtype)
            if first > 0:
                weight[:fade] = ramp
            if end < n:
                weight[length - fade :] = ramp.flip(0)
        # of equal power; where the donor has all the weight, the base leaves no rounding behind
        left = torch.where(weight < 1, (1 - weight.square()).clamp_min(0).sqrt(), 0)
        wave[first:end] = left * wave[first:end] + weight * donor.wave[source : source + length]
        behind = end
    return Spliced(wave, tuple(sorted(segments)), base.is_spoof, donor.is_spoof)


class Splicer:
    """Mixes two clips as `SpliceConfig` says; where and what is injected depends on the seed only.

    >>> splicer = Splicer(SpliceConfig(n_samples=1_000))
    >>> mixed = splicer(Clip(torch.zeros(1_000), False), Clip(torch.ones(1_000), True), seed=0)
    >>> ((first, end),) = mixed.segments
    >>> 100 <= end - first <= 300, float(mixed.wave.sum()) == end - first
    (True, True)
    """

    def __init__(self, config: SpliceConfig | None = None) -> None:
        self.config = config or SpliceConfig()

    def __call__(self, base: Clip, donor: Clip, *, seed: int) -> Spliced:
        """Replace stretches of ``base`` by stretches of ``donor``, from anywhere in it.

        Both have ``config.n_samples`` at one rate: `fill` crops and repeats. Raises `PairError` on
        other lengths, unequal rates, and classes that are not opposite, or not equal where
        ``config.control`` asks for that.
        """
        config = self.config
        n = config.n_samples
        for name, clip in (("base", base), ("donor", donor)):
            if clip.wave.shape != (n,):
                raise PairError(
                    f"the {name} has shape {tuple(clip.wave.shape)}, expected ({n},), "
                    "SpliceConfig.n_samples; crop or repeat it with specsegdiff.data.splice.fill"
                )
        if (base.is_spoof == donor.is_spoof) != config.control:
            wanted = "one class" if config.control else "opposite classes"
            raise PairError(
                f"base and donor must be of {wanted}, got is_spoof={base.is_spoof} and "
                f"{donor.is_spoof}; SpliceConfig.control={config.control} decides"
            )
        rng = np.random.default_rng(check_seed(seed))
        share = rng.uniform(*config.ratio)
        lengths = [
            len(part) for part in np.array_split(np.empty(round(share * n)), config.n_segments)
        ]
        # one sample at least stays between two segments
        room = n - sum(lengths) - (config.n_segments - 1)
        gaps = np.sort(rng.integers(0, room + 1, config.n_segments))
        starts = [int(gap) + sum(lengths[:i]) + i for i, gap in enumerate(gaps)]
        sources = [int(rng.integers(0, n - length + 1)) for length in lengths]
        if config.match_rms:
            donor = Clip(_levelled(donor.wave, base.wave), donor.is_spoof, donor.sample_rate)
        return splice(
            base,
            donor,
            segments=[(at, at + length) for at, length in zip(starts, lengths, strict=True)],
            sources=sources,
            fade=config.fade,
        )


def fill(wave: Float[Tensor, "n"], n_samples: int, *, start: int = 0) -> Float[Tensor, "m"]:
    """Stretch of ``n_samples`` from sample ``start`` on; a short one is repeated, as detectors do.

    >>> fill(torch.arange(5.0), 3, start=2).tolist(), fill(torch.arange(2.0), 5).tolist()
    ([2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 1.0, 0.0])
    """
    part = wave[start : start + n_samples]
    return part.repeat(-(-n_samples // len(part)))[:n_samples]


def _levelled(wave: Tensor, like: Tensor) -> Tensor:
    """``wave`` at the RMS of ``like``; as it is where either is silent and has no level."""
    own, other = (float(w.double().square().mean().sqrt()) for w in (wave, like))
    return wave * (other / own) if min(own, other) > 1e-5 else wave

"""What a segmenter learns from: conditions and margins of pairs, cropped and equalised on the
fly."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from specsegdiff.data.alignment import aligned_difference
from specsegdiff.data.pairs import Pair, load_pair
from specsegdiff.data.rawboost import RawBoost, RawBoostConfig
from specsegdiff.errors import ConfigError, SpecSegDiffError
from specsegdiff.masks import MaskConfig, margin_map
from specsegdiff.models.segdiff import SegDiff, SegDiffConfig, SpecSegDiff, normalise


@dataclass(frozen=True)
class Item:
    """One pair, ready to be cropped: condition ``(c, t)`` and margin ``(f, t)`` in float16."""

    vocoder: str
    local: bool
    condition: Float[Tensor, "c t"]
    margin: Float[Tensor, "f t"]
    spectrogram: Float[Tensor, "f t"] | None = None
    "Normalised log-magnitude, where the condition is another."


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to training items; every change keeps the mask true, since it hits both members
    alike."""

    copies: int = 1
    "Extra copies of each pair with another speed and RawBoost noise, made once before training."
    speed: float = 0.12
    "Copies are resampled by a factor within 1 +- speed."
    rawboost_share: float = 0.5
    "Share of the copies that get RawBoost, with identical noise for both members."
    gain_db: float = 3.0
    "Standard deviation of a random gain of the crop, in dB; only for log-magnitude conditions."
    tilt_db: float = 2.0
    """Standard deviation of each cosine of a random smooth equaliser, in dB; only for log-magnitude
    conditions."""
    local_share: float = 0.2
    "Share of the crops that come from local vocoders."

    def __post_init__(self) -> None:
        if self.copies < 0 or not 0 <= self.speed < 1 or min(self.gain_db, self.tilt_db) < 0:
            raise ConfigError(
                f"AugmentConfig needs copies, gain_db, tilt_db >= 0, speed in [0, 1), got {self!r}"
            )
        for name in ("rawboost_share", "local_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"AugmentConfig.{name} must lie in [0, 1], got {getattr(self, name)!r}"
                )


@dataclass(frozen=True)
class Change:
    """What makes a copy of a pair: another speed, and RawBoost noise where there is an ``algo``."""

    percent: int
    "Speed, and so the factor of all frequencies, in percent."
    algo: int | None
    "Algorithm of `RawBoostConfig`; None for no noise."
    noise_seed: int = 0
    "Seed of the noise, the same for both members."

    def __call__(self, members: Float[Tensor, "2 n"]) -> Float[Tensor, "2 m"]:
        """Both members of a pair, changed alike."""
        from scipy.signal import resample_poly

        warped = torch.from_numpy(
            resample_poly(members.numpy(), 100, self.percent, axis=-1)
        ).float()
        if self.algo is None:
            return warped
        return RawBoost(RawBoostConfig(algo=self.algo))(warped, seed=self.noise_seed)

    def band_hz(self, band_hz: float | None, *, nyquist: float) -> float | None:
        """Where a band ends after the change: a slower copy carries nothing near ``nyquist``.

        >>> slow, fast = Change(90, None), Change(110, None)
        >>> slow.band_hz(None, nyquist=8_000), fast.band_hz(4_000, nyquist=8_000)
        (7200.0, 4400.0)
        """
        moved = min(band_hz or nyquist, nyquist) * self.percent / 100
        return moved if moved < nyquist else None


def make_item(
    pair: Pair,
    model: SegDiff,
    masks: MaskConfig,
    *,
    local: bool = False,
    change: Change | None = None,
) -> Item:
    """Condition and margin of a pair, on the fake's frames; a ``'dtw'`` pair is aligned first.

    ``change`` comes before anything else. Raises `ConfigError` where a ``'dtw'`` pair has one:
    noise alike for both members needs one time axis. Else raises as `load_pair`.
    """
    stft = model.config.stft
    waves = load_pair(pair, config=stft)
    band_hz = pair.band_hz
    if change is not None:
        if pair.align == "dtw":
            raise ConfigError(
                f"pair {pair.id}: align is 'dtw', but only members of one time axis can be changed "
                "alike; pass change=None"
            )
        real_wave, fake_wave = change(torch.stack(waves))
        waves = real_wave, fake_wave
        band_hz = change.band_hz(band_hz, nyquist=stft.sample_rate / 2)
    gain = model.level(waves[1])
    heard = waves[1] * gain
    real, fake = model.stft.magnitude(waves[0] * gain), model.stft.magnitude(heard)
    value, valid = aligned_difference(
        real,
        fake,
        masks,
        align=pair.align,
        band_hz=band_hz,
        hertz_per_bin=stft.sample_rate / stft.n_fft,
    )
    margin = margin_map(value, share=masks.share, valid=valid)
    spectrogram = normalise(fake, model.config).half()
    margin = margin.clamp(-30, 30).half()
    if isinstance(model, SpecSegDiff):
        return Item(pair.vocoder, local, spectrogram, margin)
    condition = model.condition(heard[None], gain=torch.ones(1))[0].half()
    return Item(pair.vocoder, local, condition, margin, spectrogram)


def make_items(
    pairs: Sequence[Pair],
    model: SegDiff,
    masks: MaskConfig,
    augment: AugmentConfig,
    *,
    seed: int,
    local: bool = False,
    warn: Callable[[str], object] = print,
) -> list[Item]:
    """Items of all pairs and their augmented copies, with conditions of ``model``; a pair that
    cannot be read is skipped and told to ``warn``. ``'dtw'`` pairs have no copies."""
    items = []
    for pair in pairs:
        try:
            items.append(make_item(pair, model, masks, local=local))
            for copy in range(0 if pair.align == "dtw" else augment.copies):
                rng = np.random.default_rng(_number(seed, pair.id, copy))
                items.append(
                    make_item(pair, model, masks, local=local, change=_draw_change(augment, rng))
                )
        except SpecSegDiffError as error:
            warn(f"skipped {pair.id}: {error}")
    return items


def _draw_change(augment: AugmentConfig, rng: np.random.Generator) -> Change:
    percent = round(100 * (1 + rng.uniform(-augment.speed, augment.speed)))
    boost = rng.random() < augment.rawboost_share
    noise_seed = int(rng.integers(2**31))
    algo = int(rng.choice([1, 2, 3, 5]))
    return Change(percent, algo if boost else None, noise_seed)


class Lottery:
    """Draws items with a weight that grows with their length and falls with the square root of
    their vocoder's total length, so that the commonest vocoders do not drown the rare ones.

    Local items get ``local_share`` of the draws where there are both kinds.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        vocoders: Sequence[str],
        local: Sequence[bool],
        *,
        local_share: float,
    ) -> None:
        total: dict[str, float] = defaultdict(float)
        for vocoder, length in zip(vocoders, lengths, strict=True):
            total[vocoder] += length
        weight = np.array(
            [length / total[v] ** 0.5 for v, length in zip(vocoders, lengths, strict=True)]
        )
        ours = np.array(local)
        if ours.any() and not ours.all():
            weight[ours] *= local_share / weight[ours].sum()
            weight[~ours] *= (1 - local_share) / weight[~ours].sum()
        self.cumulative = np.cumsum(weight / weight.sum())

    def draw(self, rng: np.random.Generator) -> int:
        """Number of the next item."""
        place = int(np.searchsorted(self.cumulative, rng.random()))
        return min(place, len(self.cumulative) - 1)


class Crops(Dataset[tuple[Tensor, ...]]):
    """Random crops of items: index ``i`` always gives the same crop, so a resumed run needs no
    state. Items are drawn by a `Lottery`.
    """

    def __init__(
        self,
        items: Sequence[Item],
        config: SegDiffConfig,
        augment: AugmentConfig,
        *,
        frames: int,
        count: int,
        seed: int,
    ) -> None:
        if not items:
            raise ConfigError("there is no training item; check the manifest and its split column")
        self.items, self.config, self.augment = items, config, augment
        self.frames, self.count, self.seed = frames, count, seed
        self.lottery = Lottery(
            [item.condition.shape[1] for item in items],
            [item.vocoder for item in items],
            [item.local for item in items],
            local_share=augment.local_share,
        )

    def __len__(self) -> int:
        """Number of crops of the whole run."""
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """Condition ``(c, frames)`` and margin ``(f, frames)`` of crop ``index``, and the
        spectrogram where the condition is another.

        A short item repeats its last frame, which counts in no loss.
        """
        rng = np.random.default_rng((self.seed, index))
        item = self.items[self.lottery.draw(rng)]
        start = int(rng.integers(max(1, item.condition.shape[1] - self.frames + 1)))

        def cut(values: Tensor) -> Tensor:
            found = values[:, start : start + self.frames].float()
            missing = self.frames - found.shape[1]
            return F.pad(found[None], (0, missing), mode="replicate")[0]

        condition, margin = cut(item.condition), cut(item.margin)
        margin[:, item.condition.shape[1] - start :] = torch.nan
        if item.spectrogram is not None:
            return condition, margin, cut(item.spectrogram)
        nats_per_db = np.log(10) / 20
        decibels = rng.normal(0, self.augment.gain_db) + equaliser(
            len(condition), self.augment.tilt_db, rng
        )
        shift = torch.from_numpy(decibels * nats_per_db / self.config.log_scale).float()
        return condition + shift[:, None], margin


def mean_mask(items: Sequence[Item]) -> Float[Tensor, " f"]:
    """Share of foreground of each frequency bin over items, ``(f,)``; bins that don't count are
    left out."""
    shape = items[0].margin.shape[0]
    hits, counts = torch.zeros(shape), torch.zeros(shape)
    for item in items:
        hits += (item.margin >= 0).float().sum(dim=1)
        counts += (~item.margin.isnan()).float().sum(dim=1)
    return hits / counts.clamp_min(1)


def equaliser(bins: int, tilt_db: float, rng: np.random.Generator) -> np.ndarray:
    """Random smooth gain in dB ``(bins,)``: six cosines over frequency whose size falls with their
    order."""
    place = np.linspace(0, np.pi, bins)
    order = np.arange(1, 7)
    size = rng.normal(0, tilt_db, 6) / order**0.5
    phase = rng.uniform(-np.pi, np.pi, 6)
    return (size[:, None] * np.cos(order[:, None] * place + phase[:, None])).sum(axis=0)


def _number(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")

"""What mix-frame post-training reads: spliced clips with labels of frames, and whole clips."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16
from torch import Tensor
from torch.utils.data import Dataset

from specsegdiff.data.audio import load_audio
from specsegdiff.data.protocols import Trial
from specsegdiff.data.splice import Clip, Reading, SpliceConfig, Spliced, Splicer, fill
from specsegdiff.errors import ConfigError
from specsegdiff.models.encoder import BackboneConfig
from specsegdiff.train.features import Lottery

KEPT = 2048
"Recordings that stay in memory, as 16-bit samples: a gigabyte where each lasts 16 s."


class Pool:
    """Trials of both classes, drawn so that common systems do not drown rare ones (`Lottery`)."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials = {kind: [t for t in trials if t.is_spoof == kind] for kind in (False, True)}
        if not all(self.trials.values()):
            raise ConfigError(
                "expected recordings of both classes, got "
                f"{len(self.trials[False])} bona fide and {len(self.trials[True])} spoofed; "
                "check the corpus and its split"
            )
        self.lotteries = {
            kind: Lottery(
                [1] * len(kept), [t.system for t in kept], [False] * len(kept), local_share=0
            )
            for kind, kept in self.trials.items()
        }

    def draw(self, rng: np.random.Generator, *, is_spoof: bool) -> Trial:
        """A trial of that class."""
        return self.trials[is_spoof][self.lotteries[is_spoof].draw(rng)]


class Clips(Dataset[tuple[Tensor, Tensor]]):
    """Random stretches of recordings with their class, both classes alike: index ``i`` always gives
    the same one, so a resumed run needs no state."""

    def __init__(self, pool: Pool, *, n_samples: int, count: int, seed: int) -> None:
        self.pool, self.n_samples, self.count, self.seed = pool, n_samples, count, seed

    def __len__(self) -> int:
        """Number of items of the whole run."""
        return self.count

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "n"], Bool[Tensor, ""]]:
        """Samples, and whether they are spoofed."""
        rng = np.random.default_rng((self.seed, index))
        trial = self.pool.draw(rng, is_spoof=bool(rng.integers(2)))
        return stretch(trial, self.n_samples, rng), torch.tensor(trial.is_spoof)


class SplicedClips(Dataset[tuple[Tensor, Tensor]]):
    """Random splices with the label of every frame of an encoder; index ``i`` always gives the
    same one.

    Bases are of both classes alike. In the control, base and donor are two recordings of one class.
    """

    def __init__(
        self,
        pool: Pool,
        config: SpliceConfig,
        backbone: BackboneConfig,
        *,
        reading: Reading,
        count: int,
        seed: int,
    ) -> None:
        self.pool, self.config, self.backbone = pool, config, backbone
        self.reading, self.count, self.seed = reading, count, seed
        self.splicer = Splicer(config)
        if config.control and min(len({t.path for t in p}) for p in pool.trials.values()) < 2:
            raise ConfigError("the control needs two recordings or more of each class")

    def __len__(self) -> int:
        """Number of items of the whole run."""
        return self.count

    def spliced(self, index: int) -> Spliced:
        """Splice ``index``."""
        rng = np.random.default_rng((self.seed, index))
        base = self.pool.draw(rng, is_spoof=bool(rng.integers(2)))
        wanted = base.is_spoof if self.config.control else not base.is_spoof
        donor = self.pool.draw(rng, is_spoof=wanted)
        while donor.path == base.path:
            donor = self.pool.draw(rng, is_spoof=wanted)
        n = self.config.n_samples
        clips = (Clip(stretch(trial, n, rng), trial.is_spoof) for trial in (base, donor))
        return self.splicer(*clips, seed=int(rng.integers(2**31)))

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "n"], Float[Tensor, "t"]]:
        """Samples, and the labels of their frames, 0 or 1."""
        mixed = self.spliced(index)
        frames = {"hop": self.backbone.hop, "reach": self.backbone.reach}
        return mixed.wave, mixed.labels(**frames, reading=self.reading).float()


def stretch(trial: Trial, n_samples: int, rng: np.random.Generator) -> Float[Tensor, "n"]:
    """Random stretch of a recording; a shorter one is repeated, as detectors do."""
    samples = _samples(trial)
    start = int(rng.integers(max(1, len(samples) - n_samples + 1)))
    return fill(samples[start : start + n_samples].float() / 32767, n_samples)


def whole(trial: Trial) -> Float[Tensor, "n"]:
    """A recording at the level and of the length that its trial says."""
    wave = load_audio(trial.path) * 10 ** (-trial.gain_db / 20)
    return wave[: trial.n_samples]


def subset(trials: Sequence[Trial], share: float, *, seed: int) -> list[Trial]:
    """A random share of the groups of trials, whole groups at a time, at least one.

    A larger share holds every smaller one of the same seed.
    """
    groups = sorted({trial.group or trial.id for trial in trials})
    order = np.random.default_rng((seed, len(groups))).permutation(len(groups))
    kept = {groups[i] for i in order[: max(1, round(share * len(groups)))]}
    return [trial for trial in trials if (trial.group or trial.id) in kept]


@lru_cache(maxsize=KEPT)
def _samples(trial: Trial) -> Int16[Tensor, "n"]:
    wave = whole(trial)
    # a gain may lift a peak over full scale
    return (wave / wave.abs().max().clamp_min(1) * 32767).round().short()

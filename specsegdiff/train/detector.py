"""Train a Wav2Vec2-AASIST on pairs: real recordings against their vocoded twins."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from specsegdiff import hub
from specsegdiff.data.audio import load_audio
from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import Pair, load_pair
from specsegdiff.data.rawboost import RawBoost, RawBoostConfig
from specsegdiff.errors import ConfigError, ShapeError, SpecSegDiffError
from specsegdiff.metrics.detection import eer
from specsegdiff.models.detector import fit_temperature, spoof_column
from specsegdiff.models.spectral import FLOOR, LOG_MEAN, LOG_SCALE
from specsegdiff.models.wav2vec2_aasist import PRESETS, Wav2Vec2AASIST
from specsegdiff.train.features import Lottery
from specsegdiff.train.recipe import RunConfig, fit, optimise, read_yaml


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(RunConfig):
    """Training of a detector; a YAML file in ``configs/detector`` holds one of these.

    An item is the same stretch of both members of a pair.
    """

    preset: str
    "Model, by its name in `models.wav2vec2_aasist.PRESETS`."
    pairs: str
    "Manifest of real pairs; rows with split 'train' are trained on, rows with 'val' choose."
    local_pairs: str | None
    "Manifest that `specsegdiff make-pairs` wrote from the training recordings, or null."
    local_share: float = 0.15
    "Share of the items that come from local vocoders."
    rawboost_share: float = 0.2
    "Share of the items that get RawBoost, with identical noise for both members."
    pairwise: float = 1.0
    """Weight of the loss that orders a pair, -log sigmoid(score of the fake - score of the real):
    what both say is the same, so the gradient is about the vocoder."""
    deep: float = 1.0
    """Weight of the same losses for each linear readout of a layer's mean and deviation over time,
    and of the transformer's input (deeply supervised nets, arXiv 1409.5185); dropped after
    training."""
    spectrum: float = 0.3
    """Weight of a linear readout of the log spectrum from every layer, which stands for the
    pre-training that a small model lacks; dropped after training."""
    bands: int = 128
    "Bands of that spectrum."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in PRESETS:
            raise ConfigError(
                f"DetectorConfig.preset must be one of {sorted(PRESETS)}, got {self.preset!r}"
            )
        for name in ("local_share", "rawboost_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"DetectorConfig.{name} must lie in [0, 1], got {getattr(self, name)!r}"
                )
        if min(self.pairwise, self.deep, self.spectrum) < 0 or self.bands < 1:
            raise ConfigError(
                f"DetectorConfig needs weights >= 0 and at least one band, got {self!r}"
            )


def read_config(path: str | Path, **changes: Any) -> DetectorConfig:
    """Read a run's YAML; fields that it omits take their defaults, unknown ones are a
    `ConfigError`."""
    return read_yaml(DetectorConfig, path, **changes)


@dataclass(frozen=True)
class Twins:
    """A pair as 16-bit samples ``(2, n)``, real and fake, at one level."""

    vocoder: str
    local: bool
    samples: Tensor


def read_twins(pairs: Sequence[Pair], *, local: bool = False) -> list[Twins]:
    """Read pairs into memory; one that cannot be read is skipped and told."""
    twins = []
    for pair in pairs:
        try:
            both = torch.stack(load_pair(pair))
        except SpecSegDiffError as error:
            print(f"skipped {pair.id}: {error}")
            continue
        # the louder member may exceed full scale once the levels match
        both = both / both.abs().max().clamp_min(1)
        twins.append(Twins(pair.vocoder, local, (both * 32767).round().short()))
    return twins


class TwinCrops(Dataset[Tensor]):
    """Random stretches of pairs: index ``i`` always gives the same one, so a resumed run needs no
    state. Pairs are drawn by a `Lottery`.
    """

    def __init__(self, twins: Sequence[Twins], config: DetectorConfig, *, length: int) -> None:
        self.twins, self.config, self.length = twins, config, length
        self.lottery = Lottery(
            [item.samples.shape[1] for item in twins],
            [item.vocoder for item in twins],
            [item.local for item in twins],
            local_share=config.local_share,
        )

    def __len__(self) -> int:
        """Number of items of the whole run."""
        return self.config.end * self.config.batch

    def __getitem__(self, index: int) -> Float[Tensor, "2 n"]:
        """Real and fake of item ``index``; short ones are repeated, as the detector does."""
        rng = np.random.default_rng((self.config.seed, index))
        samples = self.twins[self.lottery.draw(rng)].samples
        start = int(rng.integers(max(1, samples.shape[1] - self.length + 1)))
        both = samples[:, start : start + self.length].float() / 32767
        both = both.repeat(1, -(-self.length // both.shape[1]))[:, : self.length]
        if rng.random() < self.config.rawboost_share:
            boost = RawBoost(RawBoostConfig(algo=int(rng.choice([1, 2, 3, 5]))))
            both = boost(both, seed=int(rng.integers(2**31)))
        return both


class DetectorModule(L.LightningModule):
    """Optimises a `Wav2Vec2AASIST` and measures its equal error rate on val."""

    def __init__(self, config: DetectorConfig, validation: Sequence[Pair]) -> None:
        super().__init__()
        self.config = config
        self.recordings = recordings(validation)
        # channels last halves the time of its small convolutions on a CPU
        self.model = Wav2Vec2AASIST.from_preset(config.preset).to(
            memory_format=torch.channels_last  # type: ignore[call-overload]
        )
        # an even verdict at first: the noise of an untrained head would drown what layers learn
        nn.init.zeros_(self.model.graph.out.weight)
        front = self.model.backbone.feature_extractor.conv_layers[-1]
        front.register_forward_hook(self._see_front)
        layers = self.model.config.backbone.num_hidden_layers
        hidden = self.model.config.backbone.hidden_size
        front_width = self.model.backbone.feature_projection.layer_norm.normalized_shape[0]
        self.verdicts = nn.ModuleList(
            nn.Linear(2 * width, 1) for width in (front_width, *[hidden] * layers)
        )
        self.spectra = nn.ModuleList(nn.Linear(hidden, config.bands) for _ in range(layers))
        self.front = torch.empty(0)
        self.scores: list[Tensor] = []

    def _see_front(self, layer: nn.Module, inputs: object, output: Float[Tensor, "b d t"]) -> None:
        self.front = output.transpose(1, 2)

    def training_step(self, batch: Float[Tensor, "p 2 n"], index: int) -> Tensor:
        """Loss of one batch of pairs."""
        waves = rearrange(batch, "p m n -> (p m) n")
        backbone = self.model.config.backbone
        # dropout depends on the seed and the step only, so a resumed run repeats it
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed * 1_000_003 + self.global_step)
            states = list(self.model.states(waves))
            logits = self.model.read_out(states[-1])
        column = spoof_column(self.model)
        score = logits[:, column] - logits[:, 1 - column]
        loss = verdict = verdict_loss(score, self.config.pairwise)
        parts = {"verdict": verdict}
        if self.config.deep:
            # a sum: a mean over layers is drowned by the noise of the untrained back end
            parts["deep"] = torch.stack(
                [
                    verdict_loss(_readout(layer, state), self.config.pairwise)
                    for layer, state in zip(self.verdicts, (self.front, *states), strict=True)
                ]
            ).sum()
            loss = loss + self.config.deep * parts["deep"]
        if self.config.spectrum:
            target = middle_spectrum(
                waves, hop=backbone.hop, reach=backbone.reach, bands=self.config.bands
            )
            parts["spectrum"] = torch.stack(
                [
                    F.smooth_l1_loss(layer(state).float(), target)
                    for layer, state in zip(self.spectra, states, strict=True)
                ]
            ).mean()
            loss = loss + self.config.spectrum * parts["spectrum"]
        ordered = score[1::2] > score[::2]
        parts |= {"loss": loss, "ordered": ordered.float().mean()}
        self.log_dict({k: v.detach() for k, v in parts.items()}, prog_bar=True)
        return loss

    def validation_step(self, place: Tensor, index: int) -> None:
        """Logits of one recording, kept until the end."""
        self.scores.append(self._logits(int(place)))

    def _logits(self, place: int) -> Float[Tensor, "1 2"]:
        path, gain, n_samples, _ = self.recordings[place]
        wave = load_audio(path) * gain
        return self.model(wave[None, :n_samples].to(self.device)).float().cpu()

    def on_validation_epoch_end(self) -> None:
        """Equal error rate in percent."""
        logits, self.scores = torch.cat(self.scores), []
        column = spoof_column(self.model)
        rate = eer(logits[:, column] - logits[:, 1 - column], self.is_spoof)
        self.log("val_eer", 100 * rate, prog_bar=True)

    @property
    def is_spoof(self) -> Bool[Tensor, "n"]:
        """Class of each validation recording."""
        return torch.tensor([spoof for *_, spoof in self.recordings])

    @torch.no_grad()
    def calibrate(self) -> None:
        """Fit the temperature of `p_spoof` on val."""
        self.model.eval()
        logits = torch.cat([self._logits(place) for place in range(len(self.recordings))])
        calibrate(self.model, logits, self.is_spoof)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Places of the validation recordings; each is read at its full length."""
        return DataLoader(torch.arange(len(self.recordings)), batch_size=None)  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and a cosine to zero."""
        return optimise(self.parameters(), self.config)


def recordings(pairs: Sequence[Pair]) -> list[tuple[Path, float, int | None, bool]]:
    """Fakes of pairs, and each real recording once: path, gain, samples to keep, is it spoof."""
    reals = {pair.real: (pair.real, 1.0, None, False) for pair in pairs}
    fakes = [(p.fake, 10 ** (-p.gain_db / 20), p.n_samples, True) for p in pairs]
    return [*reals.values(), *fakes]


def verdict_loss(score: Float[Tensor, "n"], pairwise: float) -> Tensor:
    """Cross-entropy of scores of alternating reals and fakes, and the loss that orders each
    pair."""
    real, fake = score[::2], score[1::2]
    alone = (F.softplus(real) + F.softplus(-fake)).mean() / 2
    return alone + pairwise * F.softplus(real - fake).mean()


def middle_spectrum(
    wave: Float[Tensor, "b n"], *, hop: int, reach: int, bands: int, taps: int = 512
) -> Float[Tensor, "b t c"]:
    """Log-power in ``bands`` of the samples in the middle of what each frame sees, centred and
    scaled to about unit variance, for waves brought to unit variance each."""
    taps = min(taps, reach)
    if bands > taps // 2:
        raise ShapeError(f"{taps} samples have {taps // 2} bins; ask for no more bands than that")
    wave = wave / wave.std(dim=-1, keepdim=True).clamp_min(1e-4)
    first = (reach - taps) // 2
    frames = wave.unfold(-1, reach, hop)[..., first : first + taps]
    window = torch.hann_window(taps, device=wave.device)
    power = torch.fft.rfft(frames * window / window.norm()).abs().square()[..., 1:]
    mean = F.adaptive_avg_pool1d(power.flatten(0, 1), bands).unflatten(0, power.shape[:2])
    return ((mean + FLOOR).log() - LOG_MEAN) / LOG_SCALE


def _readout(layer: nn.Module, state: Float[Tensor, "b t d"]) -> Float[Tensor, "b"]:
    return layer(torch.cat([state.mean(dim=1), state.std(dim=1)], dim=1))[:, 0]


def calibrate(model: Any, logits: Float[Tensor, "n 2"], is_spoof: Bool[Tensor, "n"]) -> None:
    """Fit the temperature in a detector's configuration to what it says of ``n`` recordings; it
    stays as it is where none is best, as after a dry run."""
    try:
        fitted = fit_temperature(logits, is_spoof, labels=model.labels)
    except ShapeError as error:
        print(f"not calibrated: {error}")
        return
    model.config = replace(model.config, temperature=fitted)


def train(
    config: DetectorConfig, out: str | Path, *, resume: bool = False, accelerator: str = "auto"
) -> Wav2Vec2AASIST:
    """Train, keep checkpoints and logs in ``out``, and write the averaged, calibrated model to
    ``out/model``.

    ``resume`` goes on from ``out/last.ckpt`` where there is one. Returns the model.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    L.seed_everything(config.seed, verbose=False)
    pairs = read_manifest(config.pairs)
    module = DetectorModule(config, [p for p in pairs if p.split == "val"])
    twins = read_twins([p for p in pairs if p.split == "train"])
    if not twins:
        raise ConfigError(
            f"{config.pairs} has no readable pair to train on; check its split column"
        )
    if config.local_pairs:
        local = [p for p in read_manifest(config.local_pairs) if p.split == "train"]
        twins += read_twins(local, local=True)
    crops = TwinCrops(twins, config, length=module.model.config.n_samples)
    fit(module, crops, config, out, resume=resume, accelerator=accelerator)
    module.calibrate()
    module.model.save_pretrained(out / "model", half=True)
    hub.write_atomic(out / "config.json", json.dumps(dataclasses.asdict(config), indent=2).encode())
    return module.model.eval()

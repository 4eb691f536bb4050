"""Mix-frame post-training: first the frames of spliced clips, then whole recordings.

After Pan, Hardik & Wu 2026 (arXiv 2606.25328), whose code is not public. Stage ``post`` trains
LoRA on the encoder and a linear frame head by binary cross-entropy, everything else frozen. Stage
``utterance`` trains the same LoRA on and a back end by cross-entropy. LoRA is merged into what is
saved: a `FrameScorer`, which the paper throws away, and an ordinary detector. Not known, hence
chosen here: LoRA's alpha (twice its rank) and dropout (none), the optimiser (AdamW), the lengths.
"""

import copy
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from specsegdiff import hub
from specsegdiff.api import DEFAULT_DETECTOR, asset
from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.protocols import Trial, asvspoof5, asvspoof2019, pair_trials
from specsegdiff.data.splice import Reading, SpliceConfig
from specsegdiff.errors import ConfigError, DependencyError
from specsegdiff.metrics.detection import eer
from specsegdiff.metrics.localisation import frame_eer
from specsegdiff.models.aasist import AASIST
from specsegdiff.models.attm import AttMECAPA
from specsegdiff.models.detector import spoof_column
from specsegdiff.models.encoder import SSLDetector
from specsegdiff.models.frame_head import FrameScorer
from specsegdiff.models.loading import load_detector
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST
from specsegdiff.train.detector import calibrate
from specsegdiff.train.recipe import RunConfig, fit, optimise, read_yaml
from specsegdiff.train.splices import Clips, Pool, SplicedClips, subset, whole

BackEnd: TypeAlias = Literal["aasist", "attm-ecapa"]

TARGETS = ("q_proj", "k_proj", "v_proj", "intermediate_dense", "output_dense")
"Query, key, value, fc1 and fc2, by their names in transformers."

VALIDATION_SEED = 0
"Of the splices that are measured, the same in every run."


@dataclass(frozen=True, kw_only=True)
class MFPTConfig:
    """Both stages; a YAML file such as ``configs/detector/mfpt-small.yaml`` holds one of these."""

    detector: str | None = None
    "Detector to start from: 'embedded', a folder or a Hub id. Or"
    backbone: str | None = None
    "an encoder of Hugging Face transformers, under a new back end."
    normalise: bool = True
    "Of such an encoder: ``do_normalize`` of its ``preprocessor_config.json``."
    back_end: BackEnd = "aasist"
    "What judges a recording; a detector's own is trained on where it is the same."
    corpus: Literal["pairs", "asvspoof2019", "asvspoof5"] = "pairs"
    "What `data` is. Splits are train and val of pairs, train and dev of ASVspoof."
    data: str
    "Manifest of pairs, or folder of the corpus."
    share: float = 1.0
    "Share of the training data, in whole source groups."
    val_items: int | None = None
    "Validation recordings that are measured, evenly spaced; null measures all."
    splice: SpliceConfig = field(default_factory=SpliceConfig)
    "How clips are mixed."
    reading: Reading = "source_class"
    "What a frame's label says."
    rank: int = 32
    "Of LoRA."
    alpha: int = 64
    "Its scale, over the rank."
    post: RunConfig | None = field(
        default_factory=lambda: RunConfig(steps=1_000, learning_rate=4e-4)
    )
    "Stage on spliced clips; null leaves it out, which is what the gain is measured against."
    utterance: RunConfig = field(default_factory=lambda: RunConfig(steps=1_000, learning_rate=5e-5))
    "Stage on whole clips."
    seed: int = 0
    "Of weights, share, clips and splices, in both stages."

    def __post_init__(self) -> None:
        if (self.detector is None) == (self.backbone is None):
            raise ConfigError(
                "MFPTConfig needs either detector or backbone to start from, got "
                f"{self.detector!r} and {self.backbone!r}"
            )
        if not 0 < self.share <= 1:
            raise ConfigError(f"MFPTConfig.share must lie in (0, 1], got {self.share!r}")
        if min(self.rank, self.alpha, self.val_items or 1) < 1:
            raise ConfigError(
                "MFPTConfig needs rank, alpha and val_items of at least 1, got "
                f"{self.rank!r}, {self.alpha!r}, {self.val_items!r}"
            )
        for run in (self.post, self.utterance):
            if run is not None and run.seed != 0:
                raise ConfigError("one seed serves both stages; set MFPTConfig.seed only")

    def stage(self, name: Literal["post", "utterance"]) -> RunConfig:
        """Settings of a stage with the seed of the whole."""
        return replace(getattr(self, name), seed=self.seed)


def read_config(path: str | Path, **changes: Any) -> MFPTConfig:
    """Read a run's YAML; fields that it omits take their defaults, unknown ones are a
    `ConfigError`."""
    # the stages are runs, the whole is not
    return read_yaml(MFPTConfig, path, **changes)  # type: ignore[type-var]


def read_trials(config: MFPTConfig, split: Literal["train", "val"]) -> list[Trial]:
    """Trials of a split; those of 'train' are the share that ``config`` asks for."""
    if config.corpus == "pairs":
        trials = pair_trials(read_manifest(config.data, split=split))
    else:
        reader = {"asvspoof2019": asvspoof2019, "asvspoof5": asvspoof5}[config.corpus]
        trials = reader(config.data, "train" if split == "train" else "dev")
    if split == "train":
        return subset(trials, config.share, seed=config.seed)
    step = max(1, len(trials) // (config.val_items or len(trials)))
    return trials[::step][: config.val_items]


def starting_detector(config: MFPTConfig) -> SSLDetector:
    """The detector that ``config`` names, or a new back end on the encoder that it names.

    Raises `ConfigError` where the detector's back end cannot become the one that is asked for.
    """
    if config.backbone is not None:
        kind = AttMECAPA if config.back_end == "attm-ecapa" else Wav2Vec2AASIST
        return kind.from_backbone(config.backbone, normalise=config.normalise)
    embedded = config.detector == "embedded"
    detector = load_detector(asset(DEFAULT_DETECTOR) if embedded else str(config.detector))
    if isinstance(detector, AASIST):
        raise ConfigError(
            f"{config.detector} reads the waveform itself, and mix-frame post-training adapts an "
            "encoder; start from a detector on one, or say backbone"
        )
    if config.back_end == "attm-ecapa" and not isinstance(detector, AttMECAPA):
        return AttMECAPA.from_detector(detector)
    if config.back_end == "aasist" and isinstance(detector, AttMECAPA):
        raise ConfigError(f"{config.detector} has AttM and ECAPA; say back_end: attm-ecapa")
    return detector


def adapt(backbone: nn.Module, *, rank: int, alpha: int) -> Any:
    """Put LoRA (Hu et al. 2021, arXiv 2106.09685) into an encoder, in place, and freeze the rest.

    Returns peft's model around it, which merges it: ``adapt(...).merge_and_unload()``.
    """
    try:
        import peft
    except ImportError as error:
        raise DependencyError(
            "post-training needs peft; pip install 'specsegdiff[train]'"
        ) from error
    # dropout of 0: a resumed run needs no state of it, and the paper's is not known
    settings = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS))
    return peft.get_peft_model(backbone, settings)


class _Stage(L.LightningModule):
    """What both stages share: only what asks for a gradient is trained."""

    def __init__(self, run: RunConfig) -> None:
        super().__init__()
        self.run = run

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Loss of one batch."""
        devices = [self.device] if self.device.type == "cuda" else []
        # dropout depends on the seed and the step only, so a resumed run repeats it
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.run.seed * 1_000_003 + self.global_step)
            loss = self.loss(*batch)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def loss(self, waves: Tensor, labels: Tensor) -> Tensor:
        """What is minimised."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and a cosine to zero."""
        return optimise([p for p in self.parameters() if p.requires_grad], self.run)


class FrameModule(_Stage):
    """Stage ``post``: a frame scorer on spliced clips; val is their frame error rate."""

    def __init__(self, scorer: FrameScorer, run: RunConfig, validation: SplicedClips) -> None:
        super().__init__(run)
        self.scorer, self.validation = scorer, validation
        self.found: list[tuple[Tensor, Tensor]] = []

    def loss(self, waves: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy of every frame."""
        return F.binary_cross_entropy_with_logits(self.scorer.logits(waves), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Logits and labels of a batch, kept until the end."""
        waves, labels = batch
        self.found.append((self.scorer.logits(waves).float().cpu(), labels.bool().cpu()))

    def on_validation_epoch_end(self) -> None:
        """Frame error rate in percent."""
        scores, labels = zip(*self.found, strict=True)
        self.found = []
        self.log("val_frame_eer", 100 * frame_eer(torch.cat(scores), torch.cat(labels)))

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Spliced clips of val."""
        return DataLoader(self.validation, batch_size=self.run.batch)


class UtteranceModule(_Stage):
    """Stage ``utterance``: a detector on whole clips; val is the error rate of recordings."""

    def __init__(self, detector: Any, run: RunConfig, validation: Sequence[Trial]) -> None:
        super().__init__(run)
        self.detector, self.validation = detector, validation
        self.column = spoof_column(detector)
        self.scores: list[Tensor] = []

    def loss(self, waves: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the class."""
        target = torch.where(labels, self.column, 1 - self.column)
        return F.cross_entropy(self.detector(waves), target)

    def validation_step(self, place: Tensor, index: int) -> None:
        """Logits of one recording, kept until the end."""
        self.scores.append(self._logits(int(place)))

    def _logits(self, place: int) -> Tensor:
        wave = whole(self.validation[place])
        return self.detector(wave[None].to(self.device)).float().cpu()

    def on_validation_epoch_end(self) -> None:
        """Equal error rate in percent."""
        logits, self.scores = torch.cat(self.scores), []
        rate = eer(logits[:, self.column] - logits[:, 1 - self.column], self.is_spoof)
        self.log("val_eer", 100 * rate, prog_bar=True)

    @property
    def is_spoof(self) -> Tensor:
        """Class of each validation recording, ``(n,)`` bool."""
        return torch.tensor([trial.is_spoof for trial in self.validation])

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Places of the validation recordings; each is read at its full length."""
        return DataLoader(torch.arange(len(self.validation)), batch_size=None)  # type: ignore[arg-type]

    @torch.no_grad()
    def calibrate(self) -> None:
        """Fit the temperature of `p_spoof` on val."""
        self.detector.eval()
        logits = torch.cat([self._logits(place) for place in range(len(self.validation))])
        calibrate(self.detector, logits, self.is_spoof)


def train(
    config: MFPTConfig, out: str | Path, *, resume: bool = False, accelerator: str = "auto"
) -> SSLDetector:
    """Run both stages; the detector lands in ``out/model``, the frame scorer in ``out/frames``.

    Each stage keeps checkpoints and logs in a folder of its name. ``resume`` goes on where they
    stopped. Returns the detector, with LoRA merged, averaged and calibrated.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    L.seed_everything(config.seed, verbose=False)
    detector: Any = starting_detector(config)
    known, held = Pool(read_trials(config, "train")), read_trials(config, "val")
    scorer = FrameScorer.from_detector(detector, n_samples=config.splice.n_samples)
    # the encoder is the same object in both, so is LoRA in it
    adapter = adapt(scorer.backbone, rank=config.rank, alpha=config.alpha)
    options: Any = {"resume": resume, "accelerator": accelerator}
    # Lightning leaves a loaded model in evaluation mode, without dropout and batch statistics
    if config.post is not None:
        run = config.stage("post")
        items = _splices(config, scorer, known, count=run.end * run.batch, seed=config.seed)
        measured = _splices(config, scorer, Pool(held), count=len(held), seed=VALIDATION_SEED)
        fit(FrameModule(scorer, run, measured).train(), items, run, out / "post", **options)
        # one copy of both: the second stage goes on with LoRA as it is
        finished, around = copy.deepcopy((scorer, adapter))
        finished.backbone = around.merge_and_unload()
        finished.save_pretrained(out / "frames", half=True)
    run = config.stage("utterance")
    n_samples, count = detector.config.n_samples, run.end * run.batch
    clips = Clips(known, n_samples=n_samples, count=count, seed=config.seed)
    judge = UtteranceModule(detector, run, held)
    fit(judge.train(), clips, run, out / "utterance", **options)
    detector.backbone = adapter.merge_and_unload()
    judge.calibrate()
    detector.requires_grad_(True).save_pretrained(out / "model", half=True)
    hub.write_atomic(out / "config.json", json.dumps(dataclasses.asdict(config), indent=2).encode())
    return detector.eval()


def _splices(
    config: MFPTConfig, scorer: FrameScorer, pool: Pool, *, count: int, seed: int
) -> SplicedClips:
    backbone, reading = scorer.config.backbone, config.reading
    return SplicedClips(pool, config.splice, backbone, reading=reading, count=count, seed=seed)

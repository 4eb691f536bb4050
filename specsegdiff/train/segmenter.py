"""Train a SpecSegDiff or an ADDSegDiff: configuration, LightningModule, and the one function that
runs them."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from specsegdiff import hub
from specsegdiff.benchmark.scoring import load_case
from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import Pair
from specsegdiff.errors import ConfigError
from specsegdiff.masks import MaskConfig
from specsegdiff.models.addsegdiff import ADDSegDiff, FrontConfig, spread_layers
from specsegdiff.models.losses import LossConfig, diffusion_loss
from specsegdiff.models.segdiff import PRESETS, SegDiff, SpecSegDiff
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST
from specsegdiff.sampling import sample
from specsegdiff.train.features import AugmentConfig, Crops, make_items, mean_mask
from specsegdiff.train.recipe import RunConfig, fit, optimise, read_yaml


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Training of a segmenter; a YAML file in ``configs/segmenter`` holds one of these.

    An item is a crop of a pair.
    """

    preset: str
    "Model, by its name in `models.segdiff.PRESETS`."
    pairs: str
    "Manifest of real pairs; rows with split 'train' are trained on, rows with 'val' choose."
    local_pairs: str | None
    "Manifest that `specsegdiff make-pairs` wrote from the training recordings, or null."
    frames: int = 256
    "Frames a crop."
    init: str | None = None
    """Folder or hub id of a SpecSegDiff to start from, or of the ADDSegDiff that goes on, null for
    random weights; input channels that it lacks start at zero."""
    detector: str | None = None
    """Folder or hub id of a Wav2Vec2-AASIST: an ADDSegDiff on its features is trained, and the
    detector is not. Null trains a SpecSegDiff."""
    front: int | None = None
    "Convolution of the detector's front end that an ADDSegDiff reads too; null for none."
    mapping_steps: int = 0
    """Steps in which an ADDSegDiff learns nothing but to map features to the images that a
    SpecSegDiff sees: started from one, its networks then find what they know."""
    model: dict[str, str | int | float | bool | tuple[int, ...]] = field(default_factory=dict)
    "Fields of `SegDiffConfig` to change in the preset, such as {deterministic: true}."
    loss: LossConfig = field(default_factory=LossConfig)
    "Loss weights."
    masks: MaskConfig = field(default_factory=MaskConfig)
    "Ground truth."
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    "Augmentation."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in PRESETS:
            raise ConfigError(
                f"TrainConfig.preset must be one of {sorted(PRESETS)}, got {self.preset!r}"
            )
        if self.frames < 1:
            raise ConfigError(f"TrainConfig.frames must be positive, got {self.frames!r}")
        if self.detector and (self.augment.copies or self.augment.gain_db or self.augment.tilt_db):
            raise ConfigError(
                "features of a detector cannot be equalised after the fact: set augment.copies, "
                f"gain_db and tilt_db to 0, got {self.augment!r}"
            )
        if self.front is not None and not self.detector:
            raise ConfigError(
                f"TrainConfig.front={self.front!r} is a convolution of a detector; name the "
                "detector too, or set front to null"
            )
        if not 0 <= self.mapping_steps <= (self.steps if self.detector else 0):
            raise ConfigError(
                f"TrainConfig.mapping_steps={self.mapping_steps!r} must be within the steps, and 0 "
                "without a detector"
            )


def read_config(path: str | Path, **changes: Any) -> TrainConfig:
    """Read a run's YAML; fields that it omits take their defaults, unknown ones are a
    `ConfigError`."""
    return read_yaml(TrainConfig, path, **changes)


class SegmenterModule(L.LightningModule):
    """Optimises a segmenter and measures it on val at one draw."""

    def __init__(self, config: TrainConfig, validation: list[Pair]) -> None:
        super().__init__()
        self.config = config
        self.validation = validation
        self.model = build(config)
        self.eye: tuple[SpecSegDiff] | None = None
        if config.init:
            start = starting_model(config.init)
            start_from(self.model, start)
            if config.mapping_steps:
                if not isinstance(start, SpecSegDiff):
                    raise ConfigError(
                        "mapping_steps shows an ADDSegDiff what a SpecSegDiff sees, and init holds "
                        f"{start.name}, whose mapping is learnt; set mapping_steps to 0"
                    )
                # in a tuple, which would not make it a part of this module
                self.eye = (start,)

    def training_step(self, batch: tuple[Tensor, ...], index: int) -> Tensor:
        """Loss of one batch; its noise depends on the seed and the step only, so a resumed run
        repeats it."""
        if self.global_step < self.config.mapping_steps:
            return self._map(batch[0], batch[2])
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.global_step)
        condition, margin = batch[:2]
        loss, parts = diffusion_loss(
            self.model, condition, margin, config=self.config.loss, generator=generator
        )
        self.log_dict(
            {"loss": loss.detach(), **{k: v.detach() for k, v in parts.items()}}, prog_bar=True
        )
        return loss

    def _map(self, features: Tensor, spectrogram: Tensor) -> Tensor:
        """How far the images of features are from those of the spectrogram."""
        assert self.eye is not None
        wanted = self.eye[0].images(spectrogram)
        # the first images: a front end's where there is one
        images = self.model.images(features)[:, : wanted.shape[1]]
        loss = F.smooth_l1_loss(images, wanted)
        self.log("mapping", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, place: Tensor, index: int) -> None:
        """GDice of one pair at the map's own top share, as `benchmark.score_maps` counts it."""
        pair = self.validation[int(place)]
        case = load_case(pair, masks=self.config.masks, stft=self.model.stft)
        condition = self.model.condition(case.fake[None].to(self.device))
        drawn = sample(self.model, condition, draws=1, items=[pair.id])
        scores = case.scores(case.check(drawn.mean[0]))
        self.log(
            "val_gdice",
            scores["gdice"],  # type: ignore[arg-type]  # only average_precision may be None
            batch_size=1,
            on_epoch=True,
            prog_bar=True,
        )

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Places of the validation pairs; each is read at its full length."""
        return DataLoader(torch.arange(len(self.validation)), batch_size=None)  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and a cosine to zero."""
        return optimise(self.parameters(), self.config)


def build(config: TrainConfig) -> SegDiff:
    """The untrained model of a run, with the detector it reads."""
    if config.detector is None:
        return SpecSegDiff.from_preset(config.preset, **config.model)
    detector = Wav2Vec2AASIST.from_pretrained(config.detector)
    backbone = detector.config.backbone
    read = {
        "layers": spread_layers(backbone.num_hidden_layers, min(6, backbone.num_hidden_layers)),
        "feature_size": backbone.hidden_size,
        "feature_hop": backbone.hop,
        "feature_window": backbone.reach,
    }
    if config.front is not None:
        hop, window = backbone.front_frames(config.front)
        _, channels, rows, _ = detector.front_map(torch.zeros(1, window), config.front).shape
        read["front"] = FrontConfig(config.front, channels, rows, hop, window)
    return ADDSegDiff.from_preset(config.preset, detector=detector, **read | config.model)


def starting_model(source: str) -> SegDiff:
    """A segmenter of either kind, without a detector."""
    if hub.kind_of(source) == ADDSegDiff.__name__:
        return ADDSegDiff.from_pretrained(source, detector=None)
    return SpecSegDiff.from_pretrained(source)


READ_IMAGES = ("encoder.first.weight", "seen.weight")
"Weights whose second axis are the images of a condition."


def start_from(model: SegDiff, other: SegDiff) -> None:
    """Copy the weights of ``other``; what it lacks, input channels of the condition or a mapping of
    features to images, starts at zero or as it was.

    Raises `ConfigError` where the two differ in anything else.
    """
    weights = dict(other.state_dict())
    for name, wanted in model.state_dict().items():
        if name in weights and name.endswith(READ_IMAGES):
            missing = wanted.shape[1] - weights[name].shape[1]
            weights[name] = F.pad(weights[name], (0, 0, 0, 0, 0, max(missing, 0)))
    try:
        # a refining head starts at zero output by itself
        own = ("refine.", "project.", "front.")
        fresh = {k: v for k, v in model.state_dict().items() if k.startswith(own)}
        model.load_state_dict(fresh | weights)
    except RuntimeError as error:
        raise ConfigError(
            f"init holds {other.name}, whose networks do not fit the preset ({error}); "
            "start from a model of the same preset"
        ) from error


def train(
    config: TrainConfig, out: str | Path, *, resume: bool = False, accelerator: str = "auto"
) -> SegDiff:
    """Train, keep checkpoints and logs in ``out``, and write the averaged model to ``out/model``.

    ``resume`` goes on from ``out/last.ckpt`` where there is one. Returns the averaged model.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    L.seed_everything(config.seed, verbose=False)
    pairs = read_manifest(config.pairs)
    module = SegmenterModule(config, [p for p in pairs if p.split == "val"])
    shared = (module.model, config.masks, config.augment)
    items = make_items([p for p in pairs if p.split == "train"], *shared, seed=config.seed)
    if not items:
        raise ConfigError(
            f"{config.pairs} has no readable pair to train on; check its split column"
        )
    if module.model.prior is not None and not config.init:
        module.model.set_prior(mean_mask(items))
    if config.local_pairs:
        local = [p for p in read_manifest(config.local_pairs) if p.split == "train"]
        items += make_items(local, *shared, seed=config.seed, local=True)
    crops = Crops(
        items,
        module.model.config,
        config.augment,
        frames=config.frames,
        count=config.end * config.batch,
        seed=config.seed,
    )
    fit(module, crops, config, out, resume=resume, accelerator=accelerator)
    module.model.save_pretrained(out / "model", half=True)
    hub.write_atomic(out / "config.json", json.dumps(dataclasses.asdict(config), indent=2).encode())
    return module.model.eval()

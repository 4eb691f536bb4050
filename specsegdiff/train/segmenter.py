"""Train a SpecSegDiff: configuration, LightningModule, and the one function that runs them."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from specsegdiff import hub
from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import Pair, load_pair
from specsegdiff.errors import ConfigError
from specsegdiff.masks import MaskConfig, ground_truth, top_share
from specsegdiff.metrics.segmentation import generalized_dice
from specsegdiff.models.losses import LossConfig, diffusion_loss
from specsegdiff.models.segdiff import PRESETS, SpecSegDiff
from specsegdiff.sampling import fastest_dtype, sample
from specsegdiff.train.features import AugmentConfig, Crops, make_items, mean_mask


@dataclass(frozen=True)
class TrainConfig:
    """One training run; a YAML file in ``configs/segmenter`` holds one of these."""

    preset: str
    "Model, by its name in `models.segdiff.PRESETS`."
    pairs: str
    "Manifest of real pairs; rows with split 'train' are trained on, rows with 'val' choose."
    local_pairs: str | None
    "Manifest that `specsegdiff make-pairs` wrote from the training recordings, or null."
    steps: int
    "Optimiser steps."
    batch: int = 8
    "Crops a step."
    frames: int = 256
    "Frames a crop."
    learning_rate: float = 6e-4
    "Peak of the schedule."
    warmup: int = 100
    "Steps of linear warm-up before the cosine."
    weight_decay: float = 0.01
    "Of AdamW."
    ema: float = 0.999
    "Decay of the averaged weights that are saved."
    validate_every: int = 500
    "Steps between two measurements on val."
    stop: int | None = None
    "Ends the run at this step of its schedule; null runs it to the end."
    init: str | None = None
    """Folder or hub id of a model to start from, null for random weights; input channels that it
    lacks start at zero."""
    model: dict[str, str | int | float | bool] = field(default_factory=dict)
    "Fields of `SegDiffConfig` to change in the preset, such as {deterministic: true}."
    seed: int = 0
    "Of weights, crops, noise and augmentation."
    precision: str = "auto"
    "Lightning's precision; 'auto' is 'bf16-mixed' where the device computes with it, or '32-true'."
    loss: LossConfig = field(default_factory=LossConfig)
    "Loss weights."
    masks: MaskConfig = field(default_factory=MaskConfig)
    "Ground truth."
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    "Augmentation."

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(
                f"TrainConfig.preset must be one of {sorted(PRESETS)}, got {self.preset!r}"
            )
        for name in ("steps", "batch", "frames", "validate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"TrainConfig.{name} must be positive, got {getattr(self, name)!r}"
                )


def read_config(path: str | Path, **changes: Any) -> TrainConfig:
    """Read a run's YAML; fields that it omits take their defaults, unknown ones are a
    `ConfigError`."""
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"cannot read {path} as YAML ({error}); see configs/segmenter for examples"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected the fields of TrainConfig, got {type(values).__name__}"
        )
    unset = [f for f in dataclasses.fields(TrainConfig) if f.name not in values]
    whole = values | {f.name: f.default for f in unset if f.default is not dataclasses.MISSING}
    whole.setdefault("model", {})
    for name, defaults in (
        ("loss", LossConfig()),
        ("masks", MaskConfig()),
        ("augment", AugmentConfig()),
    ):
        given = whole.get(name, {})
        whole[name] = dataclasses.asdict(defaults) | given if isinstance(given, dict) else given
    return hub.from_dict(TrainConfig, whole | changes, where=str(path))


class SegmenterModule(L.LightningModule):
    """Optimises a `SpecSegDiff` and measures it on val at one draw."""

    def __init__(self, config: TrainConfig, validation: list[Pair]) -> None:
        super().__init__()
        self.config = config
        self.validation = validation
        self.model = SpecSegDiff.from_preset(config.preset, **config.model)
        if config.init:
            start_from(self.model, SpecSegDiff.from_pretrained(config.init))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Loss of one batch; its noise depends on the seed and the step only, so a resumed run
        repeats it."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.global_step)
        condition, margin = batch
        loss, parts = diffusion_loss(
            self.model, condition, margin, config=self.config.loss, generator=generator
        )
        self.log_dict(
            {"loss": loss.detach(), **{k: v.detach() for k, v in parts.items()}}, prog_bar=True
        )
        return loss

    def validation_step(self, place: Tensor, index: int) -> None:
        """GDice of one pair at the map's own top share."""
        pair = self.validation[int(place)]
        stft = self.model.config.stft
        real, fake = load_pair(pair, config=stft)
        truth = ground_truth(
            self.model.stft.magnitude(real)[None],
            self.model.stft.magnitude(fake)[None],
            self.config.masks,
        )
        drawn = sample(
            self.model, self.model.condition(fake[None].to(self.device)), draws=1, items=[pair.id]
        )
        own = top_share(drawn.mean.cpu(), share=self.config.masks.share)
        self.log(
            "val_gdice",
            100 * generalized_dice(own, truth).mean(),
            batch_size=1,
            on_epoch=True,
            prog_bar=True,
        )

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Places of the validation pairs; each is read at its full length."""
        return DataLoader(torch.arange(len(self.validation)), batch_size=None)  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and a cosine to zero."""
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            betas=(0.9, 0.99),
        )
        rise = torch.optim.lr_scheduler.LinearLR(
            optimizer, 0.01, 1.0, total_iters=self.config.warmup
        )
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, max(1, self.config.steps - self.config.warmup)
        )
        schedule = torch.optim.lr_scheduler.SequentialLR(
            optimizer, [rise, fall], [self.config.warmup]
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def start_from(model: SpecSegDiff, other: SpecSegDiff) -> None:
    """Copy the weights of ``other``; input channels of the condition that it lacks start at zero.

    Raises `ConfigError` where the two differ in anything else.
    """
    weights = dict(other.state_dict())
    name = "encoder.first.weight"
    wanted, found = model.state_dict()[name], weights[name]
    missing = wanted.shape[1] - found.shape[1]
    if missing > 0:
        weights[name] = torch.nn.functional.pad(found, (0, 0, 0, 0, 0, missing))
    try:
        # a refining head starts at zero output by itself
        fresh = {k: v for k, v in model.state_dict().items() if k.startswith("refine.")}
        model.load_state_dict(fresh | weights)
    except RuntimeError as error:
        raise ConfigError(
            f"init holds {other.name}, whose networks do not fit the preset ({error}); "
            "start from a model of the same preset"
        ) from error


def moving_average(decay: float, average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
    """Exponential average whose decay rises to ``decay``, so that it forgets where it started."""
    now = min(decay, (1 + int(count)) / (10 + int(count)))
    return average + (1 - now) * (current - average)


def _precision(config: TrainConfig, accelerator: str) -> str:
    if config.precision != "auto":
        return config.precision
    device = "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    return "bf16-mixed" if fastest_dtype(device) is torch.bfloat16 else "32-true"


class _Onwards(Sampler[int]):
    """Crops in order from the module's step on: Lightning resumes a loader at its beginning."""

    def __init__(self, crops: Crops, module: SegmenterModule) -> None:
        self.crops, self.module = crops, module

    def __len__(self) -> int:
        # of the whole run, since Lightning's count of batches goes on where it stopped
        return len(self.crops)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.module.global_step * self.module.config.batch, len(self.crops)))


def train(
    config: TrainConfig, out: str | Path, *, resume: bool = False, accelerator: str = "auto"
) -> SpecSegDiff:
    """Train, keep checkpoints and logs in ``out``, and write the averaged model to ``out/model``.

    ``resume`` goes on from ``out/last.ckpt`` where there is one. Returns the averaged model.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    end = config.stop or config.steps
    L.seed_everything(config.seed, verbose=False)
    pairs = read_manifest(config.pairs)
    module = SegmenterModule(config, [p for p in pairs if p.split == "val"])
    shared = (module.model.config, config.masks, config.augment)
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
        count=end * config.batch,
        seed=config.seed,
    )
    average = WeightAveraging(avg_fn=partial(moving_average, config.ema))
    checkpoint = ModelCheckpoint(
        dirpath=out,
        filename="last",
        every_n_train_steps=config.validate_every,
        enable_version_counter=False,
    )
    trainer = L.Trainer(
        max_steps=end,
        accelerator=accelerator,
        devices=1,
        precision=_precision(config, accelerator),  # type: ignore[arg-type]
        gradient_clip_val=1.0,
        val_check_interval=min(config.validate_every, end),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=20,
        callbacks=[average, checkpoint, LearningRateMonitor()],
        # log/version_0, and the next number for a resumed run: Lightning would delete the log
        logger=CSVLogger(out, name="log"),
        enable_model_summary=False,
    )
    last = out / "last.ckpt" if resume and (out / "last.ckpt").exists() else None
    stored = torch.load(last, map_location="cpu", weights_only=False) if last else None
    if stored is None or stored["global_step"] < trainer.max_steps:
        trainer.fit(
            module,
            DataLoader(crops, batch_size=config.batch, sampler=_Onwards(crops, module)),
            ckpt_path=last,
            weights_only=False,
        )
        # WeightAveraging copies the averaged weights into the module when training ends
    else:
        # with nothing left to do Lightning would leave the last weights, not their average
        module.load_state_dict(stored["state_dict"])
    module.model.save_pretrained(out / "model", half=True)
    hub.write_atomic(out / "config.json", json.dumps(dataclasses.asdict(config), indent=2).encode())
    return module.model.eval()

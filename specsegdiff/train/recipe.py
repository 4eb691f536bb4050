"""What all training runs share: settings, YAML, optimiser and schedule, resumption, averaged
weights."""

import dataclasses
import zipfile
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from specsegdiff import hub
from specsegdiff.errors import CheckpointError, ConfigError
from specsegdiff.sampling import fastest_dtype


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of every run; the configuration of a model's training adds its own."""

    steps: int
    "Optimiser steps."
    batch: int = 8
    "Items a step."
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
    seed: int = 0
    "Of weights, crops, noise and augmentation."
    precision: str = "auto"
    "Lightning's precision; 'auto' is 'bf16-mixed' where the device computes with it, or '32-true'."

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "validate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{type(self).__name__}.{name} must be positive, got {getattr(self, name)!r}"
                )
        if not 0 <= self.seed < 2**32:
            raise ConfigError(
                f"{type(self).__name__}.seed must lie in [0, 2**32), got {self.seed!r}"
            )

    @property
    def end(self) -> int:
        """Step at which this run ends."""
        return self.stop or self.steps


Config = TypeVar("Config", bound=RunConfig)


def read_yaml(kind: type[Config], path: str | Path, **changes: Any) -> Config:
    """Read a run's YAML; fields that it omits take their defaults, unknown ones are a
    `ConfigError`."""
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"cannot read {path} as YAML ({error}); see configs/ for examples"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected the fields of {kind.__name__}, got {type(values).__name__}"
        )
    whole = dict(values)
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            whole.setdefault(field.name, field.default)
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
            if dataclasses.is_dataclass(default) and not isinstance(default, type):
                default = dataclasses.asdict(default)
            given = whole.get(field.name, {})
            # a part of its own may omit fields too
            whole[field.name] = default | given if isinstance(given, dict) else given
    return hub.from_dict(kind, whole | changes, where=str(path))


def optimise(parameters: Any, config: RunConfig) -> Any:
    """AdamW with linear warm-up and a cosine to zero, as Lightning takes it."""
    optimizer = torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(0.9, 0.99),
    )
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, total_iters=config.warmup)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, max(1, config.steps - config.warmup)
    )
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [config.warmup])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def moving_average(decay: float, average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
    """Exponential average whose decay rises to ``decay``, so that it forgets where it started."""
    now = min(decay, (1 + int(count)) / (10 + int(count)))
    return average + (1 - now) * (current - average)


class Onwards(Sampler[int]):
    """Items in order from the module's step on: Lightning resumes a loader at its beginning."""

    def __init__(self, items: Sized, module: L.LightningModule, batch: int) -> None:
        self.items, self.module, self.batch = items, module, batch

    def __len__(self) -> int:
        # of the whole run, since Lightning's count of batches goes on where it stopped
        return len(self.items)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.module.global_step * self.batch, len(self.items)))


def fit(
    module: L.LightningModule,
    items: Dataset[Any],
    config: RunConfig,
    out: Path,
    *,
    resume: bool,
    accelerator: str,
) -> None:
    """Train on ``items``, ``config.batch`` a step, and leave the averaged weights in ``module``.

    Checkpoints and logs go to ``out``; ``resume`` goes on from ``out/last.ckpt`` where there is
    one. Raises `CheckpointError` where that is damaged or another model's.
    """
    trainer = L.Trainer(
        max_steps=config.end,
        accelerator=accelerator,
        devices=1,
        precision=_precision(config, accelerator),  # type: ignore[arg-type]
        gradient_clip_val=1.0,
        val_check_interval=min(config.validate_every, config.end),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=20,
        callbacks=[
            WeightAveraging(avg_fn=partial(moving_average, config.ema)),
            ModelCheckpoint(
                dirpath=out,
                filename="last",
                every_n_train_steps=config.validate_every,
                enable_version_counter=False,
            ),
            LearningRateMonitor(),
        ],
        # log/version_0, and the next number for a resumed run: Lightning would delete the log
        logger=CSVLogger(out, name="log"),
        enable_model_summary=False,
    )
    last = last_checkpoint(out, resume=resume)
    stored = torch.load(last, map_location="cpu", weights_only=False) if last else None
    if stored is not None:
        try:
            module.load_state_dict(stored["state_dict"])
        except RuntimeError as error:
            raise CheckpointError(
                f"{last} does not hold this run's model ({error}); resume with the configuration "
                "that began the run, or choose another folder"
            ) from error
    if stored is None or stored["global_step"] < trainer.max_steps:
        onwards = Onwards(items, module, config.batch)  # type: ignore[arg-type]
        trainer.fit(
            module,
            DataLoader(items, batch_size=config.batch, sampler=onwards),
            ckpt_path=last,
            weights_only=False,
        )
        # WeightAveraging copies the averaged weights into the module when training ends; with
        # nothing left to do Lightning would leave the last ones, and those of the checkpoint stay


def last_checkpoint(out: Path, *, resume: bool) -> Path | None:
    """``out/last.ckpt`` where a run that resumes finds one; raises `CheckpointError` where that is
    cut short."""
    path = out / "last.ckpt"
    if not resume or not path.exists():
        return None
    if path.is_file() and not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is no complete checkpoint of PyTorch ({path.stat().st_size} bytes); "
            "put a copy back, or delete it to begin again"
        )
    return path


def _precision(config: RunConfig, accelerator: str) -> str:
    if config.precision != "auto":
        return config.precision
    device = "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    return "bf16-mixed" if fastest_dtype(device) is torch.bfloat16 else "32-true"

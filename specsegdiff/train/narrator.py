"""Train a vision-language narrator in four stages: SFT-1, GRPO-1, SFT-2, GRPO-2.

Stages 1 train the adapter ``cells`` on Query 1, stages 2 the adapter ``text`` on Query 2; the model
below stays as it is. A stage is a YAML file in ``configs/narrator``, starts from the adapter that
the stage before left, and leaves one. A small model of our own has a stage before them, ``base``,
which trains all of it on both queries: an adapter needs a model that can read and write. The loss
of GRPO is `specsegdiff.narration.policy`, the rewards are `specsegdiff.narration.rewards`; what is
here moves tensors.

Several processes share every batch, and a group's draws depend on its own example only. They give
what one gives, up to the rounding of sums,

- in SFT and base where nothing drops out (``dropout: 0``, and none in the model or in an adapter
  that is loaded): the noise depends on the process. The shipped SFT stages have 0.05;
- in GRPO with ``scale`` group or none and ``reduction`` grpo, dr_grpo or dapo. Each process scales
  by the deviation of its own rewards where ``scale`` is batch, and divides by its own tokens where
  ``reduction`` is bnpo.

Elsewhere a run is as valid, but another one. A script calls `train` with ``devices=8`` and
``strategy`` "ddp", or "fsdp" where the model does not fit one device::

    python script.py                               # one machine: Lightning starts the processes
    torchrun --nproc-per-node 8 script.py          # or torchrun does
    srun --nodes 1 --ntasks-per-node 8 --gpus-per-node 8 python script.py          # or SLURM
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import lightning as L
import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler

from specsegdiff import hub
from specsegdiff.errors import ConfigError
from specsegdiff.narration.policy import (
    PolicyConfig,
    completion_mask,
    flat_groups,
    group_advantages,
    policy_loss,
    token_log_probs,
)
from specsegdiff.narration.rewards import CellReward, TextReward, told
from specsegdiff.narration.vlm import (
    CELLS_ADAPTER,
    TEXT_ADAPTER,
    decode,
    encode,
    end_tokens,
    forbidden_tokens,
    generate,
    load_vlm,
    using,
    with_adapter,
)
from specsegdiff.train.examples import Example, read_examples
from specsegdiff.train.recipe import RunConfig, last_checkpoint, optimise, read_yaml
from specsegdiff.train.small_vlm import SmallConfig, make_small_vlm, save_vlm

Stage: TypeAlias = Literal["base", "sft-1", "grpo-1", "sft-2", "grpo-2"]
"""What is learned, and how: 1 is where, 2 is what; answers by heart, or by reward. ``base`` learns
both by heart, with all parameters."""

REFERENCE = "reference"
"Name of the frozen adapter that GRPO's divergence is measured from."


@dataclass(frozen=True, kw_only=True)
class NarratorConfig(RunConfig):
    """One stage; a YAML file in ``configs/narrator`` holds one of these."""

    stage: Stage
    "Which of the four, or ``base`` before them."
    model: str | None = None
    """Folder or hub id of the model, the same for all stages; null only for base, which then builds
    a small one."""
    small: SmallConfig = field(default_factory=SmallConfig)
    "Sizes of that small one."
    examples: str
    "JSONL that `train.examples` wrote; rows of the stage's query are trained on, for base all."
    adapter: str | None = None
    "Folder of the adapter to go on with, that of the stage before; null starts a new one."
    rank: int = 32
    "Of a new LoRA adapter."
    alpha: int = 64
    "Its scale, over the rank."
    dropout: float = 0.05
    "Its dropout, for SFT; GRPO has none, so that a ratio starts at 1."
    targets: str = "all-linear"
    """Layers that it adapts: a regular expression of their names; 'all-linear' are all but the
    last, in the vision tower too."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    "Of GRPO."
    reference: Literal["start", "base"] = "base"
    """What the divergence is measured from: the model without an adapter, or the adapter that the
    stage started from, which has learned the form of an answer already."""
    temperature: float = 1.0
    "Of GRPO's draws, and of the probabilities it compares."
    max_tokens: int = 128
    "Length of GRPO's draws at most."
    count: int = 16
    "Regions of a picture."
    k: int = 3
    "Regions asked for in Query 1."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage not in get_args(Stage):
            raise ConfigError(
                f"NarratorConfig.stage must be one of {', '.join(get_args(Stage))}, "
                f"got {self.stage!r}"
            )
        if self.model is None and self.stage != "base":
            raise ConfigError(
                f"stage {self.stage} trains an adapter of a model; set model to the folder that "
                "base wrote, or to a hub id"
            )
        for name in ("rank", "alpha", "max_tokens", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"NarratorConfig.{name} must be positive, got {getattr(self, name)!r}"
                )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"NarratorConfig.dropout must lie in [0, 1), got {self.dropout!r}")

    @property
    def queries(self) -> tuple[int, ...]:
        """What is trained on: 1 for where, 2 for what."""
        return (1, 2) if self.stage == "base" else (int(self.stage[-1]),)

    @property
    def adapter_name(self) -> str | None:
        """Name of the adapter that is trained; None where the model is."""
        if self.stage == "base":
            return None
        return CELLS_ADAPTER if self.queries == (1,) else TEXT_ADAPTER


def read_config(path: str | Path, **changes: Any) -> NarratorConfig:
    """Read a stage's YAML; fields that it omits take their defaults, unknown ones are a
    `ConfigError`."""
    return read_yaml(NarratorConfig, path, **changes)


# ------------------------------------------------------------------ data


class Pictured(NamedTuple):
    """An example with its picture in memory."""

    example: Example
    picture: Any


class Examples(Dataset[Pictured]):
    """Examples in an order that the seed and the number of the draw give: ``count`` of them.

    Draw ``i`` is the same in every process, whatever was drawn before: an epoch after the other,
    each shuffled anew.
    """

    def __init__(self, examples: Sequence[Example], folder: Path, *, count: int, seed: int) -> None:
        self.examples, self.folder, self.count, self.seed = examples, folder, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, draw: int) -> Pictured:
        from PIL import Image

        epoch, place = divmod(draw, len(self.examples))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.examples), generator=generator)
        example = self.examples[int(order[place])]
        with Image.open(self.folder / example.picture) as picture:
            return Pictured(example, picture.convert("RGB"))


class Share(Sampler[int]):
    """The draws of one process, from the module's step on: its part of every step's batch.

    All processes together see what one process would, step by step.
    """

    def __init__(self, module: L.LightningModule, *, steps: int, batch: int) -> None:
        self.module, self.steps, self.batch = module, steps, batch

    def __len__(self) -> int:
        # of the whole run, since Lightning's count of batches goes on where it stopped
        return self.steps * self._each

    @property
    def _each(self) -> int:
        return self.batch // self.module.trainer.world_size

    def __iter__(self) -> Iterator[int]:
        first = self.module.trainer.global_rank * self._each
        for step in range(self.module.global_step, self.steps):
            yield from range(step * self.batch + first, step * self.batch + first + self._each)


# ------------------------------------------------------------------ modules


class Answered(NamedTuple):
    """Encoded questions and the answers to them."""

    inputs: dict[str, Any]
    "Of the model, for the questions only, padded on the left."
    ids: Int[Tensor, "b t"]
    "Tokens of the answers, filled up on the right."
    mask: Bool[Tensor, "b t"]
    "Up to the first end token, inclusive."


def answer_log_probs(
    model: Any,
    answered: Answered,
    *,
    temperature: float = 1.0,
    forbidden: Sequence[int] = (),
) -> Float[Tensor, "b t"]:
    """Log-probability of every token of the answers, given question and picture.

    With the temperature and the ``forbidden`` tokens of drawing, they are those of the draw. What
    stands behind an answer's end is hidden from the model and must be masked by the caller.
    Tensors that follow the tokens, such as the kinds of tokens, are filled up with 0, the kind of
    text; a batch has the numbers that its items have alone.
    """
    inputs, ids = dict(answered.inputs), answered.ids
    shape = inputs["input_ids"].shape
    filler = {"input_ids": ids, "attention_mask": answered.mask.to(torch.int64)}
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == shape:
            extra = filler.get(name, torch.zeros_like(ids)).to(value.dtype)
            inputs[name] = torch.cat([value, extra], dim=1)
    # the logits at a token are those of the next
    needed = ids.shape[1] + 1
    logits = model(**inputs, use_cache=False, logits_to_keep=needed).logits[:, -needed:-1]
    if forbidden:
        place = torch.tensor(forbidden, device=logits.device)
        logits = logits.index_fill(-1, place, -torch.inf)
    return token_log_probs(logits, ids, temperature=temperature)


class _Adapting(L.LightningModule):
    """What both kinds of stage share: the adapter is all that is trained, and all that is saved;
    for stage ``base`` it is the model."""

    def __init__(self, config: NarratorConfig, model: Any, processor: Any) -> None:
        super().__init__()
        self.config, self.processor = config, processor
        self.model = adapted(model, config)
        # a checkpoint holds the adapter only
        self.strict_loading = False

    def configure_optimizers(self) -> Any:
        """AdamW on what is trained, with linear warm-up and a cosine to zero."""
        return optimise([p for p in self.model.parameters() if p.requires_grad], self.config)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the length of the gradient before it is clipped."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.log("grad_norm", torch.nn.utils.get_total_norm(gradients))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of the whole gradient; Lightning refuses to where FSDP shards it, and
        FSDP does."""
        shards = self.trainer.strategy.model
        if gradient_clip_val and isinstance(shards, FullyShardedDataParallel):
            shards.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained: LoRA under FSDP would write the whole model otherwise."""
        trained = {name for name, value in self.named_parameters() if value.requires_grad}
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if name in trained
        }

    def save(self, folder: Path) -> None:
        """Write the adapter as peft reads it into ``folder``; for base the model, in half size."""
        name = self.config.adapter_name
        if name is None:
            save_vlm(self.model, self.processor, folder)
            return
        self.model.save_pretrained(
            str(folder), selected_adapters=[name], save_embedding_layers=False
        )
        # peft puts an adapter with a name into a folder of that name
        for file in (folder / name).iterdir():
            file.replace(folder / file.name)
        (folder / name).rmdir()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        """Leave a batch as it is: it holds texts and pictures, no tensors."""
        return batch

    def _encoded(self, batch: Sequence[Pictured], *, times: int = 1) -> dict[str, Any]:
        """Inputs for the questions, each ``times`` times, side by side."""
        many = [item for item in batch for _ in range(times)]
        inputs = encode(
            self.processor, [item.example.prompt for item in many], [item.picture for item in many]
        )
        return dict(inputs.to(self.device))

    def _filled(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Answers of several lengths as ``(b, t)``, and which of their tokens count."""
        ends = end_tokens(self.model, self.processor)
        ids = torch.full((len(rows), max(map(len, rows))), ends[0], device=self.device)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row, device=self.device)
        return ids, completion_mask(ids, ends)


class SupervisedModule(_Adapting):
    """SFT: the answer by heart, the mean over tokens of minus its log-probability."""

    def training_step(self, batch: list[Pictured], index: int) -> Tensor:
        """Loss of one batch, over the tokens of answers and their end."""
        tokenizer = self.processor.tokenizer
        end = end_tokens(self.model, self.processor)[0]
        rows = [
            [*tokenizer(item.example.answer, add_special_tokens=False)["input_ids"], end]
            for item in batch
        ]
        ids, mask = self._filled(rows)
        answered = Answered(self._encoded(batch), ids, mask)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            # dropout depends on seed, step and process only, so that a resumed run repeats it
            torch.manual_seed(draw_seed(self.config.seed, self.global_step, str(self.global_rank)))
            log_probs = answer_log_probs(self.model, answered)
        # each answer counts alike, so that parts of a batch average to the whole
        loss = -((log_probs * mask).sum(1) / mask.sum(1)).mean()
        self.log("loss", loss.detach(), batch_size=len(batch), sync_dist=True, prog_bar=True)
        return loss


class PolicyModule(_Adapting):
    """GRPO: answers are drawn, rewarded, and made more or less likely; one update per draw.

    The model stays in evaluation mode, since dropout would make two passes disagree. A group's
    draws depend on seed, step and example only, so that no other example of the batch, and no
    number of processes, changes them. One update per draw: the ratio is 1, and nothing is clipped.
    """

    def training_step(self, batch: list[Pictured], index: int) -> Tensor:
        """Draw, reward and compare one batch of groups."""
        c, policy = self.config, self.config.policy
        self.model.eval()
        rows = [row for item in batch for row in self._draw(item)]
        ids, mask = self._filled(rows)
        texts = decode(self.processor, ids.masked_fill(~mask, self._pad))
        parts = [
            self._parts(item.example, texts[place * policy.group + draw])
            for place, item in enumerate(batch)
            for draw in range(policy.group)
        ]
        rewards = torch.tensor([part["reward"] for part in parts], device=self.device)
        answered = Answered(self._encoded(batch, times=policy.group), ids, mask)
        drawn: dict[str, Any] = {
            "temperature": c.temperature,
            "forbidden": forbidden_tokens(self.model, self.processor),
        }
        reference = None
        if policy.beta:
            with torch.no_grad(), using(self.model, REFERENCE):
                reference = answer_log_probs(self.model, answered, **drawn)
        log_probs = answer_log_probs(self.model, answered, **drawn)
        # an answer's filler may be a forbidden token, and 0 * inf is no number
        log_probs = log_probs.masked_fill(~mask, 0.0)
        reference = None if reference is None else reference.masked_fill(~mask, 0.0)
        flat = flat_groups(rewards, group=policy.group)
        counted = mask & ~flat[:, None] if policy.drop_flat else mask
        found = policy_loss(
            log_probs,
            None,
            reference,
            group_advantages(rewards, group=policy.group, scale=policy.scale),
            counted,
            config=policy,
            max_tokens=c.max_tokens,
            # the mean over processes is the share of each
            total=float(torch.as_tensor(self.all_gather(counted.sum())).float().mean()),
        )
        shown = {name: _mean([part[name] for part in parts]) for name in parts[0]}
        shown |= {
            "kl": float(found.kl),
            "flat": float(flat.float().mean()),
            "tokens": float(mask.sum(1).float().mean()),
        }
        self.log_dict(shown, batch_size=len(batch), sync_dist=True, prog_bar=True)
        return found.loss

    @property
    def _pad(self) -> int:
        pad = self.processor.tokenizer.pad_token_id
        return end_tokens(self.model, self.processor)[0] if pad is None else pad

    def _draw(self, item: Pictured) -> list[list[int]]:
        """Answers to one question, up to their end tokens."""
        ids = generate(
            self.model,
            self.processor,
            self._encoded([item], times=self.config.policy.group),
            max_tokens=self.config.max_tokens,
            temperature=self.config.temperature,
            seed=draw_seed(self.config.seed, self.global_step, item.example.id),
        )
        mask = completion_mask(ids, end_tokens(self.model, self.processor))
        return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]

    def _parts(self, example: Example, text: str) -> dict[str, float]:
        """The reward of an answer, and its parts by name."""
        if example.query == 1:
            cells = CellReward(count=self.config.count, k=self.config.k)
            parts = cells.parts(text, [str(id) for id in example.truth])._asdict()
        else:
            rows = [told(row) for row in example.truth]
            parts = TextReward().parts(text, example.ids, rows)._asdict()
        return {"reward": parts.pop("total"), **{f"reward_{k}": v for k, v in parts.items()}}


def draw_seed(seed: int, step: int, id: str) -> int:
    """Seed of the draws of one example at one step."""
    digest = hashlib.sha256(f"{seed}/{step}/{id}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def adapted(model: Any, config: NarratorConfig) -> Any:
    """Put the stage's adapter on a model, ready to be trained; nothing else can be. For base, all
    of the model can.

    GRPO also gets a frozen copy of the adapter it starts from. An adapter that is loaded keeps its
    own rank, scale and layers.
    """
    from peft import LoraConfig, get_peft_model

    reinforced = config.stage.startswith("grpo")
    name = config.adapter_name
    model.requires_grad_(name is None)
    if name is None:
        return model
    if config.adapter is None:
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=0.0 if reinforced else config.dropout,
            target_modules=config.targets,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            found = get_peft_model(model, lora, adapter_name=name)
    else:
        found = with_adapter(model, config.adapter, name=name)
        if reinforced and config.reference == "start":
            found = with_adapter(found, config.adapter, name=REFERENCE)
        found.set_adapter(name)
    for path, value in found.named_parameters():
        value.requires_grad_(".lora_" in path and f".{name}." in path)
    return found


def train(
    config: NarratorConfig,
    out: str | Path,
    *,
    resume: bool = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    strategy: str = "auto",
    loaded: tuple[Any, Any] | None = None,
) -> Path:
    """Run one stage, keep checkpoints and logs in ``out``, and write ``out/adapter``, or the model
    of base to ``out/model``.

    ``resume`` goes on from ``out/last.ckpt`` where there is one. ``loaded`` is a model with its
    processor, instead of those that the configuration names. Returns the folder that was written.
    Raises `ConfigError` where no example is for the stage, or processes cannot share the batch.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    L.seed_everything(config.seed, verbose=False)
    examples = [e for e in read_examples(config.examples) if e.query in config.queries]
    if not examples:
        raise ConfigError(
            f"{config.examples} has no example of Query {config.queries[0]}; "
            "make some with specsegdiff.train.examples"
        )
    model, processor = loaded if loaded is not None else _loaded(config, examples)
    kind = PolicyModule if config.stage.startswith("grpo") else SupervisedModule
    module = kind(config, model, processor)
    items = Examples(
        examples,
        Path(config.examples).parent,
        count=config.end * config.batch,
        seed=config.seed,
    )
    trainer = L.Trainer(
        max_steps=config.end,
        accelerator=accelerator,
        devices=devices,
        strategy=strategy,
        precision="32-true" if config.precision == "auto" else config.precision,  # type: ignore[arg-type]
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        callbacks=[
            ModelCheckpoint(
                dirpath=out,
                filename="last",
                every_n_train_steps=config.validate_every,
                enable_version_counter=False,
            )
        ],
        logger=CSVLogger(out, name="log"),
        enable_model_summary=False,
    )
    if config.batch % trainer.world_size:
        raise ConfigError(
            f"a batch of {config.batch} cannot be shared by {trainer.world_size} processes; "
            "choose a multiple"
        )
    last = last_checkpoint(out, resume=resume)
    trainer.fit(
        module,
        DataLoader(
            items,
            batch_size=config.batch // trainer.world_size,
            sampler=Share(module, steps=config.end, batch=config.batch),
            collate_fn=list,
        ),
        ckpt_path=last,
        weights_only=False,
    )
    written = out / ("model" if config.stage == "base" else "adapter")
    if trainer.is_global_zero:
        module.save(written)
        text = json.dumps(dataclasses.asdict(config), indent=2)
        hub.write_atomic(out / "config.json", text.encode())
    return written


def _loaded(config: NarratorConfig, examples: Sequence[Example]) -> tuple[Any, Any]:
    """Model and processor of a stage: those that it names, or a small one that knows nothing."""
    if config.model is not None:
        return load_vlm(config.model)
    texts = [t for e in examples for t in (e.prompt.system, e.prompt.user, e.answer)]
    return make_small_vlm(texts, config.small, seed=config.seed)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

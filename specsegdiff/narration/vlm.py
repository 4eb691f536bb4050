"""A vision-language model as narrator: any Hugging Face model that reads pictures and writes text.

The model is asked twice. Query 1: which regions? Query 2: what is there? Its answers go through the
readers of `specsegdiff.narration.parsing`; an answer that cannot be read is asked for again, and
what stays unread stands in `Report.unparsed`. No answer is ever compared with a truth: a retry is
only another draw.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from specsegdiff.cells import RegionGrid, Regions, pool, top_k, whole_plane
from specsegdiff.errors import CheckpointError, ConfigError, DependencyError
from specsegdiff.explanation import Explanation
from specsegdiff.narration.division import Division, divided
from specsegdiff.narration.parsing import Finding, holds_marker, parse_cells, parse_findings
from specsegdiff.narration.picture import PictureConfig, draw_regions
from specsegdiff.narration.prompts import Prompt, describe_prompt, messages, select_prompt
from specsegdiff.narration.schema import CellReport, Report, Sentence

if TYPE_CHECKING:
    from PIL.Image import Image

CELLS_ADAPTER, TEXT_ADAPTER = "cells", "text"
"Names of the two LoRA adapters: that of Query 1, and that of Query 2."

Chooser: TypeAlias = Callable[[Explanation, Regions], Sequence[str]]
"""What may answer Query 1 instead of the model: ids of regions, best first, of which the narrator
takes the first `VLMConfig.k`."""

NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "guidance_scale": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
}
"Settings under which `transformers` leaves a model's probabilities as they are."

UNCUT: dict[str, Any] = {
    "top_k": 0,
    "top_p": 1.0,
    "top_h": None,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"Settings under which `transformers` draws from all tokens."

SHOWN = 80
"Characters of an unreadable vote that a report quotes."


@dataclass(frozen=True)
class VLMConfig:
    """How the model is asked."""

    k: int = 3
    "Regions asked for, or taken of those that a function chooses."
    attempts: int = 4
    "Answers to a question at most: the first is the likeliest one, later ones are drawn."
    temperature: float = 0.8
    "Of the later draws."
    votes: int = 1
    """Answers to Query 1 that are drawn at temperature 1; the regions that most of them name are
    taken. 1 takes the likeliest answer, which is not the list of the likeliest regions: after a
    first region come those that go with it, also where the first was a guess."""
    cell_tokens: int = 64
    "Length of an answer to Query 1 at most."
    text_tokens: int = 512
    "Length of an answer to Query 2 at most."
    seed: int = 0
    "Of the later draws."
    picture: PictureConfig = field(default_factory=PictureConfig)
    "What the model looks at."

    def __post_init__(self) -> None:
        for name in ("k", "attempts", "votes", "cell_tokens", "text_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"VLMConfig.{name} must be positive, got {getattr(self, name)!r}")
        if not self.temperature > 0:
            raise ConfigError(f"VLMConfig.temperature must be positive, got {self.temperature!r}")


class VLMNarrator:
    """Narrator whose words are those of a vision-language model; make one with `from_pretrained`.

    ``model`` and ``processor`` are what `transformers` loads; of a model with the adapters
    ``cells`` and ``text``, the first answers Query 1 and the second Query 2. ``divide`` are other
    regions than the 4x4 grid, or what makes them of an explanation, as in
    `specsegdiff.narration.rules.RuleNarrator`; ``choose`` answers Query 1 in the model's place. The
    model is left as it was found, and the random state too.

    >>> from specsegdiff import explain
    >>> narrator = VLMNarrator.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct")  # doctest: +SKIP
    >>> print(narrator(explain("call.wav")))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        config: VLMConfig | None = None,
        divide: Division | None = None,
        choose: Chooser | None = None,
        name: str = "",
    ) -> None:
        self.model = model
        self.processor = processor
        self.config = config or VLMConfig()
        self.divide = divide
        self.choose = choose
        self.name = name or type(model).__name__

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        adapters: tuple[str | Path | None, str | Path | None] = (None, None),
        config: VLMConfig | None = None,
        divide: Division | None = None,
        choose: Chooser | None = None,
        name: str = "",
        **options: Any,
    ) -> "VLMNarrator":
        """Load a model of a folder or a hub id, with the adapters of Query 1 and 2 if there are.

        ``name`` is what a report calls the model, by default ``source``. ``options`` go to
        `transformers`, such as ``dtype`` or ``device_map``; files are read as safetensors, and no
        code from a repository is run. Raises `DependencyError` without transformers or, with
        adapters, peft, and `CheckpointError` where nothing can be loaded.
        """
        model, processor = load_vlm(source, **options)
        names = {CELLS_ADAPTER: adapters[0], TEXT_ADAPTER: adapters[1]}
        for adapter, folder in names.items():
            if folder is not None:
                model = with_adapter(model, folder, name=adapter)
        return cls(
            model.eval(),
            processor,
            config=config,
            divide=divide,
            choose=choose,
            name=name or str(source),
        )

    def __call__(self, explanation: Explanation) -> Report:
        """Ask the model about an explanation: regions, then words; what it cannot say is left out.

        A finding is reported where all its fields are legal, and its text has a word and no number:
        nothing could check one. The fields are the model's claim. Raises `ShapeError` where
        ``divide`` has other axes.
        """
        c, regions = self.config, divided(explanation, self.divide or RegionGrid(explanation.axes))
        maps = explanation.layers
        picture = draw_regions(maps.wave, regions, heatmap=maps.heatmap, config=c.picture)
        unparsed = []
        if self.choose is None:
            ids, rest = self.select(picture, regions)
            unparsed.append(rest)
        else:
            ids = tuple(self.choose(explanation, regions))[: c.k]
        findings, rest = self.describe(picture, regions, ids) if ids else ((), "")
        unparsed.append(rest)
        cells, sentences = [], []
        for found in findings:
            # a line break would begin a line of its own in a report
            finding = replace(found, evidence=" ".join(found.evidence.split()))
            said = Sentence(f"Region {finding.id}: {finding.evidence}", finding.id)
            wordless = not any(map(str.isalpha, finding.evidence))
            if wordless or said.unsupported() or holds_marker(finding.evidence):
                unparsed.append(said.text)
                continue
            cells.append(_cell(finding, regions))
            sentences.append(said)
        return Report(
            cells=tuple(cells),
            sentences=tuple(sentences),
            summary=f"The model describes {len(cells)} of {len(ids)} regions that show synthesis.",
            provenance={
                "narrator": type(self).__name__,
                "model": self.name,
                "recording": explanation.provenance.source,
                "samples_sha256": explanation.provenance.samples_sha256,
                "seed": str(c.seed),
                "regions": ", ".join(ids),
                "regions chosen by": "the model" if self.choose is None else "a function",
            },
            extent=whole_plane(explanation.axes),
            numbers={"regions_described": len(cells), "regions_chosen": len(ids)},
            unparsed="\n".join(part for part in unparsed if part),
        )

    def select(self, picture: "Image", regions: Regions) -> tuple[tuple[str, ...], str]:
        """Query 1: ids of regions, best first, and what was not understood."""
        prompt = select_prompt(regions, k=self.config.k)
        if self.config.votes > 1:
            texts = self._votes(prompt, picture)
            elected = elect(texts, count=regions.count, k=self.config.k)
            return elected, self._unread(texts, regions) if elected else "\n".join(texts)
        best = parse_cells("", count=regions.count, k=self.config.k)
        for text in self._answers(prompt, picture, CELLS_ADAPTER, self.config.cell_tokens):
            read = parse_cells(text, count=regions.count, k=self.config.k)
            if len(read.ids) > len(best.ids) or not (best.ids or best.unparsed):
                best = read
            if len(best.ids) == self.config.k:
                break
        return best.ids, best.unparsed

    def describe(
        self, picture: "Image", regions: Regions, ids: Sequence[str], *, transcript: str = ""
    ) -> tuple[tuple[Finding, ...], str]:
        """Query 2: complete findings on the regions ``ids``, and what was not understood."""
        prompt = describe_prompt(regions, ids, transcript=transcript)
        best: tuple[Finding, ...] = ()
        unparsed = ""
        for text in self._answers(prompt, picture, TEXT_ADAPTER, self.config.text_tokens):
            read = parse_findings(text, ids=ids)
            whole = tuple(finding for finding in read.findings if finding.complete)
            if len(whole) > len(best) or not (best or unparsed):
                # with a field missing somewhere, the answer as it came tells which
                complete = len(whole) == len(read.findings)
                best, unparsed = whole, read.unparsed if complete else text
            if len(best) == len(ids):
                break
        return best, unparsed

    def _unread(self, texts: Sequence[str], regions: Regions) -> str:
        """How many votes could not be read, and the beginning of the first."""
        k = self.config.k
        bad = [text for text in texts if not parse_cells(text, count=regions.count, k=k).ids]
        if not bad:
            return ""
        first = " ".join(bad[0].split())
        first = first if len(first) <= SHOWN else f"{first[:SHOWN]}..."
        return f"{len(bad)} of {len(texts)} answers could not be read: {first or '(empty)'}"

    def _votes(self, prompt: Prompt, picture: "Image") -> list[str]:
        """Texts of several answers to Query 1, drawn at once."""
        c = self.config
        inputs = encode(self.processor, [prompt] * c.votes, [picture] * c.votes)
        return self._generate(inputs, CELLS_ADAPTER, c.cell_tokens, temperature=1.0, seed=c.seed)

    def _answers(
        self, prompt: Prompt, picture: "Image", adapter: str, max_tokens: int
    ) -> Iterator[str]:
        """Texts that the model gives to one question: the likeliest first, then draws."""
        c, inputs = self.config, encode(self.processor, [prompt], [picture])
        for attempt in range(c.attempts):
            temperature = c.temperature if attempt else 0.0
            yield from self._generate(
                inputs, adapter, max_tokens, temperature=temperature, seed=c.seed + attempt
            )

    def _generate(
        self, inputs: Any, adapter: str, max_tokens: int, *, temperature: float, seed: int
    ) -> list[str]:
        with using(self.model, adapter):
            ids = generate(
                self.model,
                self.processor,
                inputs.to(self.model.device),
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
            )
        return decode(self.processor, ids)


def hottest(explanation: Explanation, regions: Regions) -> tuple[str, ...]:
    """A `Chooser`: all regions, that with the most heat first."""
    return top_k(pool(explanation.layers.heatmap, regions), regions.count)


def elect(texts: Iterable[str], *, count: int, k: int) -> tuple[str, ...]:
    """The ``k`` regions, of ``count``, that most of several answers to Query 1 name; ties to the
    smaller number.

    >>> elect(["[1, 5]", "[2, 3]", "[3, 2]", "no idea"], count=16, k=2)
    ('2', '3')
    """
    votes = Counter(id for text in texts for id in parse_cells(text, count=count, k=k).ids)
    return tuple(sorted(votes, key=lambda id: (-votes[id], int(id)))[:k])


# ------------------------------------------------------------------ models


def load_vlm(source: str | Path, **options: Any) -> tuple[Any, Any]:
    """Load any image-text-to-text model of `transformers` and its processor, for evaluation.

    Raises `CheckpointError` where there is none, or its files are damaged.
    """
    try:
        from safetensors import SafetensorError
        from transformers import AutoModelForImageTextToText, AutoProcessor
    except ImportError as error:
        raise DependencyError(
            "vision-language models need transformers: pip install 'specsegdiff[vlm]'"
        ) from error
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, **options
        )
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except SafetensorError as error:
        raise CheckpointError(
            f"the weights of {source} cannot be read ({error}); the file is damaged or only part "
            "of it is there: copy or download it again"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source} holds no model that reads pictures and writes text ({error}); pass a folder "
            "that save_pretrained wrote, or a hub id such as 'Qwen/Qwen2.5-VL-3B-Instruct'"
        ) from error
    return model.eval(), processor


def with_adapter(model: Any, folder: str | Path, *, name: str) -> Any:
    """Put the LoRA adapter of a folder on a model, beside those it has, frozen and by a name.

    Raises `CheckpointError` where there is none for this model, or its files are damaged.
    """
    try:
        from peft import PeftModel
        from safetensors import SafetensorError
    except ImportError as error:
        raise DependencyError("adapters need peft: pip install 'specsegdiff[vlm]'") from error
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
            return model
        return PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    except SafetensorError as error:
        raise CheckpointError(
            f"the weights of the adapter {folder} cannot be read ({error}); the file is damaged or "
            "only part of it is there: copy it again"
        ) from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"adapter_config.json of {folder} describes no adapter ({type(error).__name__}: "
            f"{error}); copy it again, or pass a folder that a stage of training wrote"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} holds no adapter for this model ({error}); pass a folder that a stage of "
            "training wrote, and the model it was trained on"
        ) from error


@contextlib.contextmanager
def using(model: Any, adapter: str | None) -> Iterator[None]:
    """Have a model use one of its adapters for a while; None, or a name it lacks, is no adapter.

    A model without adapters is left alone. The adapter that was active is active again afterwards,
    also after an error, and the parameters that were trained can still be trained.
    """
    known = getattr(model, "peft_config", None)
    if not known:
        yield
        return
    # peft freezes what it switches off, and thaws what it switches on
    trained = {name: value.requires_grad for name, value in model.named_parameters()}
    before = model.active_adapter
    try:
        if adapter is None or adapter not in known:
            with model.disable_adapter():
                yield
        else:
            model.set_adapter(adapter)
            yield
    finally:
        model.set_adapter(before)
        for name, value in model.named_parameters():
            value.requires_grad_(trained[name])


# ------------------------------------------------------------------ texts and tokens


def encode(processor: Any, prompts: Sequence[Prompt], pictures: Sequence["Image"]) -> Any:
    """Questions as a model's inputs, padded on the left, ready for an answer."""
    chats = [
        processor.apply_chat_template(messages(prompt), add_generation_prompt=True, tokenize=False)
        for prompt in prompts
    ]
    return processor(
        text=chats,
        images=[[picture] for picture in pictures],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )


def decode(processor: Any, ids: Int[Tensor, "b t"]) -> list[str]:
    """Texts of answers, without the markers that end and fill them; other markers stay."""
    tokenizer = processor.tokenizer
    drop = {tokenizer.pad_token_id, tokenizer.eos_token_id}
    return [
        tokenizer.decode([i for i in row if i not in drop], skip_special_tokens=False)
        for row in ids.tolist()
    ]


def end_tokens(model: Any, processor: Any) -> list[int]:
    """Tokens that end an answer, that of the tokenizer first."""
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    ends = [processor.tokenizer.eos_token_id, *listed]
    found = list(dict.fromkeys(int(end) for end in ends if end is not None))
    if not found:
        raise ConfigError("neither model nor tokenizer names a token that ends an answer")
    return found


def forbidden_tokens(model: Any, processor: Any) -> list[int]:
    """Tokens that no answer may hold: markers of pictures, films and turns.

    A picture's token without a picture stops most models with an error.
    """
    ends = set(end_tokens(model, processor))
    config = model.config.to_dict()
    named = [value for name, value in config.items() if name.endswith("_token_id")]
    ids = {*processor.tokenizer.all_special_ids, *(v for v in named if isinstance(v, int))}
    return sorted(id for id in ids - ends if id >= 0)


def generate(
    model: Any,
    processor: Any,
    inputs: Any,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> Int[Tensor, "b t"]:
    """Answers to encoded questions: the likeliest tokens at temperature 0, draws above it.

    Draws depend on ``seed``, and on nothing that was drawn before; the random state of the process
    is left as it was. Probabilities are the model's: penalties and cuts of the checkpoint's
    generation config do not apply, so that training gives a draw the probability it had.
    """
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, **UNCUT}
    pad = processor.tokenizer.pad_token_id
    ends = end_tokens(model, processor)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), _evaluating(model):
        torch.manual_seed(seed)
        ids = model.generate(
            **inputs,
            **NEUTRAL,
            **sampling,
            max_new_tokens=max_tokens,
            suppress_tokens=forbidden_tokens(model, processor),
            eos_token_id=ends,
            pad_token_id=ends[0] if pad is None else pad,
        )
    return ids[:, inputs["input_ids"].shape[1] :]


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _cell(finding: Finding, regions: Regions) -> CellReport:
    if finding.time is None or finding.frequency is None or finding.phone is None:
        raise ConfigError(f"only a complete finding becomes part of a report, got {finding!r}")
    return CellReport(
        id=finding.id,
        time=finding.time,
        frequency=finding.frequency,
        phone=finding.phone,
        kind=None,
        evidence=finding.evidence,
        numbers={},
        box=regions.box(finding.id),
    )

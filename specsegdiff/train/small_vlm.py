"""A small vision-language model of our own: a published architecture, random weights, and a
tokenizer that is learnt from the questions and answers themselves.

It is Idefics3 (arXiv 2408.12637) of two million parameters, so that `transformers` runs it as it is
and nothing has to be downloaded. It reads the spectrogram with the heatmap beside it, two square
halves of a square picture, and its answers have the forms of `specsegdiff.narration.parsing`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from specsegdiff import hub
from specsegdiff.errors import ConfigError

END, SYSTEM, USER, ASSISTANT = "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
IMAGE = "<image>"
SPECIAL = (
    "<pad>",
    END,
    SYSTEM,
    USER,
    ASSISTANT,
    IMAGE,
    # what the processor of Idefics3 puts around a picture, and adds where it is missing
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
)
"Markers, at the first places of the vocabulary."

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% for c in m.content %}{% if c.type == 'image' %}"
    f"{IMAGE}{{% else %}}{{{{ c.text }}}}{{% endif %}}{{% endfor %}}{END}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)
"Of chats: a marker for the role, the content, the end."

PIECES = r"\d+|[A-Za-z][A-Za-z -]*|[^A-Za-z\d]+"
"""What no token reaches beyond: a number, a run of words, or what stands between them. A phrase may
become one token, so that questions of a thousand characters are short; a field and its value may
not, nor two digits of different numbers."""


@dataclass(frozen=True)
class SmallConfig:
    """Sizes of the model."""

    vision_width: int = 128
    "Of the vision tower."
    text_width: int = 192
    "Of the language model."
    layers: int = 4
    "Of each."
    heads: int = 4
    "Attention heads of each."
    vocabulary: int = 1024
    "Tokens, at most."
    side: int = 128
    "Pixels of a side of the picture."
    patch: int = 16
    "Pixels of a side of a patch."
    merge: int = 2
    "Patches of a side that become one token: 128 pixels, 64 patches, 16 tokens."

    def __post_init__(self) -> None:
        if self.side % (self.patch * self.merge):
            raise ConfigError(
                f"a picture of {self.side} pixels has no whole number of tokens of "
                f"{self.patch} x {self.merge} pixels; choose a multiple of "
                f"{self.patch * self.merge}"
            )
        least = len(SPECIAL) + 256
        if self.vocabulary < least:
            raise ConfigError(
                f"SmallConfig.vocabulary must be at least {least}, the markers and all bytes, "
                f"got {self.vocabulary}"
            )


def make_small_vlm(
    texts: Iterable[str], config: SmallConfig | None = None, *, seed: int = 0
) -> tuple[Any, Any]:
    """Build the model with random weights, and its processor with a tokenizer of these texts.

    The same texts and ``seed`` give the same model and tokenizer. Any text can be written, byte by
    byte where need be. The global random state is left alone.
    """
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    c = config or SmallConfig()
    processor = _processor(_tokenizer(texts, c.vocabulary), c)
    place = {name: number for number, name in enumerate(SPECIAL)}
    # 0.02, the default, suits widths of thousands: from it a small model does not get going
    shared = {
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "initializer_range": 0.05,
    }
    # its default lies beyond this vocabulary
    padding: dict[str, Any] = {"pad_token_id": place["<pad>"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Idefics3ForConditionalGeneration(
            Idefics3Config(
                text_config={
                    "model_type": "llama",
                    "vocab_size": len(processor.tokenizer),
                    "hidden_size": c.text_width,
                    "intermediate_size": 8 * c.text_width // 3,
                    "num_key_value_heads": c.heads,
                    "max_position_embeddings": 2048,
                    "bos_token_id": None,
                    "eos_token_id": place[END],
                    "pad_token_id": place["<pad>"],
                    "tie_word_embeddings": True,
                    **shared,
                },
                vision_config={
                    "hidden_size": c.vision_width,
                    "intermediate_size": 4 * c.vision_width,
                    "image_size": c.side,
                    "patch_size": c.patch,
                    **shared,
                },
                scale_factor=c.merge,
                image_token_id=place[IMAGE],
                **padding,
                tie_word_embeddings=True,
            )
        )
    return model.eval(), processor


def save_vlm(model: Any, processor: Any, folder: str | Path) -> None:
    """Write a model and its processor as `load_vlm` reads them, in half the size.

    Floating tensors are stored as float16, yet they are loaded as float32, in which CPUs compute.
    """
    folder = Path(folder)
    stored: dict[int, tuple[str, torch.Tensor]] = {}
    for name, value in model.state_dict().items():
        # tied tensors have two names; one of them is stored
        half = value.half() if value.is_floating_point() else value
        stored.setdefault(value.data_ptr(), (name, half))
    model.save_pretrained(folder, state_dict=dict(stored.values()))
    processor.save_pretrained(folder)
    path = folder / "config.json"
    text = json.dumps(_in_float32(json.loads(path.read_text(encoding="utf-8"))), indent=2)
    hub.write_atomic(path, text.encode() + b"\n")


def _in_float32(config: Any) -> Any:
    """A configuration whose parts all say that tensors are loaded as float32."""
    if not isinstance(config, dict):
        return config
    return {
        name: "float32" if name == "dtype" else _in_float32(value) for name, value in config.items()
    }


def _tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Byte pairs (Sennrich et al. 2016) within `PIECES`, the markers first."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        # equal counts are broken by order, which must not hang on that of a set
        sorted(set(texts)),
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    more: Sequence[str] = SPECIAL[2:]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=SPECIAL[0],
        eos_token=END,
        extra_special_tokens={f"marker_{place}": token for place, token in enumerate(more)},
        clean_up_tokenization_spaces=False,
    )


def _processor(tokenizer: Any, config: SmallConfig) -> Any:
    from transformers import Idefics3ImageProcessorPil, Idefics3Processor

    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": config.side},
        max_image_size={"longest_edge": config.side},
        do_image_splitting=False,
    )
    return Idefics3Processor(
        pictures,
        tokenizer,
        image_seq_len=(config.side // config.patch // config.merge) ** 2,
        chat_template=TEMPLATE,
    )

"""Tiny vision-language models with random weights and their processors, built without a network.

Real classes of the families, with two layers each: what passes here passes through the code of the
large ones.
"""

from collections.abc import Callable
from typing import Any

import torch

SPECIAL = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "<|im_end|>",
    "unk_token": "<unk>",
}
MORE = [
    "<|im_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
    "<video>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
]
WORDS = [*"[](),.;:=\"'- \n?/%\\", *map(str, range(10)), *(chr(c) for c in range(97, 123))]
WORDS += [*(chr(c) for c in range(65, 91))]

QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def template(image: str) -> str:
    return QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", image)


def tokenizer(**extra: str) -> Any:
    """Single characters as tokens, and the markers of all families."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [*SPECIAL.values(), *MORE, *WORDS]
    place = {token: number for number, token in enumerate(vocabulary)}
    inner = Tokenizer(models.WordLevel(place, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **SPECIAL,
        extra_special_tokens={f"marker_{i}": token for i, token in enumerate(MORE)} | extra,
        clean_up_tokenization_spaces=False,
    )


def text_config(vocabulary: int, **extra: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.08,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **extra,
    }


MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


def _qwen_ids(tok: Any) -> dict[str, int]:
    ids = tok.convert_tokens_to_ids
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def qwen2_5_vl() -> tuple[Any, Any]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessorPil,
        Qwen2VLVideoProcessor,
    )

    tok = tokenizer()
    config = Qwen2_5_VLConfig(
        text_config=text_config(len(tok), rope_parameters=MROPE),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        **_qwen_ids(tok),
    )
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=84 * 84)
    processor = Qwen2_5_VLProcessor(
        images, tok, Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    from transformers import (
        Qwen2VLImageProcessorPil,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tok = tokenizer()
    config = Qwen3VLConfig(
        text_config=text_config(
            len(tok), head_dim=8, rope_parameters=MROPE | {"mrope_interleaved": True}
        ),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [1],
            "num_position_embeddings": 64,
            "patch_size": 16,
        },
        **_qwen_ids(tok),
    )
    images = Qwen2VLImageProcessorPil(min_pixels=64 * 64, max_pixels=96 * 96, patch_size=16)
    processor = Qwen3VLProcessor(images, tok, Qwen3VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    return Qwen3VLForConditionalGeneration(config), processor


def idefics3() -> tuple[Any, Any]:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )

    tok = tokenizer()
    config = Idefics3Config(
        text_config={"model_type": "llama", **text_config(len(tok))},
        vision_config=_small_vision(image_size=64, patch_size=8),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 64}, do_image_splitting=False
    )
    processor = Idefics3Processor(images, tok, image_seq_len=16, chat_template=template("<image>"))
    return Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> tuple[Any, Any]:
    """SmolVLM with the processor of Idefics3: its own one wants a package for video only."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    other, processor = idefics3()
    config = SmolVLMConfig(
        text_config=other.config.text_config.to_dict(),
        vision_config=_small_vision(image_size=64, patch_size=8),
        image_token_id=other.config.image_token_id,
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return SmolVLMForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    from transformers import (
        GotOcr2ImageProcessorPil,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    tok = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **text_config(len(tok))},
        vision_config=_small_vision(image_size=[64, 64], patch_size=[8, 8]),
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        downsample_ratio=0.5,
    )
    images = GotOcr2ImageProcessorPil(size={"height": 64, "width": 64}, crop_to_patches=False)
    processor = InternVLProcessor(
        images,
        tok,
        InternVLVideoProcessor(),
        image_seq_length=16,
        chat_template=template("<IMG_CONTEXT>\n"),
    )
    return InternVLForConditionalGeneration(config), processor


def _small_vision(**extra: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        **extra,
    }


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2.5-vl": qwen2_5_vl,
    "qwen3-vl": qwen3_vl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "internvl": internvl,
}


def make_vlm(family: str, *, seed: int = 0) -> tuple[Any, Any]:
    """A model in evaluation mode and its processor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = FAMILIES[family]()
    return model.eval(), processor

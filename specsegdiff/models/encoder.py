"""Encoders of transformers under a detector: wav2vec 2.0, WavLM and HuBERT, layer by layer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from specsegdiff.errors import CheckpointError, ConfigError
from specsegdiff.models.spectral import SpectralFront
from specsegdiff.models.wavlm import call_projections

Family: TypeAlias = Literal["wav2vec2", "wavlm", "hubert"]
"""Encoders of Hugging Face transformers that share wav2vec 2.0's layout: Baevski et al. 2020
(arXiv 2006.11477), Chen et al. 2022 (arXiv 2110.13900), Hsu et al. 2021 (arXiv 2106.07447)."""


@dataclass(frozen=True)
class BackboneConfig:
    """An encoder under the names of `transformers.Wav2Vec2Config`; the defaults are XLS-R 300M
    (Babu et al. 2021, arXiv 2111.09296)."""

    family: Family = "wav2vec2"
    """Which kind. The 320 buckets of WavLM's positions up to a distance of 800 are those of all
    its checkpoints."""
    hidden_size: int = 1024
    "Width of the transformer."
    num_hidden_layers: int = 24
    "Transformer layers."
    num_attention_heads: int = 16
    "Attention heads a layer."
    intermediate_size: int = 4096
    "Width of the feed-forward networks."
    conv_dim: tuple[int, ...] = (512,) * 7
    "Channels of each convolution of the feature extractor."
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    "Their taps."
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    "Their strides; the product, 320 samples, is the distance of frames."
    conv_bias: bool = True
    "Whether they have a bias."
    spectrogram: bool = False
    """Starts from a log-power spectrum instead (`SpectralFront`): the first entry of each tuple is
    its bins, window and hop, the others are convolutions over time and frequency. Convolutions on
    samples find such a spectrum in pre-training; without it they need far more data."""
    feat_extract_norm: str = "layer"
    "Layer norm after each convolution, or group norm after the first ('group')."
    do_stable_layer_norm: bool = True
    """Layer norm before attention and feed-forward and after the last layer, or after attention
    and feed-forward and before the first layer."""
    num_conv_pos_embeddings: int = 128
    "Taps of the convolution that gives the position."
    num_conv_pos_embedding_groups: int = 16
    "Groups of that convolution."
    layer_norm_eps: float = 1e-5
    "Added to the variance in the transformer's layer norms."
    dropout: float = 0.0
    """Dropout in the transformer while training; 0 as in the pre-training configuration that the
    published detector was fine-tuned with. Layers are never dropped, nor frames masked."""

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise ConfigError(
                f"BackboneConfig.family must be one of {', '.join(get_args(Family))}, "
                f"got {self.family!r}"
            )
        if not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride) > 0:
            raise ConfigError(
                "BackboneConfig needs one conv_dim, conv_kernel and conv_stride per convolution, "
                f"got {self.conv_dim!r}, {self.conv_kernel!r}, {self.conv_stride!r}"
            )
        if self.spectrogram and len(self.conv_dim) < 2:
            raise ConfigError(
                "BackboneConfig.spectrogram needs one convolution or more after the spectrum, "
                f"got conv_dim={self.conv_dim!r}"
            )
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            parts = getattr(self, name)
            if parts < 1 or self.hidden_size % parts:
                raise ConfigError(
                    f"BackboneConfig.hidden_size={self.hidden_size!r} is no multiple of "
                    f"{name}={parts!r}"
                )
        if self.num_hidden_layers < 1:
            raise ConfigError("BackboneConfig.num_hidden_layers must be at least 1")
        if self.feat_extract_norm not in ("layer", "group"):
            raise ConfigError(
                "BackboneConfig.feat_extract_norm must be 'layer' or 'group', got "
                f"{self.feat_extract_norm!r}"
            )

    @property
    def hop(self) -> int:
        """Samples between frames, 320."""
        return math.prod(self.conv_stride)

    @property
    def reach(self) -> int:
        """Samples that one frame is made of, 400 in XLS-R; frame i covers ``[hop * i, hop * i +
        reach)``."""
        return self._reach(len(self.conv_dim))

    def front_frames(self, layer: int) -> tuple[int, int]:
        """Hop and reach of the frames of a convolution of the `SpectralFront`, counted from 0."""
        used = layer + 2  # the spectrum, and the convolutions up to this one
        return math.prod(self.conv_stride[:used]), self._reach(used)

    def _reach(self, used: int) -> int:
        samples = 1
        for kernel, stride in zip(
            self.conv_kernel[:used][::-1], self.conv_stride[:used][::-1], strict=True
        ):
            samples = (samples - 1) * stride + kernel
        return samples

    def n_frames(self, n_samples: int) -> int:
        """Frames of ``n_samples``; at least one, since shorter waves are padded to `reach`."""
        return max(n_samples - self.reach, 0) // self.hop + 1


WAVLM_LARGE = BackboneConfig(family="wavlm", conv_bias=False)
"WavLM Large (Chen et al. 2022), the encoder of mix-frame post-training's paper."


class SSLDetector(Protocol):
    """What detectors on an encoder share: `Wav2Vec2AASIST` and `AttMECAPA`."""

    config: Any
    "With ``backbone``, ``normalise`` and ``n_samples``."
    backbone: Any
    "The encoder, a model of transformers."


def build_backbone(config: BackboneConfig) -> Any:
    """Encoder of transformers with random weights, without dropped layers and masked frames."""
    import transformers

    values = {f.name: getattr(config, f.name) for f in fields(BackboneConfig) if f.name != "family"}
    dropout, spectrogram = values.pop("dropout"), values.pop("spectrogram")
    front = None
    if spectrogram:
        front = SpectralFront(config.conv_dim, config.conv_kernel, config.conv_stride)
        # one small convolution to be replaced
        values |= {"conv_dim": (front.width,), "conv_kernel": (1,), "conv_stride": (1,)}
    kind, kind_of_config = {
        "wav2vec2": (transformers.Wav2Vec2Model, transformers.Wav2Vec2Config),
        "wavlm": (transformers.WavLMModel, transformers.WavLMConfig),
        "hubert": (transformers.HubertModel, transformers.HubertConfig),
    }[config.family]
    model = kind(
        kind_of_config(
            **values,
            hidden_dropout=dropout,
            attention_dropout=dropout,
            activation_dropout=dropout,
            feat_proj_dropout=dropout,
            layerdrop=0.0,
            # no masking of frames, hence no embedding for masked ones
            mask_time_prob=0.0,
            mask_feature_prob=0.0,
        )
    )
    if front is not None:
        model.feature_extractor.conv_layers = nn.ModuleList([front])
    if config.family == "wavlm":
        call_projections(model)
    return model


def hidden_states(
    backbone: Any, wave: Float[Tensor, "b n"], config: BackboneConfig, *, normalise: bool
) -> Iterator[Float[Tensor, "b t d"]]:
    """Output of each transformer layer in turn, as transformers computes it."""
    hidden = (unit_variance(wave) if normalise else wave)[:, None]
    for layer in backbone.feature_extractor.conv_layers:
        hidden = layer(hidden)
    projected = backbone.feature_projection(hidden.transpose(1, 2))
    # HuBERT's gives no second value
    hidden = projected[0] if isinstance(projected, tuple) else projected
    transformer = backbone.encoder
    hidden = hidden + transformer.pos_conv_embed(hidden)
    if not config.do_stable_layer_norm:
        hidden = transformer.layer_norm(hidden)
    hidden = transformer.dropout(hidden)
    bias = None
    for layer in transformer.layers:
        if config.family == "wavlm":
            # the first layer makes the bias of relative positions for all of them
            hidden, bias = layer(hidden, position_bias=bias)
        else:
            hidden = layer(hidden)
        yield hidden


def unit_variance(wave: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Waveforms at zero mean and unit variance, as transformers' Wav2Vec2FeatureExtractor does."""
    mean, variance = wave.mean(-1, keepdim=True), wave.var(-1, correction=0, keepdim=True)
    return (wave - mean) / (variance + 1e-7).sqrt()


def read_backbone(source: str | Path, *, revision: str | None = None) -> tuple[BackboneConfig, Any]:
    """Configuration and encoder of a folder or Hub id of Hugging Face transformers.

    Raises `CheckpointError` where it cannot be loaded with all its weights, and `ConfigError` where
    it is no plain encoder of a `Family`.
    """
    import transformers

    try:
        theirs = transformers.AutoConfig.from_pretrained(source, revision=revision)
        config = _backbone_config(theirs)
        model = build_backbone(config)
        # its annotations know neither a revision of None nor the report
        theirs_kind: Any = next(c for c in type(model).__mro__ if c.__module__.startswith("transf"))
        loaded, report = theirs_kind.from_pretrained(
            source,
            revision=revision,
            config=model.config,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise CheckpointError(
            f"{source} holds no wav2vec 2.0, WavLM or HuBERT that transformers can load ({error}); "
            "check the name and the connection, or pass a folder"
        ) from error
    other_shapes = {name for name, *_ in report["mismatched_keys"]}
    lacking = sorted(other_shapes.union(report["missing_keys"]))
    if lacking:
        raise CheckpointError(
            f"{source} lacks {len(lacking)} tensors of the backbone, first {lacking[0]!r}; "
            "pass a checkpoint of a whole encoder"
        )
    model.load_state_dict(loaded.state_dict())
    return config, model


def _backbone_config(theirs: Any) -> BackboneConfig:
    if theirs.model_type not in get_args(Family):
        raise ConfigError(
            f"the backbone has model_type={theirs.model_type!r}, expected one of "
            f"{', '.join(get_args(Family))}; take another encoder"
        )
    needed = {
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "add_adapter": False,
        "adapter_attn_dim": None,
        # of WavLM
        "num_buckets": 320,
        "max_bucket_distance": 800,
        # of HuBERT
        "feat_proj_layer_norm": True,
        "conv_pos_batch_norm": False,
    }
    for name, value in needed.items():
        came = getattr(theirs, name, value)
        if came != value:
            raise ConfigError(
                f"the backbone has {name}={came!r}, expected {value!r}; only plain encoders are "
                "supported"
            )
    ours = ("dropout", "spectrogram", "family")
    names = [f.name for f in fields(BackboneConfig) if f.name not in ours]
    values: dict[str, Any] = {}
    for name in names:
        value = getattr(theirs, name)
        values[name] = tuple(value) if isinstance(value, list) else value
    return BackboneConfig(family=theirs.model_type, **values)

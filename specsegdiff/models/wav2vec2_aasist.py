"""AASIST on wav2vec 2.0 features: the detector whose hidden states ADDSegDiff reads.

Written anew after TakHemlata/SSL_Anti-spoofing at 4acaa61 (MIT licence) and its paper, Tak et al.
2022, arXiv 2202.12233, with the backbone of Hugging Face transformers in place of fairseq; it
loads the checkpoints of the former and the backbones of the latter.
"""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from specsegdiff import hub
from specsegdiff.errors import CheckpointError, ConfigError, ShapeError
from specsegdiff.models.aasist import RENAMES, UNUSED, check_encoder, encoder, load_published
from specsegdiff.models.detector import LABELS, Long, over_windows
from specsegdiff.models.encoder import BackboneConfig as BackboneConfig
from specsegdiff.models.encoder import build_backbone, hidden_states, read_backbone, unit_variance
from specsegdiff.models.graph import GraphBackend, GraphConfig
from specsegdiff.shapes import Wave, check_wave


@dataclass(frozen=True)
class Wav2Vec2AASISTConfig:
    """Everything that shapes the detector; the defaults are SSL_Anti-spoofing's, preset
    ``paper``."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    "The encoder: wav2vec 2.0, or another family of its layout."
    normalise: bool = False
    """Brings each window to zero mean and unit variance before the backbone. XLS-R was pre-trained
    so, but SSL_Anti-spoofing fine-tunes and runs it on raw samples, hence no by default."""
    n_samples: int = 64_600
    "Window in samples, about 4 s."
    long: Long = "windows"
    """What happens to a longer recording: the mean over windows that cover it, or only its first
    window, as in the published evaluation."""
    rows: int = 128
    "Features that the hidden states are projected to; they are the rows of the encoder's map."
    channels: tuple[int, ...] = (32, 32, 64, 64, 64, 64)
    "Width of each residual block."
    graph: GraphConfig = field(default_factory=lambda: GraphConfig(pool_ratios=(0.5, 0.5, 0.5)))
    "The graph part."
    temperature: float = 1.0
    "Divides the logits in `p_spoof`; fitted on validation data, the forward pass ignores it."

    def __post_init__(self) -> None:
        check_encoder(self, rows=self.rows // 3)
        shortest = self.backbone.reach + 2 * self.backbone.hop
        if self.n_samples < shortest:
            raise ConfigError(
                f"Wav2Vec2AASISTConfig.n_samples={self.n_samples!r} gives less than the three "
                f"frames that pooling needs; use at least {shortest}"
            )


PRESETS: dict[str, Wav2Vec2AASISTConfig] = {
    "paper": Wav2Vec2AASISTConfig(),
    # Departures from `paper` for two CPU cores and an hour of speech, where nothing is pre-trained:
    # a spectrogram in place of the convolutions on samples, a transformer and a back end a fraction
    # of their size, windows of 2 s.
    "small": Wav2Vec2AASISTConfig(
        backbone=BackboneConfig(
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=576,
            conv_dim=(256, 24, 24, 32, 32),
            conv_kernel=(512, 3, 3, 3, 3),
            conv_stride=(160, 1, 2, 1, 1),
            spectrogram=True,
            num_conv_pos_embeddings=32,
        ),
        normalise=True,
        n_samples=32_000,
        channels=(16, 16, 32, 32, 32, 32),
        graph=GraphConfig(dims=(32, 32), pool_ratios=(0.5, 0.5, 0.5)),
    ),
    # For tests and dry runs: the same layers at a size that runs in milliseconds.
    "tiny": Wav2Vec2AASISTConfig(
        backbone=BackboneConfig(
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=48,
            conv_dim=(16,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        ),
        n_samples=8_000,
        rows=12,
        channels=(4, 4, 8),
        graph=GraphConfig(dims=(8, 8)),
    ),
}


class Wav2Vec2AASIST(hub.Stored):
    """Detector on wav2vec 2.0 features: logits ``(b, 2)`` of ``("spoof", "bonafide")``; WavLM and
    HuBERT are encoders of the same layout.

    Lengths are handled as in `specsegdiff.models.aasist.AASIST`: shorter recordings are repeated to
    the window of 64,600 samples, longer ones covered with windows whose logits are averaged. The
    network sees the frames of one window only, and in evaluation mode no item depends on another.

    >>> model = Wav2Vec2AASIST.from_preset("tiny").eval()
    >>> wave = torch.randn(2, 10_000)
    >>> tuple(model(wave).shape), [tuple(h.shape) for h in model.features(wave, (0, 3))]
    ((2, 2), [(2, 31, 32), (2, 31, 32)])
    """

    labels: tuple[str, ...] = LABELS
    "Names of the logits."
    name = "Wav2Vec2-AASIST"
    "What a verdict calls the model; `from_pretrained` sets the folder's or hub id's name."
    config_kind = Wav2Vec2AASISTConfig

    def __init__(self, config: Wav2Vec2AASISTConfig | None = None) -> None:
        super().__init__()
        self.config = config or Wav2Vec2AASISTConfig()
        width = self.config.channels[-1]
        self.backbone = build_backbone(self.config.backbone)
        self.project = nn.Linear(self.config.backbone.hidden_size, self.config.rows)
        self.pool = nn.MaxPool2d(3)
        self.norm = nn.BatchNorm2d(1)
        self.selu = nn.SELU()
        self.encoder = encoder(self.config.channels, pool=1)
        self.norm_encoded = nn.BatchNorm2d(width)
        self.selu_encoded = nn.SELU()
        self.attention = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1),
            nn.SELU(),
            nn.BatchNorm2d(2 * width),
            nn.Conv2d(2 * width, width, 1),
        )
        self.softmax_time = nn.Softmax(dim=-1)
        self.softmax_rows = nn.Softmax(dim=-2)
        self.graph = GraphBackend(
            self.config.graph, channels=width, spectral_nodes=self.config.rows // 3
        )

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> Self:
        """Build an untrained model from a preset, with fields of `Wav2Vec2AASISTConfig` changed by
        name; nothing is downloaded."""
        return cls(_preset(name, changes))

    @classmethod
    def from_backbone(
        cls, source: str | Path, *, revision: str | None = None, normalise: bool, **changes: Any
    ) -> Self:
        """Build an untrained back end on a pre-trained encoder of Hugging Face transformers, a
        folder or a Hub id such as ``facebook/wav2vec2-xls-r-300m`` or ``microsoft/wavlm-large``.

        ``normalise`` is ``do_normalize`` of its ``preprocessor_config.json``, true for XLS-R: say
        False only to fine-tune it as SSL_Anti-spoofing does. ``changes`` are other fields of the
        preset ``paper``. Errors are those of `read_backbone`.
        """
        backbone, encoder = read_backbone(source, revision=revision)
        values = {f.name: getattr(PRESETS["paper"], f.name) for f in fields(Wav2Vec2AASISTConfig)}
        values |= {"backbone": backbone, "normalise": normalise, **changes}
        model = cls(Wav2Vec2AASISTConfig(**values))
        model.backbone = encoder
        return model

    @classmethod
    def from_published(cls, path: str | Path, *, preset: str = "paper", **changes: Any) -> Self:
        """Load a checkpoint of SSL_Anti-spoofing, such as ``LA_model.pth``, in evaluation mode.

        It is read without running code from it (``weights_only``). Tensors under fairseq's names go
        to the Hugging Face backbone; those that serve pre-training alone are left out. Raises
        `CheckpointError` where the file is missing or damaged, or holds other tensors.
        """
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"cannot read {path} as tensors ({error}); fetch it again from its publisher"
            ) from error
        if not isinstance(tensors, dict) or not all(
            isinstance(value, Tensor) for value in tensors.values()
        ):
            raise CheckpointError(f"{path} is no state dict; pass the .pth of SSL_Anti-spoofing")
        model = cls(_preset(preset, changes))
        load_published(
            model,
            # the DF recipe saves the model inside a DataParallel
            {name.removeprefix("module."): value for name, value in tensors.items()},
            renames=FAIRSEQ + HEAD + RENAMES,
            unused=rf"{UNUSED}|{PRETRAINING}",
            where=str(path),
        )
        return model.eval()

    def forward(self, wave: Wave) -> Float[Tensor, "b 2"]:
        """Logits of waveforms ``(b, n)``, float32 mono at 16 kHz; raises `ShapeError` on others."""
        return over_windows(
            self._classify, wave, length=self.config.n_samples, long=self.config.long
        )

    def features(self, wave: Wave, layers: Sequence[int]) -> list[Float[Tensor, "b t d"]]:
        """Hidden states ``(b, t, d)`` after each of ``layers``, counted from 0, in their order.

        Layer i is the output of the i-th transformer layer as the next one reads it: fairseq's
        ``layer_results[i]``, before the norm that follows the last layer, and ``hidden_states[i +
        1]`` of Hugging Face, whose entry 0 is the input of the first layer.

        The whole wave passes at once, without repetition or windows: frame i covers the samples
        ``[hop * i, hop * i + reach)`` of the `BackboneConfig` (320 and 400 in XLS-R), and t is its
        ``n_frames``. Waves below ``reach`` samples are padded with zeros to one frame. Later layers
        than the last of ``layers`` are not run.
        Raises `ConfigError` on layers that the backbone does not have.
        """
        wave = self._whole(wave)
        count = self.config.backbone.num_hidden_layers
        if any(not 0 <= layer < count for layer in layers):
            raise ConfigError(
                f"the backbone has layers 0 to {count - 1}, got {tuple(layers)}; "
                "count from the first transformer layer"
            )
        kept = dict(zip(range(max(layers, default=-1) + 1), self.states(wave), strict=False))
        return [kept[layer] for layer in layers]

    def front_map(self, wave: Wave, layer: int) -> Float[Tensor, "b c f t"]:
        """Map of a convolution of the `SpectralFront`, counted from 0, where the backbone has one.

        As in `features` the whole wave passes at once; `BackboneConfig.front_frames` gives hop and
        reach of its frames. Raises `ConfigError` where the backbone lacks that convolution.
        """
        wave, backbone = self._whole(wave), self.config.backbone
        count = len(backbone.conv_dim) - 1 if backbone.spectrogram else 0
        if not 0 <= layer < count:
            raise ConfigError(
                f"the backbone has {count} convolutions over time and frequency, got layer "
                f"{layer}; count from 0, and take a detector with spectrogram=True"
            )
        front = self.backbone.feature_extractor.conv_layers[0]
        maps = front.maps((unit_variance(wave) if self.config.normalise else wave)[:, None])
        return next(islice(maps, layer, None))

    def _whole(self, wave: Wave) -> Float[Tensor, "b n"]:
        """Waveforms of at least one frame."""
        check_wave(wave)
        if wave.ndim != 2:
            raise ShapeError(f"expected waveforms (b, n), got {tuple(wave.shape)}; use wave[None]")
        missing = self.config.backbone.reach - wave.shape[-1]
        return nn.functional.pad(wave, (0, max(missing, 0)))

    def states(self, wave: Float[Tensor, "b n"]) -> Iterator[Float[Tensor, "b t d"]]:
        """Output of each transformer layer in turn, as `transformers.Wav2Vec2Model` computes it."""
        return hidden_states(
            self.backbone, wave, self.config.backbone, normalise=self.config.normalise
        )

    def _classify(self, wave: Float[Tensor, "b n"]) -> Float[Tensor, "b 2"]:
        *_, last = self.states(wave)
        return self.read_out(last)

    def read_out(self, hidden: Float[Tensor, "b t d"]) -> Float[Tensor, "b 2"]:
        """Logits of the last layer's states: the AASIST back end."""
        if self.config.backbone.do_stable_layer_norm:
            hidden = self.backbone.encoder.layer_norm(hidden)
        x = self.project(hidden).transpose(1, 2)[:, None]
        x = self.encoder(self.selu(self.norm(self.pool(x))))
        x = self.selu_encoded(self.norm_encoded(x))
        scores = self.attention(x)
        spectral = (x * self.softmax_time(scores)).sum(dim=-1)
        temporal = (x * self.softmax_rows(scores)).sum(dim=-2)
        return self.graph(spectral.transpose(1, 2), temporal.transpose(1, 2))


# ------------------------------------------------------------------ names of the published tensors

FAIRSEQ = (
    (r"^ssl_model\.model\.", "backbone."),
    (r"^(backbone\.feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    # layer norm sits between two transpositions, group norm does not
    (r"^(backbone\.feature_extractor\.conv_layers\.\d+)\.2\.1\.", r"\1.layer_norm."),
    (r"^(backbone\.feature_extractor\.conv_layers\.\d+)\.2\.", r"\1.layer_norm."),
    (r"^backbone\.layer_norm\.", "backbone.feature_projection.layer_norm."),
    (r"^backbone\.post_extract_proj\.", "backbone.feature_projection.projection."),
    (r"^backbone\.encoder\.pos_conv\.0\.", "backbone.encoder.pos_conv_embed.conv."),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    (r"^(backbone\.encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"^(backbone\.encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
    (r"^(backbone\.encoder\.layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
    (r"^(backbone\.encoder\.layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
)
"fairseq's names of a wav2vec 2.0 inside SSL_Anti-spoofing to those of transformers inside ours."

PRETRAINING = r"^ssl_model\.model\.(mask_emb$|quantizer\.|project_q\.|final_proj\.)"
"Tensors of fairseq's wav2vec 2.0 that only its pre-training uses."

HEAD = ((r"^LL\.", "project."), (r"^first_bn1\.", "norm_encoded."))
"What stands between backbone and graph part beside the tensors that AASIST has too."


def _preset(name: str, changes: dict[str, Any]) -> Wav2Vec2AASISTConfig:
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; choose one of {sorted(PRESETS)}")
    return replace(PRESETS[name], **changes)

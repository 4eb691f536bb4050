"""AASIST on raw waveforms: sinc filters, a residual encoder, and graph attention on its two axes.

Written anew after clovaai/aasist at a04c9863 (NAVER Corp., MIT licence) and its paper, Jung et al.
2022, arXiv 2110.01200; it loads the weights published there and gives their logits.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from specsegdiff import hub
from specsegdiff.errors import CheckpointError, ConfigError
from specsegdiff.models.detector import LABELS, Long, over_windows
from specsegdiff.models.graph import GraphBackend, GraphConfig
from specsegdiff.shapes import Wave

SAMPLE_RATE = 16_000
"Hz that the sinc filters are laid out for."


@dataclass(frozen=True)
class AASISTConfig:
    """Everything that shapes an AASIST; the defaults are the published AASIST, whose names of the
    fields are in brackets."""

    n_samples: int = 64_600
    "Window in samples, about 4 s (``nb_samp``)."
    long: Long = "windows"
    """What happens to a longer recording: the mean over windows that cover it, or only its first
    window, as in the published evaluation."""
    sinc_filters: int = 70
    "Band-pass filters, of equal width on the mel scale (``filts[0]``)."
    sinc_taps: int = 129
    "Taps of each, odd; the published 128 becomes 129 in its code (``first_conv``)."
    channels: tuple[int, ...] = (32, 32, 64, 64, 64, 64)
    "Width of each residual block; the published code runs the last one three times (``filts``)."
    graph: GraphConfig = field(default_factory=GraphConfig)
    "The graph part (``gat_dims``, ``pool_ratios``, ``temperatures``)."
    temperature: float = 1.0
    "Divides the logits in `p_spoof`; fitted on validation data, the forward pass ignores it."

    def __post_init__(self) -> None:
        check_encoder(self, rows=self.sinc_filters // 3)
        if self.sinc_taps < 3 or self.sinc_taps % 2 == 0:
            raise ConfigError(
                f"AASISTConfig.sinc_taps must be odd and at least 3, got {self.sinc_taps!r}"
            )
        shortest = self.sinc_taps - 1 + 3 ** (1 + len(self.channels))
        if self.n_samples < shortest:
            raise ConfigError(
                f"AASISTConfig.n_samples={self.n_samples!r} leaves no time step after "
                f"{1 + len(self.channels)} poolings; use at least {shortest}"
            )


def check_encoder(config: Any, *, rows: int) -> None:
    """Check the fields that both detectors share; raises `ConfigError`."""
    name = type(config).__name__
    if config.long not in ("windows", "first"):
        raise ConfigError(f"{name}.long must be 'windows' or 'first', got {config.long!r}")
    if not config.channels or any(width < 1 for width in config.channels):
        raise ConfigError(f"{name}.channels must be positive widths, got {config.channels!r}")
    if rows < 1:
        raise ConfigError(f"{name} leaves no spectral node; the encoder needs three or more rows")
    if not 0 < config.temperature < float("inf"):
        raise ConfigError(f"{name}.temperature must be positive, got {config.temperature!r}")


PRESETS: dict[str, AASISTConfig] = {
    "AASIST": AASISTConfig(),
    "AASIST-L": AASISTConfig(
        channels=(32, 32, 24, 24, 24, 24),
        graph=GraphConfig(dims=(24, 32), pool_ratios=(0.4, 0.5, 0.7)),
    ),
    # For tests and dry runs: a quarter of a second, three blocks.
    "tiny": AASISTConfig(
        n_samples=4_000,
        sinc_filters=15,
        sinc_taps=33,
        channels=(4, 4, 8),
        graph=GraphConfig(dims=(8, 8)),
    ),
}


def sinc_filters(n_filters: int, n_taps: int) -> Float[Tensor, "c k"]:
    """Hamming-windowed band-passes between 0 and 8 kHz, whose edges are equidistant in mel.

    Bands touch, so all filters together are the windowed ideal low-pass at the Nyquist frequency:
    a unit impulse.

    >>> bank = sinc_filters(70, 129)
    >>> tuple(bank.shape), round(float(bank.sum(0)[64]), 4)
    ((70, 129), 1.0)
    """
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, n_filters + 1) / 2595) - 1)
    width = 2 * edges[:, None] / SAMPLE_RATE
    low_pass = width * np.sinc(width * (np.arange(n_taps) - n_taps // 2))
    return torch.from_numpy(np.hamming(n_taps) * np.diff(low_pass, axis=0)).float()


class ResidualBlock(nn.Module):
    """Two 2 x 3 convolutions with batch norm and SELU between them, around a skip; rows stay, time
    is pooled by ``pool``.

    The published code also computes a batch norm and SELU before the first convolution, and then
    feeds that convolution its unchanged input. What was trained so is built so: they are left out.
    """

    def __init__(self, in_channels: int, out_channels: int, *, pool: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, out_channels, (2, 3), padding=(1, 1))
        self.norm = nn.BatchNorm2d(out_channels)
        self.selu = nn.SELU()
        # no padding along rows: it takes back the row that the first convolution adds
        self.conv_out = nn.Conv2d(out_channels, out_channels, (2, 3), padding=(0, 1))
        self.skip = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, (1, 3), padding=(0, 1))
        )
        self.pool = nn.MaxPool2d((1, pool)) if pool > 1 else nn.Identity()

    def forward(self, x: Float[Tensor, "b c f t"]) -> Float[Tensor, "b d f u"]:
        """Map ``(b, in, f, t)`` to ``(b, out, f, t // pool)``."""
        y = self.conv_out(self.selu(self.norm(self.conv_in(x))))
        return self.pool(y + self.skip(x))


def encoder(channels: tuple[int, ...], *, pool: int) -> nn.Sequential:
    """Residual blocks from one channel to ``channels[-1]``."""
    pairs = zip((1, *channels), channels, strict=False)
    return nn.Sequential(*(ResidualBlock(before, after, pool=pool) for before, after in pairs))


class AASIST(hub.Stored):
    """Detector on raw waveforms: logits ``(b, 2)`` of ``("spoof", "bonafide")``.

    Any length n >= 1 works. Shorter recordings are repeated up to the window of 64,600 samples, as
    published. Longer ones are covered with windows whose logits are averaged: the network then sees
    what it was trained on (its readout takes maxima over time, and its pooling keeps shares of
    nodes, so both change with the length), every sample counts, and memory grows with the length,
    not with its square. ``config.long = "first"`` is the published evaluation instead, which cuts
    to the first 64,600 samples. In evaluation mode no item of a batch depends on another.

    >>> model = AASIST.from_preset("tiny").eval()
    >>> tuple(model(torch.randn(3, 5_000)).shape), model.labels
    ((3, 2), ('spoof', 'bonafide'))
    """

    config_kind = AASISTConfig
    labels: tuple[str, ...] = LABELS
    "Names of the logits."
    sinc: Tensor
    "Filters ``(c, 1, k)``; fixed, so not stored."

    def __init__(self, config: AASISTConfig | None = None) -> None:
        super().__init__()
        self.config = config or AASISTConfig()
        bank = sinc_filters(self.config.sinc_filters, self.config.sinc_taps)
        self.register_buffer("sinc", bank[:, None], persistent=False)
        self.pool = nn.MaxPool2d(3)
        self.norm = nn.BatchNorm2d(1)
        self.selu = nn.SELU()
        self.encoder = encoder(self.config.channels, pool=3)
        self.graph = GraphBackend(
            self.config.graph,
            channels=self.config.channels[-1],
            spectral_nodes=self.config.sinc_filters // 3,
        )

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> Self:
        """Build an untrained model from a preset, with fields of `AASISTConfig` changed by name."""
        if name not in PRESETS:
            raise ConfigError(f"no preset {name!r}; choose one of {sorted(PRESETS)}")
        return cls(replace(PRESETS[name], **changes))

    @classmethod
    def from_published(cls, source: str | Path, **changes: Any) -> Self:
        """Load ``<source>.json`` and ``<source>.safetensors`` with the published names, such as
        ``weights/AASIST``, in evaluation mode; ``changes`` override fields of the configuration.

        Raises `CheckpointError` where a file is missing or damaged or its tensors are not exactly
        those of the model, and `ConfigError` on another configuration.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        source = Path(source)
        paths = [source.with_name(source.name + end) for end in (".json", ".safetensors")]
        try:
            values = json.loads(paths[0].read_text(encoding="utf-8"))
            tensors = load(paths[1].read_bytes())
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot read {paths[0].name} and {paths[1].name} in {source.parent} ({error}); "
                "pass the path of both without their endings"
            ) from error
        model = cls(replace(published_config(values, where=str(paths[0])), **changes))
        load_published(model, tensors, renames=RENAMES, unused=UNUSED, where=str(paths[1]))
        return model.eval()

    def forward(self, wave: Wave) -> Float[Tensor, "b 2"]:
        """Logits of waveforms ``(b, n)``, float32 mono at 16 kHz; raises `ShapeError` on others."""
        return over_windows(
            self._classify, wave, length=self.config.n_samples, long=self.config.long
        )

    def _classify(self, wave: Float[Tensor, "b n"]) -> Float[Tensor, "b 2"]:
        bands = nn.functional.conv1d(wave[:, None], self.sinc)
        x = self.selu(self.norm(self.pool(bands.abs()[:, None])))
        x = self.encoder(x).abs()
        spectral, temporal = x.max(dim=3).values, x.max(dim=2).values
        return self.graph(spectral.transpose(1, 2), temporal.transpose(1, 2))


# ------------------------------------------------------------------ published checkpoints

RENAMES = (
    # the whole and its encoder
    (r"^first_bn\.", "norm."),
    (r"^encoder\.(\d+)\.0\.", r"encoder.\1."),
    (r"^(encoder\.\d+)\.bn2\.", r"\1.norm."),
    (r"^(encoder\.\d+)\.conv1\.", r"\1.conv_in."),
    (r"^(encoder\.\d+)\.conv2\.", r"\1.conv_out."),
    (r"^(encoder\.\d+)\.conv_downsample\.", r"\1.skip."),
    # the graph part
    (r"^pos_S$", "graph.position"),
    (r"^(GAT_layer|pool)_S\.", r"graph.\1_spectral."),
    (r"^(GAT_layer|pool)_T\.", r"graph.\1_temporal."),
    (r"^graph\.GAT_layer_", "graph.attend_"),
    (r"^out_layer\.", "graph.out."),
    (r"^master1$", "graph.branches.0.master"),
    (r"^master2$", "graph.branches.1.master"),
    (r"^HtrgGAT_layer_ST1", "graph.branches.0."),
    (r"^HtrgGAT_layer_ST2", "graph.branches.1."),
    (r"^(graph\.branches\.\d)\.1\.", r"\1.first."),
    (r"^(graph\.branches\.\d)\.2\.", r"\1.second."),
    (r"^pool_h([ST])1\.", r"graph.branches.0.pool_h\1."),
    (r"^pool_h([ST])2\.", r"graph.branches.1.pool_h\1."),
    (r"\.pool_hS\.", ".pool_spectral."),
    (r"\.pool_hT\.", ".pool_temporal."),
    # inside its layers; in the joint ones, type 1 is temporal and type 2 spectral
    (r"\.proj\.", ".score."),
    (r"\.proj_type1\.", ".project_temporal."),
    (r"\.proj_type2\.", ".project_spectral."),
    (r"\.att_proj\.", ".hidden."),
    (r"\.att_projM\.", ".hidden_master."),
    (r"\.att_weight$", ".score.weight"),
    (r"\.att_weight11$", ".score_temporal.weight"),
    (r"\.att_weight22$", ".score_spectral.weight"),
    (r"\.att_weight12$", ".score_across.weight"),
    (r"\.att_weightM$", ".score_master.weight"),
    (r"\.proj_with_att\.", ".mix."),
    (r"\.proj_without_att\.", ".own."),
    (r"\.proj_with_attM\.", ".mix_master."),
    (r"\.proj_without_attM\.", ".own_master."),
    (r"^(graph\..*)\.bn\.", r"\1.norm."),
)
"Published names of tensors to ours, applied one after the other."

UNUSED = r"^encoder\.\d+\.0\.bn1\."
"Published tensors that no output of the published code depends on (`ResidualBlock`)."


def published_config(values: Any, *, where: str) -> AASISTConfig:
    """Translate the ``model_config`` of clovaai/aasist; raises `ConfigError` on any other."""
    try:
        first, *pairs = values["filts"]
        if [before for before, _ in pairs] != [1] + [after for _, after in pairs[:-1]]:
            raise ConfigError(f"{where}: 'filts' is not a chain of blocks: {values['filts']}")
        # the published code has six blocks, of which the last three share one entry
        outs = [after for _, after in pairs] + 2 * [pairs[-1][1]]
        return AASISTConfig(
            n_samples=values["nb_samp"],
            sinc_filters=first,
            sinc_taps=values["first_conv"] + (values["first_conv"] + 1) % 2,
            channels=tuple(outs),
            graph=GraphConfig(
                dims=tuple(values["gat_dims"]),
                pool_ratios=tuple(values["pool_ratios"][:3]),
                temperatures=tuple(values["temperatures"][:3]),
            ),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{where}: no model_config of AASIST ({type(error).__name__}: {error}); "
            "pass the JSON that was published beside the weights"
        ) from error


def load_published(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    renames: tuple[tuple[str, str], ...],
    unused: str,
    where: str,
) -> None:
    """Load tensors under their published names, all of them and no other; those whose name matches
    ``unused`` may be there.

    Raises `CheckpointError` that tells which are missing, unknown, or of another shape.
    """
    renamed = {}
    for name, value in tensors.items():
        if re.search(unused, name):
            continue
        # matrices (d, 1) that multiply from the right are linear layers here
        flip = ".att_weight" in name and value.ndim == 2
        for pattern, new in renames:
            name = re.sub(pattern, new, name)
        renamed[name] = value.T if flip else value
    expected = model.state_dict()
    problems = {
        "missing": sorted(expected.keys() - renamed.keys()),
        "unknown": sorted(renamed.keys() - expected.keys()),
        "of another shape": sorted(
            name
            for name in expected.keys() & renamed.keys()
            if expected[name].shape != renamed[name].shape
        ),
    }
    if any(problems.values()):
        told = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}"
            for kind, names in problems.items()
            if names
        )
        raise CheckpointError(
            f"{where} does not hold the tensors of this {type(model).__name__} ({told}); "
            "check that weights and configuration belong together"
        )
    model.load_state_dict(renamed)

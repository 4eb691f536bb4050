"""SegDiff on spectrograms: a condition encoder, a denoiser, and the diffusion they are trained for.

Sources: SegDiff (arXiv 2112.00390) for the networks and their junction; arXiv 2506.03425 for
SpecSegDiff, where the condition is the log-magnitude spectrogram and the target is the mask of what
synthesis changed.
"""

import abc
import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TypeAlias, cast, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from specsegdiff import hub
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.frontend import Stft, StftConfig, log_magnitude
from specsegdiff.masks import smooth
from specsegdiff.models.refine import Refine
from specsegdiff.models.rrdb import RRDBNet
from specsegdiff.models.sizes import LARGEST, check_sizes
from specsegdiff.models.unet import UNet, UNetConfig
from specsegdiff.sampling import sample
from specsegdiff.shapes import Map, Wave, check_wave
from specsegdiff.storage import MapStore, spectrum_window

Sampler: TypeAlias = Literal["ddpm", "ddim", "dpmsolver++", "unipc"]
"""Ancestral sampling (Ho et al. 2020), DDIM (Song et al. 2021), and two solvers of second order of
the same equation: DPM-Solver++ (arXiv 2211.01095) and UniPC (arXiv 2302.04867)."""

SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)


@dataclass(frozen=True)
class SegDiffConfig:
    """Everything that shapes a SegDiff model; the defaults are the published configuration, preset
    ``paper``."""

    stft: StftConfig = field(default_factory=StftConfig)
    "Spectrogram that conditions the model and whose bins the mask marks."
    rms: float = 0.05
    "Level that every recording is brought to before its spectrogram; a level is no artifact."
    log_mean: float = -4.0
    "Subtracted from the natural log-magnitude."
    log_scale: float = 3.0
    "Divides the centred log-magnitude."
    rrdb_blocks: int = 12
    "RRDB blocks of the condition encoder."
    rrdb_features: int = 64
    "Width of the RRDB trunk."
    rrdb_growth: int = 32
    "Channels that each dense convolution adds."
    row_embedding: bool = False
    """Adds a learned vector to each frequency row of the condition, and a learned logit to each
    frequency bin of the output; convolutions alone know frequency only from the border."""
    smoothed: bool = False
    """Feeds the magnitude smoothed as the mask's recipe smooths it beside the raw one: the mask is
    made of smoothed magnitudes, and convolutions on a raw log-magnitude cannot undo its log."""
    patch: tuple[int, int] = (1, 1)
    "Bins and frames folded into channels (space to depth) before both networks."
    refine: tuple[int, ...] = ()
    """Widths of the networks that refine the denoiser's output on patches of half the size, then of
    a quarter and so on, where they see the condition again (`Refine`)."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    "The denoiser."
    prediction: Literal["epsilon", "sample"] = "epsilon"
    """What the denoiser predicts: the noise, or the clean mask as logits (Pix2Seq-D, arXiv
    2210.06366)."""
    mask_scale: float = 1.0
    "A mask bin is mapped to plus or minus this value; smaller values hide the mask at more steps."
    scaled_input: bool = False
    """Scales x_t by the signal's share of it, sqrt(alpha_bar), before the denoiser sees it: at the
    last step x_t is noise alone, and a network that sees it must first learn to ignore it."""
    deterministic: bool = False
    """A control without diffusion: the same network, trained and run at the last step on zeros
    instead of noise."""
    train_steps: int = 100
    "Length of the diffusion that the model is trained for."
    schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    "Noise schedule, by its name in diffusers; 'linear' is SegDiff's, scaled to `train_steps`."
    sampler: Sampler = "ddpm"
    "Default scheduler at inference."
    steps: int = 100
    "Default number of network passes a draw."
    draws: int = 32
    "Default number of draws that the heatmap averages."

    def __post_init__(self) -> None:
        check_sizes(self, "rrdb_blocks", "rrdb_features", "rrdb_growth")
        check_sizes(self, "train_steps", "steps", "draws")
        for name in ("rms", "log_scale", "mask_scale"):
            value = getattr(self, name)
            if not 1e-6 <= value <= 1e6:
                raise ConfigError(f"SegDiffConfig.{name} must lie in [1e-6, 1e6], got {value!r}")
        if not abs(self.log_mean) <= 1e3:
            raise ConfigError(
                f"SegDiffConfig.log_mean must lie in [-1000, 1000], got {self.log_mean!r}"
            )
        patch = self.patch if isinstance(self.patch, tuple | list) else ()
        if len(patch) != 2 or any(type(p) is not int or not 1 <= p <= 64 for p in patch):
            raise ConfigError(
                f"SegDiffConfig.patch must be two integers from 1 to 64, got {self.patch!r}"
            )
        if not isinstance(self.refine, tuple) or any(
            type(width) is not int or not 1 <= width <= LARGEST for width in self.refine
        ):
            raise ConfigError(
                f"SegDiffConfig.refine must be a tuple of integers from 1 to {LARGEST}, got "
                f"{self.refine!r}"
            )
        if any(p % 2 ** len(self.refine) for p in self.patch):
            raise ConfigError(
                f"each width of refine={self.refine!r} halves the patches, but "
                f"patch={self.patch!r} cannot be halved {len(self.refine)} times; use fewer widths"
            )
        choices = {
            "prediction": ("epsilon", "sample"),
            "schedule": ("linear", "squaredcos_cap_v2"),
            "sampler": SAMPLERS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"SegDiffConfig.{name} must be one of {allowed}, got {getattr(self, name)!r}"
                )
        if self.schedule == "linear" and self.train_steps <= 20:
            raise ConfigError(
                "schedule 'linear' keeps the noise of 1000 steps, and variance is left for that "
                f"from 21 steps on, got train_steps={self.train_steps}; use more steps, or "
                "'squaredcos_cap_v2'"
            )
        if self.steps > self.train_steps:
            raise ConfigError(
                f"SegDiffConfig.steps={self.steps} exceeds train_steps={self.train_steps}; "
                "use at most as many"
            )


PRESETS: dict[str, SegDiffConfig] = {
    "paper": SegDiffConfig(),
    # Departures from `paper`, each for speed on two CPU cores unless said otherwise: 8 x 8 patches,
    # a smaller encoder and UNet, one residual block a level; attention and norm that never mix
    # frames, so that long recordings have no seams; a learned frequency embedding; x0 prediction at
    # input scale 0.3 on a cosine schedule, since a mask that shines through the noise teaches the
    # network to ignore the condition.
    "small": SegDiffConfig(
        rrdb_blocks=1,
        rrdb_features=32,
        rrdb_growth=16,
        row_embedding=True,
        smoothed=True,
        patch=(8, 8),
        refine=(64, 32),
        unet=UNetConfig(
            channels=64,
            multipliers=(1, 2, 2.25),
            res_blocks=1,
            attention_levels=(2,),
            attention_axis="frequency",
            norm="position",
        ),
        prediction="sample",
        mask_scale=0.3,
        scaled_input=True,
        train_steps=1000,
        schedule="squaredcos_cap_v2",
        sampler="ddim",
        steps=1,
    ),
    # For tests and dry runs: the `small` design at a size that trains in seconds.
    "tiny": SegDiffConfig(
        rrdb_blocks=1,
        rrdb_features=16,
        rrdb_growth=8,
        row_embedding=True,
        smoothed=True,
        patch=(8, 4),
        refine=(16, 8),
        unet=UNetConfig(
            channels=16,
            multipliers=(1, 2),
            res_blocks=1,
            attention_levels=(1,),
            attention_axis="frequency",
            norm="position",
            heads=2,
        ),
        prediction="sample",
        mask_scale=0.3,
        scaled_input=True,
        schedule="squaredcos_cap_v2",
        sampler="ddim",
        steps=1,
    ),
}


def alpha_bar(config: SegDiffConfig) -> Float[Tensor, " s"]:
    """Share of the signal's power in x_t at each step, as diffusers' schedulers have it."""
    steps = torch.arange(config.train_steps + 1, dtype=torch.float64) / config.train_steps
    if config.schedule == "linear":
        # 1000 / T keeps the total noise of the 1000-step schedule (improved diffusion, SegDiff)
        scale = 1000 / config.train_steps
        beta = torch.linspace(scale * 1e-4, scale * 0.02, config.train_steps, dtype=torch.float64)
    else:
        # improved diffusion, arXiv 2102.09672, Eq. 17
        level = ((steps + 0.008) / 1.008 * torch.pi / 2).cos() ** 2
        beta = (1 - level[1:] / level[:-1]).clamp_max(0.999)
    return (1 - beta).cumprod(dim=0)


def signal_share(config: SegDiffConfig) -> Float[Tensor, " s"]:
    """sqrt(alpha_bar) of each step; exactly zero where the schedule ends in noise alone, so that
    one pass serves all draws."""
    signal = alpha_bar(config).sqrt().float()
    signal[-1] = signal[-1].where(signal[-1] > 1e-3, 0)
    return signal


class SegDiff(hub.Stored, abc.ABC):
    """What `SpecSegDiff` and its siblings share: everything but where the condition comes from.

    The networks see a padded grid of patches, ``(b, c, f', t')``; `fold` and `unfold` go to and
    fro. A subclass says how a waveform becomes a condition, and a condition becomes images on that
    grid.
    """

    name: str
    "What an explanation calls the model; `from_pretrained` sets the folder's or hub id's name."
    signal: Tensor
    "sqrt(alpha_bar) of each step."
    prior: nn.Parameter | None
    "Logit of each bin of a patch by frequency row, added to the output."

    def __init__(self, config: SegDiffConfig, *, images: int) -> None:
        super().__init__()
        self.config = config
        self.stft = Stft(config.stft)
        channels = config.patch[0] * config.patch[1]
        self.encoder = RRDBNet(
            channels * images,
            config.unet.channels,
            blocks=config.rrdb_blocks,
            features=config.rrdb_features,
            growth=config.rrdb_growth,
            rows=self.grid(1)[0] if config.row_embedding else None,
        )
        self.unet = UNet(config.unet, in_channels=channels, out_channels=channels)
        self.refine = None
        if config.refine:
            self.refine = Refine(config.patch, views=images, widths=config.refine)
        if config.prediction == "sample":
            # the logit of a 5 % foreground; a network that has to learn it bends all its features
            # into one constant direction first, and takes a thousand steps to come back
            nn.init.constant_(self._output_bias(), math.log(0.05 / 0.95))
        self.prior = None
        if config.row_embedding:
            self.prior = nn.Parameter(torch.zeros(1, channels, self.grid(1)[0], 1))
        self.register_buffer("signal", signal_share(config), persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    # ------------------------------------------------------------------ the condition

    @abc.abstractmethod
    def condition(self, wave: Wave, *, gain: Tensor | None = None) -> Map:
        """Condition ``(b, c, t)`` of waveforms ``(b, n)``; ``gain`` ``(b,)`` overrides `level`."""

    @abc.abstractmethod
    def observe(self, recording: MapStore, start: int, stop: int, *, gain: float) -> Map:
        """Condition ``(1, c, t)`` of some frames of a long recording ``(1, n)``."""

    @abc.abstractmethod
    def images(self, condition: Map) -> Float[Tensor, "b c f t"]:
        """Condition as images on the patch grid, what the encoder sees."""

    def encode(self, condition: Map) -> Float[Tensor, "b c f t"]:
        """Encode a condition ``(b, c, t)`` once for all steps and draws."""
        return self.encode_images(self.images(condition))

    def encode_images(self, images: Float[Tensor, "b c f t"]) -> Float[Tensor, "b e f t"]:
        """Encode a condition's images on the patch grid."""
        encoded = self.encoder(images)
        if self.refine is None:
            return encoded
        return torch.cat([encoded, self.refine.view(images)], dim=1)

    def level(self, wave: Wave) -> Float[Tensor, "*b"]:
        """Gain that brings each waveform to the model's level; 1 for digital silence."""
        rms = wave.double().square().mean(dim=-1).sqrt()
        return torch.where(
            rms > 0, self.config.rms / rms.clamp_min(1e-12), torch.ones_like(rms)
        ).float()

    # ------------------------------------------------------------------ map to grid and back

    def grid(self, n_frames: int) -> tuple[int, int]:
        """Patch rows and columns of a map with ``n_frames`` frames."""
        return tuple(  # type: ignore[return-value]
            -(-size // step)
            for size, step in zip(
                (self.config.stft.n_freqs, n_frames), self.config.patch, strict=True
            )
        )

    @property
    def column_frames(self) -> int:
        """Frames of the coarsest grid column; windows of a recording start at multiples of it."""
        return self.config.patch[1] * self.config.unet.stride

    def fold(self, value: Map) -> Float[Tensor, "b c f t"]:
        """Fold ``(b, f, t)`` into patches; the grid's surplus repeats the last bin and frame."""
        (bins, frames), (p, q) = value.shape[-2:], self.config.patch
        rows, columns = self.grid(frames)
        padded = F.pad(
            value[:, None], (0, columns * q - frames, 0, rows * p - bins), mode="replicate"
        )
        folded = rearrange(padded, "b 1 (f p) (t q) -> b (p q) f t", p=p, q=q)
        return folded.contiguous(memory_format=torch.channels_last)

    def unfold(self, grid: Float[Tensor, "b c f t"], *, frames: int) -> Map:
        """Undo `fold`: patches to ``(b, f, frames)``."""
        p, q = self.config.patch
        value = rearrange(grid, "b (p q) f t -> b (f p) (t q)", p=p, q=q)
        return value[:, : self.config.stft.n_freqs, :frames]

    # ------------------------------------------------------------------ networks

    def denoise(self, x: Tensor, step: Tensor, encoded: Tensor) -> Float[Tensor, "b c f t"]:
        """Predict on the patch grid from ``x`` and steps ``(b,)``: noise, or the mask's logits."""
        if self.config.scaled_input:
            x = x * self.signal[step][:, None, None, None]
        width = self.config.unet.channels
        prediction = self.unet(x, step, encoded[:, :width])
        if self.refine is not None:
            prediction = self.refine(prediction, encoded[:, width:])
        return prediction if self.prior is None else prediction + self.prior

    @torch.no_grad()
    def set_prior(self, share: Float[Tensor, " f"]) -> None:
        """Start from the mean mask by frequency, so that training learns what a recording adds to
        it.

        ``share`` is the share of foreground in each bin, ``(f,)``. Only for ``sample`` predictions
        with ``row_embedding``; others raise `ConfigError`.
        """
        if self.prior is None or self.config.prediction != "sample":
            raise ConfigError("a prior needs prediction='sample' and row_embedding=True")
        logit = share.clamp(1e-3, 1 - 1e-3).logit()
        columns = logit[None, :, None].expand(1, -1, self.config.patch[1])
        self.prior.copy_(self.fold(columns) - self._output_bias()[0])

    def _output_bias(self) -> Tensor:
        return cast(Tensor, self.unet.last.bias)

    def is_blind(self, step: Tensor) -> bool:
        """Tell whether the denoiser sees nothing of x_t at a step: then all draws share its
        output."""
        blind = self.config.deterministic or (self.config.scaled_input and self.signal[step] == 0)
        return bool(blind)

    def clean(self, prediction: Tensor) -> Tensor:
        """Clean mask in [-mask_scale, mask_scale] of a ``sample`` prediction's logits."""
        return self.config.mask_scale * torch.tanh(prediction.float() / 2)

    # ------------------------------------------------------------------ diffusion

    def scheduler(self, *, sampler: str | None = None) -> Any:
        """Noise scheduler of diffusers for this model, by a name in `SAMPLERS`; trailing spacing.

        Clean masks stay within the mask's scale where the model predicts them. Raises `ConfigError`
        for another name.
        """
        config, chosen = self.config, sampler or self.config.sampler
        if chosen not in SAMPLERS:
            raise ConfigError(f"no sampler {chosen!r}; choose one of {SAMPLERS}")
        # 1000 / T keeps the total noise of the 1000-step schedule (improved diffusion, SegDiff)
        scale = 1000 / config.train_steps
        shared: dict[str, Any] = {
            "num_train_timesteps": config.train_steps,
            "beta_schedule": config.schedule,
            "beta_start": scale * 1e-4,
            "beta_end": scale * 0.02,
            "prediction_type": config.prediction,
            "timestep_spacing": "trailing",
        }
        clipped = {
            "clip_sample": config.prediction == "sample",
            "clip_sample_range": config.mask_scale,
        }
        if chosen == "ddpm":
            from diffusers import DDPMScheduler

            return DDPMScheduler(variance_type="fixed_large", **clipped, **shared)
        if chosen == "ddim":
            from diffusers import DDIMScheduler

            return DDIMScheduler(set_alpha_to_one=True, **clipped, **shared)
        # these cannot clip to a range, and need not: `clean` leaves nothing beyond it
        if chosen == "unipc":
            from diffusers import UniPCMultistepScheduler

            return UniPCMultistepScheduler(**shared)
        from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler(**shared)

    def forward(self, wave: Wave) -> Map:
        """Heatmap ``(b, f, t)`` of waveforms ``(b, n)``, with the sampler of the configuration and
        seed 0."""
        return sample(self, self.condition(wave)).mean


def normalise(magnitude: Map, config: SegDiffConfig) -> Map:
    """Log-magnitude of a linear magnitude ``(..., f, t)``, centred and scaled as configured."""
    return (log_magnitude(magnitude) - config.log_mean) / config.log_scale


class SpecSegDiff(SegDiff):
    """Diffusion segmenter conditioned on the log-magnitude spectrogram.

    >>> model = SpecSegDiff.from_preset("tiny").eval()
    >>> encoded = model.encode(model.condition(torch.randn(1, 16_000)))
    >>> encoded.shape[-2:] == model.grid(63) == (65, 16)
    True
    """

    config_kind = SegDiffConfig
    name = "SpecSegDiff"

    def __init__(self, config: SegDiffConfig | None = None) -> None:
        config = config or SegDiffConfig()
        super().__init__(config, images=1 + config.smoothed)

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> Self:
        """Build an untrained model from a preset, with fields of `SegDiffConfig` changed by
        name."""
        if name not in PRESETS:
            raise ConfigError(f"no preset {name!r}; choose one of {sorted(PRESETS)}")
        return cls(replace(PRESETS[name], **changes))

    def condition(self, wave: Wave, *, gain: Tensor | None = None) -> Map:
        """Normalised log-magnitude ``(b, f, t)`` of waveforms ``(b, n)``; ``gain`` overrides
        `level`."""
        check_wave(wave)
        gain = self.level(wave) if gain is None else gain
        return self.normalise(self.stft.magnitude(wave * gain[..., None]))

    def observe(self, recording: MapStore, start: int, stop: int, *, gain: float) -> Map:
        """Condition of some frames, equal to those of the whole recording's."""
        magnitude = spectrum_window(recording, self.stft, start, stop).abs() * gain
        return self.normalise(magnitude)[None]

    def normalise(self, magnitude: Map) -> Map:
        """Condition of a linear magnitude that is at the model's level already."""
        return normalise(magnitude, self.config)

    def images(self, condition: Map) -> Float[Tensor, "b c f t"]:
        """Raw log-magnitude, and the smoothed one where the configuration wants it."""
        if condition.ndim != 3 or condition.shape[1] != self.config.stft.n_freqs:
            raise ShapeError(
                f"expected a condition (b, {self.config.stft.n_freqs}, t), "
                f"got {tuple(condition.shape)}; make it with model.condition(wave)"
            )
        views = [self.fold(condition)]
        if self.config.smoothed:
            magnitude = (condition * self.config.log_scale + self.config.log_mean).exp()
            views.append(self.fold(self.normalise(smooth(magnitude))))
        return torch.cat(views, dim=1)

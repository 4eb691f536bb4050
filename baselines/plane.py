"""A detector on the time-frequency plane: what all attributions here share."""

import contextlib
import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from einops import rearrange, reduce
from jaxtyping import Complex, Float
from torch import Tensor, nn

from baselines.contrast import RuleError
from baselines.rows import mean_row
from specsegdiff.errors import ConfigError, DependencyError, ShapeError
from specsegdiff.frontend import RawWrapper, Stft
from specsegdiff.models.detector import spoof_column, window_starts
from specsegdiff.shapes import Map, Wave, check_wave, is_finite

Scale: TypeAlias = Literal["linear", "log"]
"What a bin's value is: its magnitude, or the logarithm of it. An attribution depends on it."

References: TypeAlias = list[Tensor] | tuple[Tensor, ...] | Tensor
"Waves to compare with: a list of ``(n,)``, or a tensor ``(k, n)``."

WINDOWS_AT_ONCE = 2
"Windows of a long recording a pass, which bounds its memory; more would gain little time."


class Attribution(NamedTuple):
    """Maps, and how far each is from adding up."""

    map: Map
    "Signed contribution of every bin, ``(b, f, t)``, in units of the logit."
    delta: Float[Tensor, "b"]
    "Sum of the map less ``f(x) - f(baseline)``, in units of the logit; 0 is complete."


@dataclass(frozen=True)
class Item:
    """One recording on the plane."""

    value: Float[Tensor, "1 f t"]
    "Magnitude, or its logarithm."
    phase: Complex[Tensor, "1 f t"]
    "Phase, kept at every baseline."
    length: int
    "Samples of the recording."
    key: str
    "SHA-256 of its samples; random draws hang on it, never on the place in a batch."


class Part(NamedTuple):
    """Some windows of a long recording, as a recording of its own (`Plane.parts`)."""

    plane: "Plane"
    "The detector, which hears these windows alone."
    item: Item
    "The frames that their samples hang on; its key is the whole recording's."
    frames: slice
    "Where they lie in the whole recording."
    weight: float
    "Share of the recording's windows that these are."

    def score(self, value: Float[Tensor, "k f t"]) -> Float[Tensor, "k"]:
        """Logit of the target for these windows with other values, under their phase."""
        return self.plane.score(value, self.item.phase, self.item.length)


class Plane:
    """A detector as a function of the values of a spectrogram, under a fixed phase.

    Baselines keep the recording's phase too: what is explained is the value of a bin. ``target`` is
    a name in the detector's ``labels``, or the index of a logit. ``chunk`` rows pass the network at
    once, by default as many as the memory holds. Raises `ConfigError` on an unknown target or
    scale, a chunk below 1, or a transform that is no `Stft`.
    """

    def __init__(
        self,
        detector: Callable[..., Any],
        *,
        target: str | int,
        stft: Stft | None,
        scale: Scale,
        chunk: int | None = None,
    ) -> None:
        if not callable(detector):
            raise ConfigError(
                f"expected a detector that maps waves (b, n) to logits (b, classes), got "
                f"{type(detector).__name__}; pass the model itself"
            )
        if chunk is not None:
            check_count(chunk, name="chunk")
        self.chunk = chunk
        self.wrapper: RawWrapper = _Differentiable(detector, stft, scale=scale)
        self.column = target_column(detector, target)

    @property
    def device(self) -> torch.device:
        """Device of the detector; the CPU where it has no tensors."""
        return device_of(self.wrapper)

    def score(
        self,
        value: Float[Tensor, "k f t"],
        phase: Complex[Tensor, "#k f t"],
        length: int,
    ) -> Float[Tensor, "k"]:
        """Logit of the target for rows of values under one phase, or a phase each."""
        logits = self.wrapper(value, phase.expand(len(value), -1, -1), length)
        if self.column >= logits.shape[1]:
            raise ConfigError(
                f"the detector returns {logits.shape[1]} logits, so there is none with index "
                f"{self.column}; pass the target as a name in its labels or a smaller index"
            )
        return logits[:, self.column]

    def parts(self, item: Item) -> list[Part]:
        """A long recording in parts of `WINDOWS_AT_ONCE` windows; any other as one part.

        A detector says by a ``config`` with ``long = "windows"`` that its logits are the mean of
        those of windows of ``n_samples``, as `specsegdiff.models.detector.over_windows` has it; of
        one that does not say so, every recording is one part. A part has the frames that its
        samples hang on, so work grows with the length, and the memory of a pass does not.
        """
        length, stft = window_of(self.wrapper.detector), self.wrapper.stft
        if length is None or item.length <= WINDOWS_AT_ONCE * length:
            return [Part(self, item, slice(None), 1.0)]
        hop, reach = stft.config.hop, stft.config.n_fft // 2
        starts, last_frame = window_starts(item.length, length), item.value.shape[-1] - 1
        parts = []
        for index in range(0, len(starts), WINDOWS_AT_ONCE):
            own = starts[index : index + WINDOWS_AT_ONCE]
            first = max((own[0] - reach) // hop, 0)
            last = min(-(-(own[-1] + length + reach) // hop), last_frame)
            n = (item.length if last == last_frame else last * hop) - first * hop
            frames = slice(first, last + 1)
            value, phase = item.value[:, :, frames], item.phase[:, :, frames]
            windows = [slice(start - first * hop, start - first * hop + length) for start in own]
            parts.append(
                Part(
                    self._hearing(windows),
                    replace(item, value=value, phase=phase, length=n),
                    frames,
                    len(own) / len(starts),
                )
            )
        return parts

    def over_parts(self, item: Item, explain: Callable[[Part], Tensor]) -> Float[Tensor, "k f t"]:
        """Maps ``(k, f, t)`` of an item: what ``explain`` gives for its `parts`, each ``(k, f, t)``
        at the part's own frames, by their weights.

        The mean over windows is linear, so for gradients, and for rules that treat every row of a
        batch alone, these are the maps of the whole recording to rounding.
        """
        parts = self.parts(item)
        if len(parts) == 1:
            return explain(parts[0])
        shares = [explain(part) * part.weight for part in parts]
        total = shares[0].new_zeros(len(shares[0]), *item.value.shape[1:])
        for part, share in zip(parts, shares, strict=True):
            total[:, :, part.frames] += share
        return total

    def baseline(
        self, item: Item, references: References | None, rows: range | None = None
    ) -> Float[Tensor, "k f t"]:
        """Values of the references at the item's length, or of silence, ``(1, f, t)``, without;
        ``rows`` are those of a few references.

        Silence is magnitude 0: on the log scale it is the wrapper's floor, not a logarithm of 0.
        Shorter references are repeated, longer ones cut.
        """
        if references is None:
            return torch.full_like(item.value, self.wrapper.silence)
        chosen = range(len(references)) if rows is None else rows
        waves = torch.stack([at_length(references[row], item.length) for row in chosen])
        return self.wrapper.split(waves.to(item.value))[0]

    def mean(self, work: Callable[[range], Tensor], count: int) -> Tensor:
        """Mean of what ``work`` gives for the rows ``0 .. count - 1`` (`mean_row`)."""
        return mean_row(work, count, chunk=self.chunk, device=self.device)

    def change(self, item: Item, references: References | None) -> Float[Tensor, ""]:
        """``f(x) - mean f(baselines)``, what a complete map sums to."""

        def scores(rows: range) -> Tensor:
            with torch.no_grad():
                baselines = self.baseline(item, references, rows)
                return self.score(baselines, item.phase, item.length)

        mean = self.mean(scores, count_of(references))
        with torch.no_grad():
            own = self.score(item.value, item.phase, item.length)[0]
        return own.cpu().double() - mean

    def maps(self, wave: Wave, one: Callable[[Item], Map]) -> Map:
        """Maps of waves ``(b, n)``, each by ``one``, on the waves' device.

        The detector is as it was found afterwards, also after an error.
        """
        # a caller's no_grad or inference mode is about its own tensors
        with as_found(self.wrapper), torch.inference_mode(False), torch.enable_grad():
            return torch.stack([one(item).float() for item in self.items(wave)]).to(wave.device)

    def attribute(
        self, wave: Wave, one: Callable[[Item], tuple[Map, Float[Tensor, ""]]]
    ) -> Attribution:
        """Attributions of waves ``(b, n)``: ``one`` gives a map and the change of the logit that it
        should add up to."""
        deltas: list[Tensor] = []

        def with_change(item: Item) -> Map:
            contribution, change = one(item)
            deltas.append(contribution.double().sum().cpu() - change.double().cpu())
            return contribution

        result = self.maps(wave, with_change)
        return Attribution(result, torch.stack(deltas).to(result))

    def items(self, wave: Wave) -> Iterator[Item]:
        """Recordings of a batch ``(b, n)``, on the detector's device; raises `ShapeError` on any
        other shape and on samples that are not finite."""
        check_batch(wave)
        for row in wave.detach().clone():
            with torch.no_grad():
                value, phase, length = self.wrapper.split(row[None].to(self.device))
            yield Item(value, phase, length, content_key(row))

    def _hearing(self, windows: list[slice]) -> "Plane":
        """The same plane, of a detector that hears these samples alone."""
        plane, whole = copy.copy(self), self.wrapper
        detector = _Windows(whole.detector, windows)
        plane.wrapper = _Differentiable(detector, whole.stft, scale=whole.scale, floor=whole.floor)
        return plane


class OnPlane(ABC):
    """What attributions of a detector share: the plane, a map, and how far it is from complete."""

    signed = True
    "A map's sign says for or against (`specsegdiff.benchmark.rank`)."

    def __init__(self, plane: Plane) -> None:
        self.plane = plane

    def __call__(self, wave: Wave) -> Map:
        """Attribution ``(b, f, t)`` of waves ``(b, n)``, on the axes of `Stft`."""
        return self.attribute(wave).map

    def attribute(self, wave: Wave) -> Attribution:
        """Attribution of waves ``(b, n)``, and how far the sum of each map is from what it should
        be by the method, ``(b,)``."""
        with torch.inference_mode(False):
            return self.plane.attribute(wave, self._explain)

    @abstractmethod
    def _explain(self, item: Item) -> tuple[Map, Float[Tensor, ""]]:
        """Map ``(f, t)`` of one recording, and what it should sum to."""


class _Differentiable(RawWrapper):
    """A wrapper that says so where a detector has no gradient, before autograd or captum does."""

    def forward(
        self, value: Float[Tensor, "b f t"], phase: Complex[Tensor, "b f t"], length: int
    ) -> Float[Tensor, "b c"]:
        """Logits as `RawWrapper` returns them; raises `RuleError` where they lost the gradient."""
        logits = super().forward(value, phase, length)
        if torch.is_grad_enabled() and value.requires_grad and not logits.requires_grad:
            raise RuleError(
                "the detector's logits have no gradient to its input, which this method needs: its "
                "forward runs under torch.no_grad or torch.inference_mode, detaches, or decides "
                "hard; take that out of the detector, or use DeepSHAP(rules='full'), which lifts "
                "no_grad, or Occlusion, which asks for no gradient"
            )
        return logits


class _Windows(nn.Module):
    """Mean logits of a detector over some windows of a wave, each one that it hears whole."""

    def __init__(self, detector: Callable[..., Any], windows: list[slice]) -> None:
        super().__init__()
        self.detector = detector
        self.windows = windows
        self.training = False

    def forward(self, wave: Float[Tensor, "b n"]) -> Float[Tensor, "b c"]:
        """Logits of waves that hold all these windows."""
        rows = torch.stack([wave[:, window] for window in self.windows], dim=1)
        logits = self.detector(rearrange(rows, "b w n -> (b w) n"))
        return reduce(logits, "(b w) c -> b c", "mean", b=len(wave))


def window_of(detector: object) -> int | None:
    """Samples of the windows that a detector averages over; None where it does not say so."""
    config = getattr(detector, "config", None)
    length = getattr(config, "n_samples", None)
    is_windowed = getattr(config, "long", None) == "windows" and isinstance(length, int)
    return length if is_windowed else None


def device_of(module: nn.Module) -> torch.device:
    """Device of a module's first weight or buffer; the CPU where it has none."""
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def check_batch(wave: Wave) -> None:
    """Raise `ShapeError` unless ``wave`` is a batch ``(b, n)`` of finite samples."""
    check_wave(wave)
    if wave.ndim != 2:
        raise ShapeError(
            f"expected waves (b, n), got shape {tuple(wave.shape)}; "
            "give one recording a batch axis with [None]"
        )
    if not is_finite(wave):
        raise ShapeError("the waves hold NaN or infinity; repair them before they are explained")


def check_references(references: References | None) -> None:
    """Raise `ConfigError` or `ShapeError` unless there are some, each a finite wave ``(n,)``."""
    if references is None:
        return
    if not isinstance(references, list | tuple | Tensor) or len(references) == 0:
        raise ConfigError(
            "references must be a list of waves (n,) or a tensor (k, n) with k >= 1, or None for "
            f"silence, got {type(references).__name__}"
        )
    for reference in references:
        check_wave(reference)
        if reference.ndim != 1 or not is_finite(reference):
            raise ShapeError(
                f"expected each reference as a finite wave (n,), got {tuple(reference.shape)}"
            )


def count_of(references: References | None) -> int:
    """How many baselines there are: silence is one."""
    return 1 if references is None else len(references)


def check_count(value: object, *, name: str) -> None:
    """Raise `ConfigError` unless ``value`` is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be an integer, at least 1, got {value!r}")


def target_column(detector: object, target: str | int) -> int:
    """Index of the logit that ``target`` names; raises `ConfigError`."""
    if target == "spoof":
        return spoof_column(detector)
    if isinstance(target, int) and not isinstance(target, bool) and target >= 0:
        return target
    labels = getattr(detector, "labels", None) or ()
    if not isinstance(target, str) or list(labels).count(target) != 1:
        raise ConfigError(
            f"target must be one of the detector's labels {tuple(labels)}, or the index of a "
            f"logit, got {target!r}"
        )
    return list(labels).index(target)


def content_key(wave: Float[Tensor, "n"]) -> str:
    """SHA-256 of the samples as little-endian float32."""
    return hashlib.sha256(wave.detach().cpu().float().numpy().astype("<f4").tobytes()).hexdigest()


def seed_of(*parts: object) -> int:
    """A 64-bit seed that hangs on the parts alone."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def at_length(wave: Float[Tensor, "n"], length: int) -> Float[Tensor, "m"]:
    """Cut a wave to ``length`` samples, or repeat it until it has them.

    >>> at_length(torch.tensor([1.0, 2.0]), 5).tolist()
    [1.0, 2.0, 1.0, 2.0, 1.0]
    """
    return wave.repeat(-(-length // len(wave)))[:length]


def import_captum() -> None:
    """Raise `DependencyError` unless captum can be imported."""
    try:
        import captum.attr  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"this attribution runs in captum, which cannot be imported ({error}); "
            "install it with: pip install 'captum>=0.9'"
        ) from error


@contextlib.contextmanager
def as_found(module: nn.Module) -> Iterator[None]:
    """Evaluate a module without gradients to its weights, then put it back as it was found.

    Put back are training flags of every part, ``requires_grad`` of every parameter, hooks, and what
    captum leaves on activations after an error. Nothing is added to a ``.grad`` meanwhile.
    """
    parts = list(module.modules())
    modes = [part.training for part in parts]
    hooks = [{name: dict(vars(part)[name]) for name in _hook_names(part)} for part in parts]
    marks = [_CAPTUM_MARKS - vars(part).keys() for part in parts]
    weights = [(value, value.requires_grad) for value in module.parameters()]
    try:
        for part in parts:
            part.training = False
        for value, _ in weights:
            value.requires_grad_(False)
        yield
    finally:
        for part, mode, kept, absent in zip(parts, modes, hooks, marks, strict=True):
            part.training = mode
            for name, table in kept.items():
                live = vars(part)[name]
                for handle in [handle for handle in live if handle not in table]:
                    del live[handle]
            for name in absent & vars(part).keys():
                delattr(part, name)
        for value, needs_gradient in weights:
            value.requires_grad_(needs_gradient)


_CAPTUM_MARKS = {"input", "input_ref", "output"}


def _hook_names(part: nn.Module) -> list[str]:
    tables = ((name, value) for name, value in vars(part).items() if "_hooks" in name)
    return [name for name, value in tables if isinstance(value, dict)]

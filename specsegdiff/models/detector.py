"""What every detector is: waves to logits with named columns, calibrated, at any length."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.shapes import Wave, check_wave, is_finite

LABELS = ("spoof", "bonafide")
"Columns of the published detectors: index 0 is spoof, and their score is the logit of index 1."

Long: TypeAlias = Literal["windows", "first"]
"What happens to a recording that is longer than a detector's window (`over_windows`)."

WINDOWS_AT_ONCE = 16
"Windows of a long recording that pass the network together while no gradient is asked for."


@runtime_checkable
class Detector(Protocol):
    """A classifier of waveforms; an `torch.nn.Module` that maps ``(b, n)`` to ``(b, c)`` is one as
    soon as it has ``labels``."""

    labels: tuple[str, ...]
    """Names of the columns, such as ``("spoof", "bonafide")``."""

    def __call__(self, wave: Wave) -> Float[Tensor, "b c"]:
        """Logits of waveforms ``(b, n)``, float32 mono at 16 kHz, of any length."""


def spoof_column(detector: object) -> int:
    """Index of ``"spoof"`` in ``detector.labels``.

    Raises `ConfigError` where the labels are missing, or name "spoof" not once or nothing beside
    it: published detectors differ in their order, and a guess would explain the other class.
    """
    return _spoof_index(getattr(detector, "labels", None), owner=type(detector).__name__)


def p_spoof(
    logits: Float[Tensor, "b c"], *, labels: Sequence[str], temperature: float = 1.0
) -> Float[Tensor, "b"]:
    """Probability of spoof, ``softmax(logits / temperature)`` in the column that ``labels`` names.

    >>> p_spoof(torch.tensor([[2.0, 0.0]]), labels=("spoof", "bonafide"), temperature=2.0)
    tensor([0.7311])
    """
    column = _check_logits(logits, labels)
    if not 0 < temperature < float("inf"):
        raise ConfigError(f"temperature must be positive and finite, got {temperature!r}")
    return (logits / temperature).softmax(dim=-1)[:, column]


def fit_temperature(
    logits: Float[Tensor, "b 2"], is_spoof: Bool[Tensor, "b"], *, labels: Sequence[str] = LABELS
) -> float:
    """Temperature that makes `p_spoof` of held-out ``logits`` most likely (Guo et al. 2017, arXiv
    1706.04599).

    One over it, s, minimises the mean of ``log(1 + exp(-s m))``, where m is the logit of the right
    class less that of the other. This is convex, so the root of its slope is the one optimum. No
    decision changes, and the probabilities hold for the share of fakes among these items.

    Raises `ShapeError` on other than two columns, or where there is no optimum: every item is
    right (the best temperature would be 0), or the logits do no better than chance (infinite).

    >>> logits = torch.tensor([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
    >>> t = fit_temperature(logits, torch.tensor([True, True, True, False]))
    >>> round(t, 3), p_spoof(logits[:1], labels=LABELS, temperature=t)
    (2.731, tensor([0.7500]))
    """
    from scipy.optimize import brentq

    column = _check_logits(logits, labels)
    if logits.shape[1] != 2 or is_spoof.shape != logits.shape[:1] or is_spoof.dtype != torch.bool:
        raise ShapeError(
            "expected two logits and one bool per item, got "
            f"{tuple(logits.shape)} and {tuple(is_spoof.shape)} {is_spoof.dtype}"
        )
    if not is_finite(logits):
        raise ShapeError("logits hold NaN or infinity; repair the detector first")
    rows = logits.detach().double()
    margin = torch.where(is_spoof, 1.0, -1.0) * (rows[:, column] - rows[:, 1 - column])

    def slope(inverse: float) -> float:
        return float(-(margin * torch.sigmoid(-inverse * margin)).mean())

    if bool((margin >= 0).all()):
        raise ShapeError(
            f"all {len(margin)} items are on the right side, so no temperature is most likely; "
            "calibrate on more or harder items, or keep temperature 1"
        )
    if slope(0) >= 0:
        raise ShapeError(
            f"the logits do no better than chance on these {len(margin)} items; "
            f"check that their columns are {tuple(labels)}"
        )
    high = 1.0
    while slope(high) < 0:
        high *= 2
    return 1 / float(brentq(slope, 0.0, high, xtol=1e-12))


def over_windows(
    network: Callable[[Float[Tensor, "b n"]], Float[Tensor, "b c"]],
    wave: Float[Tensor, "b n"],
    *,
    length: int,
    long: Long,
) -> Float[Tensor, "b c"]:
    """Mean logits of ``network`` over the `windows` of each waveform ``(b, n)``.

    All windows pass at once where gradients are recorded, as items of one batch, so that an
    attribution sees one pass; otherwise at most `WINDOWS_AT_ONCE` do, which bounds the memory.
    """
    rows = rearrange(windows(wave, length=length, long=long), "b w n -> (b w) n")
    step = len(rows) if torch.is_grad_enabled() else WINDOWS_AT_ONCE
    logits = torch.cat([network(part) for part in rows.split(step)])
    return reduce(logits, "(b w) c -> b c", "mean", b=len(wave))


def windows(wave: Float[Tensor, "b n"], *, length: int, long: Long) -> Float[Tensor, "b w m"]:
    """Cut waveforms of any length n >= 1 to windows of ``length`` samples.

    - n < length: one window, the wave repeated and cut, as in the published detectors.
    - n > length, ``"windows"``: the fewest windows that cover every sample, evenly spread, from
      the first sample to the last.
    - n > length, ``"first"``: one window, the first ``length`` samples, the published evaluation.

    Raises `ShapeError` on anything but a non-empty floating ``(b, n)``.

    >>> windows(torch.arange(5.0)[None], length=3, long="windows").tolist()
    [[[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]]]
    >>> windows(torch.arange(2.0)[None], length=3, long="windows").tolist()
    [[[0.0, 1.0, 0.0]]]
    """
    check_wave(wave)
    if wave.ndim != 2:
        raise ShapeError(
            f"a detector takes waveforms (b, n), got {tuple(wave.shape)}; "
            "give one recording a batch axis with [None]"
        )
    n = wave.shape[-1]
    if n < length:
        return wave.repeat(1, -(-length // n))[:, None, :length]
    starts = window_starts(n, length) if long == "windows" else [0]
    return torch.stack([wave[:, start : start + length] for start in starts], dim=1)


def window_starts(n: int, length: int) -> list[int]:
    """First samples of the fewest windows that cover a waveform of ``n >= length`` samples, evenly
    spread.

    >>> window_starts(10, 4)
    [0, 3, 6]
    """
    count = -(-n // length)
    return [round(index * (n - length) / max(count - 1, 1)) for index in range(count)]


def _spoof_index(labels: object, *, owner: str) -> int:
    if not isinstance(labels, Sequence) or isinstance(labels, str):
        raise ConfigError(
            f"{owner} does not name its columns; set labels, such as "
            f"{owner.lower()}.labels = {LABELS}, in the order of its logits"
        )
    if list(labels).count("spoof") != 1 or len(labels) < 2:
        raise ConfigError(
            f"{owner} names its columns {tuple(labels)}; exactly one of two or more must be 'spoof'"
        )
    return list(labels).index("spoof")


def _check_logits(logits: Tensor, labels: Sequence[str]) -> int:
    column = _spoof_index(labels, owner="detector")
    if logits.ndim != 2 or logits.shape[1] != len(labels) or not logits.is_floating_point():
        raise ShapeError(
            f"labels {tuple(labels)} name {len(labels)} columns, expected floating logits "
            f"(b, {len(labels)}), got {tuple(logits.shape)} {logits.dtype}"
        )
    return column

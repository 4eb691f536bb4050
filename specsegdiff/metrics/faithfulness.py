"""Whether a map shows what the detector uses: the detector is asked again, with bins taken away.

`ai`, `ad`, `ag`, `fid_in` and `ff` take class probabilities ``(b, k)`` of the whole recordings and
of what a mask keeps (masked in) or leaves (masked out), and give one score an item, ``(b,)``; an
empty batch gives an empty result, whose mean is NaN. `faithfulness` computes all five for any map
from anyone, and `perturbation_curves` the detector's answer while bins come and go in the map's
order. The detector hears ``mask * |Y|`` with the recording's own phase, through the exact inverse.

The explained class is the one that the detector finds most likely in the whole recording, as
published, or ``target``. With ``p`` and ``o`` its probabilities before and after:

========  ===================================  ========  ======
score     formula                              range     better
========  ===================================  ========  ======
`ai`      ``100 [p < o]``                      0 or 100  higher
`ad`      ``100 max(0, p - o) / p``            0 to 100  lower
`ag`      ``100 max(0, o - p) / (1 - p)``      0 to 100  higher
`fid_in`  ``100 [argmax before == after]``     0 or 100  higher
`ff`      ``p - o``, where o is masked out     -1 to 1   higher
========  ===================================  ========  ======

A mask of ones keeps everything: AI 0, AD 0, AG 0, Fid-In 100. So scores of maps compare only where
the masks have one share, and hard masks of few bins are far from what a detector was trained on:
report controls beside them.

Source: Paissan et al. 2024, L-MAC, arXiv 2403.13086, section 4.1. Departures: Fid-In is in percent
and not a share; masks act on the linear magnitude of a waveform, and not on ``log1p`` of it.
"""

import numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.frontend import RawWrapper, Stft, check_stft
from specsegdiff.shapes import Map, Mask, Wave, check_map, is_finite

Probabilities: TypeAlias = Float[Tensor, "b k"]
"""Probabilities of the classes, each row with sum 1."""

Score: TypeAlias = Float[Tensor, "b"]
"""One value per item of a batch."""

Masking: TypeAlias = Literal["top", "soft", "positive"]
"""How a map becomes a mask: its highest bins, its values, or its positive part."""

EPS = 1e-10
"Added to the denominators of AD and AG, as in SpeechBrain; a change of 0 from 0 is 0."


def ai(full: Probabilities, masked_in: Probabilities, *, target: int | None = None) -> Score:
    """Average increase: 100 where the part kept convinces the detector more, else 0.

    Higher is better. Equal probabilities are no increase. Raises `ShapeError` unless both are
    probabilities of one shape ``(b, k)``, `ConfigError` on a class that is none of them.

    >>> ai(torch.tensor([[0.6, 0.4], [0.6, 0.4]]), torch.tensor([[0.7, 0.3], [0.6, 0.4]]))
    tensor([100.,   0.])
    """
    before, after = _explained(full, masked_in, target, name="masked_in")
    return 100 * (before < after).to(before)


def ad(
    full: Probabilities,
    masked_in: Probabilities,
    *,
    target: int | None = None,
    double_softmax: bool = False,
) -> Score:
    """Average drop: the share of its confidence that the detector loses, in percent.

    From 0 to 100, lower is better. ``double_softmax`` takes the softmax of the probabilities first,
    as SpeechBrain's recipe does for this score alone, for comparison with numbers that came from
    it: it shrinks drops, of two classes to at most 63.2 of 100. Raises as `ai`.

    >>> full, masked_in = torch.tensor([[0.99, 0.01]]), torch.tensor([[0.5, 0.5]])
    >>> [round(float(ad(full, masked_in, double_softmax=twice)), 2) for twice in (False, True)]
    [49.49, 31.23]
    """
    _check(full, masked_in, name="masked_in")
    if double_softmax:
        # monotone within a row, so the explained class stays
        full, masked_in = full.softmax(1), masked_in.softmax(1)
    before, after = _explained(full, masked_in, target, name="masked_in")
    return 100 * (before - after).clamp_min(0) / (before + EPS)


def ag(full: Probabilities, masked_in: Probabilities, *, target: int | None = None) -> Score:
    """Average gain: the share of the missing confidence that the detector gains, in percent.

    From 0 to 100, higher is better. Close to certainty the denominator is rounding: pass float64
    probabilities, and read the score of a saturated detector with care. Raises as `ai`.

    >>> round(float(ag(torch.tensor([[0.6, 0.4]]), torch.tensor([[0.7, 0.3]]))), 3)
    25.0
    """
    before, after = _explained(full, masked_in, target, name="masked_in")
    return 100 * (after - before).clamp_min(0) / (1 - before + EPS)


def fid_in(full: Probabilities, masked_in: Probabilities) -> Score:
    """Input fidelity: 100 where the part kept leads to the same class, else 0.

    Higher is better. Of equally likely classes the first counts. Raises as `ai`.

    >>> fid_in(torch.tensor([[0.6, 0.4], [0.6, 0.4]]), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
    tensor([100.,   0.])
    """
    _check(full, masked_in, name="masked_in")
    return 100 * (full.argmax(1) == masked_in.argmax(1)).to(full)


def ff(full: Probabilities, masked_out: Probabilities, *, target: int | None = None) -> Score:
    """Faithfulness on spectra: how much less likely the class is without the part that was kept.

    From -1 to 1, higher is better; below 0 what was taken away spoke against the class. The text of
    L-MAC says logit; its code, and so its numbers, take probabilities. Raises as `ai`.

    >>> ff(torch.tensor([[0.75, 0.25]]), torch.tensor([[0.5, 0.5]]))
    tensor([0.2500])
    """
    before, after = _explained(full, masked_out, target, name="masked_out")
    return before - after


def faithfulness(
    detector: Callable[..., Any],
    wave: Wave,
    heatmap: Map | Mask,
    *,
    masking: Masking = "top",
    share: float = 0.05,
    target: int | None = None,
    stft: Stft | None = None,
    double_softmax: bool = False,
) -> dict[str, Score]:
    """All five scores of maps ``(b, f, t)`` of waves ``(b, n)``, each ``(b,)`` in float64.

    ``detector`` is what `RawWrapper` takes, or one, whose transform then counts; it is asked three
    times, without gradients and without dropout, and left as it was. A map becomes a mask by
    ``masking``:

    - ``'top'``: its highest bins, ``share`` of them, as the true masks are made: any map, and
      masks of one size. Ties go to the lower index in ``(f, t)`` order, as in
      `specsegdiff.masks.top_share`.
    - ``'soft'``: its values, which must lie in [0, 1], as in L-MAC.
    - ``'positive'``: its positive part over its own maximum, for attributions that carry a sign;
      zeros where nothing is positive.

    A bool mask is taken as it is. Keys are ``ai``, ``ad``, ``ag``, ``fid_in`` and ``ff``. The whole
    recording too is heard through the transform, so that a mask of ones changes no bit.

    Raises `ShapeError` where a map does not lie on the wave's axes, is not finite, or the detector
    returns no finite logits of two classes or more; `ConfigError` on unknown options.

    >>> def detector(wave):
    ...     return torch.stack([wave.square().mean(1).log(), torch.zeros(len(wave))], dim=1)
    >>> wave = torch.randn(1, 4_000, generator=torch.Generator().manual_seed(0))
    >>> scores = faithfulness(detector, wave, torch.ones(1, 513, 16), masking="soft")
    >>> {name: score.tolist() for name, score in scores.items() if name != "ff"}
    {'ai': [0.0], 'ad': [0.0], 'ag': [0.0], 'fid_in': [100.0]}
    """
    _check_heatmap(heatmap)
    mask = _mask(heatmap, masking, share)
    with _listening(detector, wave, heatmap, stft) as hear:
        full, masked_in, masked_out = hear(torch.ones_like(mask)), hear(mask), hear(1 - mask)
    return {
        "ai": ai(full, masked_in, target=target),
        "ad": ad(full, masked_in, target=target, double_softmax=double_softmax),
        "ag": ag(full, masked_in, target=target),
        "fid_in": fid_in(full, masked_in),
        "ff": ff(full, masked_out, target=target),
    }


@dataclass(frozen=True, eq=False)
class PerturbationCurves:
    """Probability of the explained class while bins come and go in the map's order."""

    share: Float[Tensor, "s"]
    "Share of the bins that came or went before each answer, from 0 to 1, float64."
    insertion: Float[Tensor, "b s"]
    "Probability with that share of the highest bins alone, from silence to the recording."
    deletion: Float[Tensor, "b s"]
    "Probability without them, from the recording to silence."

    @property
    def insertion_auc(self) -> Score:
        """Area under `insertion` by trapezoids, ``(b,)`` in [0, 1]; higher is better."""
        return torch.trapezoid(self.insertion, self.share)

    @property
    def deletion_auc(self) -> Score:
        """Area under `deletion` by trapezoids, ``(b,)`` in [0, 1]; lower is better."""
        return torch.trapezoid(self.deletion, self.share)


def perturbation_curves(
    detector: Callable[..., Any],
    wave: Wave,
    heatmap: Map | Mask,
    *,
    steps: int = 20,
    target: int | None = None,
    stft: Stft | None = None,
) -> PerturbationCurves:
    """Insertion and deletion curves of maps ``(b, f, t)`` of waves ``(b, n)`` in ``steps`` steps.

    Bins go by value, highest first, so a sign counts and a scale does not; tied bins go by the
    lower index in ``(f, t)`` order, which is arbitrary, so a constant map sweeps up the frequencies
    and is no control: a random one is. The detector is asked ``2 * steps`` times, as in
    `faithfulness`, which also says what is raised.

    Source: Petsiuk et al. 2018, RISE, arXiv 1806.07421, section 4.2. Departures: bins that are gone
    are silent in both curves, where RISE inserts into a blurred picture; the explained class is
    that of `faithfulness`.

    >>> def detector(wave):
    ...     return torch.stack([wave.square().mean(1), torch.zeros(len(wave))], dim=1)
    >>> wave = torch.randn(1, 4_000, generator=torch.Generator().manual_seed(0))
    >>> curves = perturbation_curves(detector, wave, torch.rand(1, 513, 16), steps=2)
    >>> curves.share.tolist(), float(curves.insertion[0, 0]), float(curves.deletion[0, -1])
    ([0.0, 0.5, 1.0], 0.5, 0.5)
    """
    _check_heatmap(heatmap)
    bins = heatmap.shape[-2] * heatmap.shape[-1]
    if not _is_number(steps, numbers.Integral) or not 1 <= steps <= bins:
        raise ConfigError(
            f"steps must lie in [1, {bins}], an integer up to the number of bins, got {steps!r}"
        )
    counts = [round(step * bins / steps) for step in range(steps + 1)]
    rank = _rank(heatmap)
    with _listening(detector, wave, heatmap, stft) as hear:
        kept = [hear((rank < count).float()) for count in counts]
        left = [hear((rank >= count).float()) for count in counts[1:-1]]
    full = kept[-1]
    for answer in [full, *kept, *left]:
        _check(full, answer, name="masked")
    column = _column(full, target)
    return PerturbationCurves(
        share=torch.tensor(counts, dtype=torch.float64) / bins,
        insertion=torch.stack([_pick(answer, column) for answer in kept], dim=1),
        deletion=torch.stack([_pick(answer, column) for answer in [full, *left, kept[0]]], dim=1),
    )


def _check(full: Tensor, other: Tensor, *, name: str) -> None:
    for label, value in (("full", full), (name, other)):
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim != 2:
            came = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else value
            raise ShapeError(f"expected {label} as floating probabilities (b, classes), got {came}")
        if value.shape != full.shape or value.shape[1] < 2:
            raise ShapeError(
                f"expected probabilities of one shape (b, classes >= 2), got full "
                f"{tuple(full.shape)} and {label} {tuple(value.shape)}; a detector with one logit "
                "needs the other class beside it"
            )
        # 1e-2 is the rounding of bfloat16
        in_doubt = (value < 0).any(1) | ((value.sum(1) - 1).abs() > 1e-2)
        if not is_finite(value) or bool(in_doubt.any()):
            raise ShapeError(
                f"expected {label} as probabilities: finite, not negative, rows with sum 1; "
                "take the softmax of logits, and mend a detector that returns NaN"
            )


def _column(full: Tensor, target: int | None) -> Int[Tensor, "b 1"]:
    """Index of the explained class of each item."""
    if target is None:
        return full.argmax(1, keepdim=True)
    if not _is_number(target, numbers.Integral) or not 0 <= target < full.shape[1]:
        raise ConfigError(
            f"target must be one of the {full.shape[1]} classes, an integer from 0, got {target!r}"
        )
    return torch.full((len(full), 1), int(target), device=full.device)


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _pick(probabilities: Tensor, column: Tensor) -> Score:
    return probabilities.gather(1, column).squeeze(1)


def _explained(
    full: Tensor, other: Tensor, target: int | None, *, name: str
) -> tuple[Score, Score]:
    """Probability of the explained class before and after."""
    _check(full, other, name=name)
    column = _column(full, target)
    return _pick(full, column), _pick(other, column)


def _check_heatmap(heatmap: Tensor) -> None:
    check_map(heatmap, name="heatmap")
    if heatmap.ndim != 3:
        raise ShapeError(
            f"expected heatmap as (b, f, t), got shape {tuple(heatmap.shape)}; "
            "give one item a batch axis with [None]"
        )
    if not (heatmap.is_floating_point() or heatmap.dtype == torch.bool) or not is_finite(heatmap):
        raise ShapeError(
            f"expected heatmap as a finite floating map or a bool mask, got {heatmap.dtype} with "
            f"{int((~torch.isfinite(heatmap)).sum())} values that are not finite"
        )


def _mask(heatmap: Tensor, masking: Masking, share: float) -> Tensor:
    if masking not in ("top", "soft", "positive"):
        raise ConfigError(f"masking must be 'top', 'soft' or 'positive', got {masking!r}")
    if not _is_number(share, numbers.Real) or not 0 <= share <= 1:
        raise ConfigError(f"share must lie in [0, 1], a number, got {share!r}")
    if heatmap.dtype == torch.bool:
        return heatmap.float()
    if masking == "top":
        return (_rank(heatmap) < round(share * heatmap[0].numel())).float()
    if masking == "positive":
        positive = heatmap.clamp_min(0)
        highest = positive.amax((1, 2), keepdim=True)
        return positive / torch.where(highest > 0, highest, 1.0)
    if bool((heatmap < 0).any() | (heatmap > 1).any()):
        raise ShapeError(
            f"a soft mask lies in [0, 1], got values from {float(heatmap.min()):.3g} to "
            f"{float(heatmap.max()):.3g}; take masking='positive' or 'top' for attributions"
        )
    return heatmap


def _rank(heatmap: Tensor) -> Int[Tensor, "b f t"]:
    """Place of each bin in its item, 0 for the highest; ties by the lower index."""
    flat = heatmap.flatten(1)
    # adding 0 turns -0.0 into 0.0: they are a tie on every device
    value = (flat.float() if flat.dtype == torch.bool else flat) + 0.0
    order = value.argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).reshape(heatmap.shape)


@contextmanager
def _listening(
    detector: Callable[..., Any], wave: Wave, heatmap: Tensor, stft: Stft | None
) -> Iterator[Callable[[Tensor], Probabilities]]:
    """A function from masks to the detector's probabilities, while the detector is at rest."""
    check_stft(stft)
    if isinstance(detector, RawWrapper):
        if stft is not None and stft.config != detector.stft.config:
            raise ConfigError("the RawWrapper has another transform; leave stft out")
        stft, detector = detector.stft, detector.detector
    wrapper = RawWrapper(detector, stft, scale="linear")
    value, phase, length = wrapper.split(wave)
    if heatmap.shape != value.shape:
        raise ShapeError(
            f"expected a map {tuple(value.shape)} on the wave's axes, got {tuple(heatmap.shape)}; "
            "compute it with the same StftConfig"
        )

    def hear(mask: Tensor) -> Probabilities:
        logits = wrapper(value * mask.to(value), phase, length)
        # a mean over many items and 1 - p of a sure detector need more digits than a device gives
        return logits.cpu().double().softmax(1)

    with torch.no_grad(), _at_rest(detector):
        yield hear


@contextmanager
def _at_rest(detector: object) -> Iterator[None]:
    """Switch every module to inference, and back to its own mode, also after an error."""
    modules = list(detector.modules()) if isinstance(detector, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        # the flag itself: `train` and `eval` may be overridden to do more
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode

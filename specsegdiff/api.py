"""The whole pipeline on one screen: a recording in, an `Explanation` out."""

import contextlib
import itertools
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from numbers import Real
from pathlib import Path

import torch

from specsegdiff.archive import file_sha256
from specsegdiff.data.audio import AudioSource, AudioStream, open_audio
from specsegdiff.data.samples import SAMPLE_RATE
from specsegdiff.errors import AudioError, ConfigError
from specsegdiff.explanation import Explanation, Verdict, assemble
from specsegdiff.export import OnnxSegmenter
from specsegdiff.hub import weights_hash
from specsegdiff.models.detector import Detector, p_spoof, spoof_column
from specsegdiff.models.segdiff import SegDiff, SpecSegDiff
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST
from specsegdiff.narration.answers import ask
from specsegdiff.narration.picture import SMALL_PICTURE
from specsegdiff.narration.rules import RuleNarrator
from specsegdiff.narration.schema import Narrator, Report
from specsegdiff.narration.vlm import VLMConfig, VLMNarrator, hottest
from specsegdiff.progress import reported
from specsegdiff.sampling import (
    Draws,
    check_count,
    check_device,
    check_precision,
    fastest_dtype,
    is_one_pass,
    sample,
)
from specsegdiff.storage import BLOCK_SAMPLES, MapStore, MapWriter

WINDOW_FRAMES = 1024
"Frames that a window of a long recording contributes, 16 s; context comes on top."

CONTEXT_FRAMES = 256
"""Frames that a window sees on each side of those; with the embedded model, what lies beyond moves
its heat by less than 2e-4 in float32 (docs/decisions/0003)."""

SILENCE = 1e-12
"RMS below which a recording holds no sound; its gain would leave the range of float32."

DEFAULT_MODEL = "specsegdiff-small"
"Name of the embedded model, a folder in ``specsegdiff/assets``."

DEFAULT_DETECTOR = "wav2vec2-aasist-small"
"Name of the embedded detector, a folder beside it."

SMALL_NARRATOR = "narrator-small"
"Name of the embedded vision-language narrator, a folder beside them."

LONG_PASSES, LONG_WINDOWS = 256, 8
"More network passes than these, or more windows, are work for which a terminal shows a bar."

DETECTOR_SECONDS = 60.0
"A longer recording is judged in stretches of this length at most, whose logits are averaged."


def explain(
    source: AudioSource,
    sample_rate: int | None = None,
    *,
    model: SegDiff | OnnxSegmenter | None = None,
    detector: Detector | bool = True,
    narrator: Narrator | None = None,
    draws: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    share: float = 0.05,
    precision: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], object] | bool | None = None,
) -> Explanation:
    """Show where a recording was synthesised: the heatmap, its spread, a mask and its regions.

    ``source`` is a path, an array or tensor with its ``sample_rate`` in Hz, or a Hugging Face audio
    dict; any length, rate and channel count. ``model`` is a segmenter or its graphs, by default the
    embedded one. ``detector`` judges the whole recording (`Explanation.p_spoof`): True takes the
    embedded one, False none. ``narrator`` puts the result into words where `Explanation.report` is
    asked, by default by rules. ``draws`` and ``steps`` default to the model's own; the embedded one
    takes one step, and draws differ from two on. The same ``seed`` gives the same maps.
    ``precision`` is the segmenter's type, float32, bfloat16 or float16, by default bfloat16 where
    this CPU computes with it.
    ``progress`` is called with (network passes done, all), the detector's among them; True shows a
    bar, None shows it for long work in a terminal.
    Long recordings are read, explained and stored in windows, so what the networks need does not
    grow with them.

    Raises `AudioError` where the source cannot be read, is shorter than one analysis window or
    digital silence, and `ConfigError` on settings outside their domain. Source: arXiv 2506.03425.
    """
    model = model or default_model()
    config = model.config
    judge = _judge(detector, config.stft.sample_rate)
    if not (isinstance(share, Real) and 0 < share < 1):
        raise ConfigError(f"share must be a number between 0 and 1, got {share!r}")
    draws = config.draws if draws is None else draws
    steps = config.steps if steps is None else steps
    check_count(draws, name="draws")
    check_count(steps, name="steps", at_most=config.train_steps)
    network = None if isinstance(model, OnnxSegmenter) else model
    device = str(device)
    if network is not None:
        check_device(device)
    # graphs compute as they were exported, on the CPU
    if precision is None:
        precision = fastest_dtype(device) if network else torch.float32
    if network is None and (device, precision) != ("cpu", torch.float32):
        raise ConfigError(
            f"ONNX graphs run on the CPU in float32, got {device!r} and {precision}; leave both out"
        )
    check_precision(precision)
    with open_audio(source, sample_rate, target_rate=config.stft.sample_rate) as stream:
        wave, gain = _read(stream, model)
        name, file_hash = stream.name, _file_hash(source)
    frames = config.stft.n_frames(wave.shape[1])
    heat, spread = (MapWriter(config.stft.n_freqs, frames) for _ in range(2))
    a_window = 1 if is_one_pass(model, steps=steps) else draws * steps
    windows = range(0, frames, WINDOW_FRAMES)
    stretches = _stretches(wave.shape[1]) if judge else []
    passes = len(windows) * a_window + len(stretches)
    is_long = passes > LONG_PASSES or len(windows) > LONG_WINDOWS
    telling = reported(progress, total=passes, unit="pass", name="explain", long=is_long)
    with _ready(network, device), telling as advance:
        for start in windows:
            window = _explain_window(
                model,
                wave,
                gain,
                (start, min(start + WINDOW_FRAMES, frames)),
                draws=draws,
                steps=steps,
                seed=seed,
                device=device,
                precision=precision,
                progress=advance,
            )
            heat.append(window.mean[0])
            spread.append(window.spread[0])
        verdict = (
            _verdict(judge, wave, stretches, device=device, progress=advance) if judge else None
        )
    return assemble(
        heat.finish(),
        spread.finish(),
        wave,
        config=config.stft,
        source=name,
        model=model.name,
        weights_sha256=model.weights_sha256,
        seed=seed,
        draws=draws,
        steps=steps,
        share=share,
        precision=str(precision).removeprefix("torch."),
        file_sha256=file_hash,
        runtime=_runtime(device, model),
        verdict=verdict,
        narrator=narrator or RuleNarrator(),
        answerer=ask,
    )


def narrate(explanation: Explanation, narrator: Narrator | None = None) -> Report:
    """Put an explanation into words, also one that was loaded; by default by rules.

    Raises `ConfigError` where the recording is too short for the narrator's regions.
    """
    return (narrator or RuleNarrator())(explanation)


def _judge(detector: Detector | bool, rate: int) -> Detector | None:
    if detector is False or (detector is True and rate != SAMPLE_RATE):
        return None
    if rate != SAMPLE_RATE:
        raise ConfigError(
            f"detectors listen at {SAMPLE_RATE} Hz and this model at {rate} Hz; pass detector=False"
        )
    judge = default_detector() if detector is True else detector
    spoof_column(judge)  # before the long work, not after it
    return judge


def _stretches(n_samples: int) -> list[tuple[int, int]]:
    """First and last sample of the stretches that a detector judges one by one, of like length."""
    count = -(-n_samples // round(DETECTOR_SECONDS * SAMPLE_RATE))
    return list(itertools.pairwise(round(n_samples * part / count) for part in range(count + 1)))


def _verdict(
    detector: Detector,
    wave: MapStore,
    stretches: Sequence[tuple[int, int]],
    *,
    device: str,
    progress: Callable[[int], object],
) -> Verdict:
    """Probability of spoof of a recording ``(1, n)``: mean logits of stretches, by their length."""
    total = torch.zeros(())
    module = detector if isinstance(detector, torch.nn.Module) else None
    with torch.no_grad(), _ready(module, device):
        for first, last in stretches:
            logits = detector(wave.window(first, last).to(device))
            total = total + (last - first) / wave.shape[1] * logits.float().cpu()
            progress(1)
    chance = p_spoof(
        total,
        labels=detector.labels,
        temperature=getattr(getattr(detector, "config", None), "temperature", 1.0),
    )
    return Verdict(
        p_spoof=float(chance),
        detector=getattr(detector, "name", type(detector).__name__),
        weights_sha256=weights_hash(module) if module else "",
    )


def _read(stream: AudioStream, model: SegDiff | OnnxSegmenter) -> tuple[MapStore, float]:
    """Waveform ``(1, n)`` and the gain that brings it to the model's level, in one pass."""
    n, window = stream.n_samples, model.config.stft.n_fft
    if n < window:
        raise AudioError(
            f"{stream.name} has {n} samples at {stream.target_rate} Hz; one analysis window needs "
            f"{window} ({1000 * window / stream.target_rate:.0f} ms): pass a longer recording"
        )
    writer, energy = MapWriter(1, n), 0.0
    for start in range(0, n, BLOCK_SAMPLES):
        block = stream.read(start, min(start + BLOCK_SAMPLES, n))
        energy += float(block.double().square().sum())
        writer.append(block[None])
    level = (energy / n) ** 0.5
    if level < SILENCE:
        raise AudioError(
            f"{stream.name} is digital silence: its {n} samples have an RMS of {level:.3g}, "
            f"expected at least {SILENCE:g}; pass a recording that holds sound"
        )
    return writer.finish(), model.config.rms / level


def _explain_window(
    model: SegDiff | OnnxSegmenter,
    wave: MapStore,
    gain: float,
    frames: tuple[int, int],
    *,
    draws: int,
    steps: int,
    seed: int,
    device: str,
    precision: torch.dtype,
    progress: Callable[[int], object],
) -> Draws:
    """Draws for some frames of a long recording, computed with context on both sides."""
    unit = model.column_frames
    context = -(-CONTEXT_FRAMES // unit) * unit
    total = model.config.stft.n_frames(wave.shape[1])
    begin, end = max(0, frames[0] - context), min(total, frames[1] + context)
    condition = model.observe(wave, begin, end, gain=gain)
    drawn = sample(
        model,
        condition.to(device),
        draws=draws,
        steps=steps,
        seed=seed,
        first_column=begin // model.config.patch[1],
        dtype=precision,
        progress=progress,
    )
    inside = slice(frames[0] - begin, frames[1] - begin)
    return Draws(drawn.mean[..., inside], drawn.spread[..., inside])


def _file_hash(source: AudioSource) -> str:
    """SHA-256 of a file; empty for what is none."""
    if not isinstance(source, str | os.PathLike):
        return ""
    try:
        return file_sha256(Path(source))
    except OSError as error:
        raise AudioError(
            f"{source} was read, but cannot be hashed ({error}); leave it in place until the end"
        ) from error


def _runtime(device: str, model: SegDiff | OnnxSegmenter) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers"))
    if isinstance(model, OnnxSegmenter):
        versions += f", {model.runtime}"
    place = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return f"Python {platform.python_version()}, {versions}, {place}, {platform.platform()}"


@cache
def default_model() -> SpecSegDiff:
    """Load the embedded model once; its card lies beside it in ``specsegdiff/assets``."""
    return SpecSegDiff.from_pretrained(asset(DEFAULT_MODEL))


@cache
def default_detector() -> Wav2Vec2AASIST:
    """Load the embedded detector once; its card lies beside it."""
    return Wav2Vec2AASIST.from_pretrained(asset(DEFAULT_DETECTOR))


@cache
def small_narrator(*, chooses: bool = False) -> VLMNarrator:
    """Load the embedded vision-language narrator once, for ``explain(..., narrator=...)``; its card
    lies beside it.

    It describes the three hottest cells, or, where it ``chooses``, those that it names itself,
    which are right less often on val. Raises `DependencyError` without the extra ``vlm``.
    """
    folder = asset(SMALL_NARRATOR)
    return VLMNarrator.from_pretrained(
        folder / "model",
        adapters=(folder / "cells", folder / "text"),
        config=VLMConfig(votes=16, cell_tokens=32, text_tokens=256, picture=SMALL_PICTURE),
        choose=None if chooses else hottest,
        name=SMALL_NARRATOR,
    )


def asset(name: str) -> Path:
    """Path of a file or folder shipped in the package: the embedded model, or the example
    recording.

    >>> asset("example.flac").name
    'example.flac'
    """
    path = Path(str(files("specsegdiff") / "assets" / name))
    if not path.exists():
        raise ConfigError(f"the package holds no asset {name!r}; reinstall specsegdiff")
    return path


@contextlib.contextmanager
def _ready(model: torch.nn.Module | None, device: str) -> Iterator[None]:
    """Model, where it is PyTorch's, in evaluation mode on a device; it goes back to where and how
    it was."""
    if model is None:
        yield
        return
    first = next(model.parameters(), None)
    home = torch.device(device) if first is None else first.device
    moves = home != torch.device(device)
    training = [module for module in model.modules() if module.training]
    try:
        if moves:
            model.to(device)
        model.eval()
        yield
    finally:
        if moves:
            model.to(home)
        for module in training:
            module.training = True

"""What an explainer is, and what `specsegdiff.explain` returns: where the artifacts are."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from specsegdiff.archive import file_sha256, replacing
from specsegdiff.casefile import CaseFile
from specsegdiff.errors import CheckpointError, ConfigError, DependencyError, ShapeError
from specsegdiff.frontend import Axes, Stft, StftConfig
from specsegdiff.grid import Region, find_regions, top_share_mask
from specsegdiff.hub import from_dict
from specsegdiff.notebook import playable, render
from specsegdiff.plots import explanation_figure
from specsegdiff.shapes import Map, Wave
from specsegdiff.storage import BLOCK_SAMPLES, MapStore, load_store, save_store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from specsegdiff.cells import Box

Part: TypeAlias = Literal["artifacts", "residual", "original"]

FORMAT = "specsegdiff explanation 3"
CARD_NAME = "explanation.json"
PLAYER_SECONDS = 30.0


class Explainer(Protocol):
    """What every method is to the library: a callable from waveforms to maps."""

    def __call__(self, wave: Wave) -> Map:
        """Explain ``(b, n)`` by ``(b, f, t)``: heat in [0, 1], or an attribution with its sign."""


@dataclass(frozen=True)
class Provenance:
    """Where an explanation comes from: the same fields make the same maps."""

    source: str
    "The recording: its path as it was given, or what stands for an array."
    samples_sha256: str
    "SHA-256 of its samples as explained: mono, little-endian float32."
    model: str
    "Name of the model."
    weights_sha256: str
    "SHA-256 of its weights; empty where it has none."
    seed: int
    "Seed of the draws."
    draws: int
    "Draws that the heatmap is the mean of."
    steps: int
    "Denoising steps a draw."
    version: str
    "Version of this package."
    share: float = 0.05
    "Share of the bins that the mask marks."
    precision: str = "float32"
    "Type that the networks computed with."
    file_sha256: str = ""
    "SHA-256 of the file as it came; empty where it was no file."
    runtime: str = ""
    "What it ran on; another processor or version moves the last digits of the maps."

    def __post_init__(self) -> None:
        if min(self.draws, self.steps) < 1:
            raise ConfigError(
                "Provenance needs at least one draw of one step, "
                f"got draws={self.draws}, steps={self.steps}"
            )

    @property
    def name(self) -> str:
        """Last part of `source`, for headings."""
        return PurePath(self.source).name or self.source


class Words(Protocol):
    """What a narrator makes of an explanation; `specsegdiff.narration.schema.Report` is one."""

    def __str__(self) -> str:
        """Text for people."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""

    def _repr_html_(self) -> str:
        """What a notebook shows; nothing in it is unescaped."""


@dataclass(frozen=True)
class Verdict:
    """What a detector says of the whole recording; the maps do not depend on it."""

    p_spoof: float
    """Probability that it is spoofed, in [0, 1], as far as the detector's calibration holds for
    recordings like this one: no proof of either."""
    detector: str
    "Name of the detector."
    weights_sha256: str
    "SHA-256 of its weights; empty where it has none."

    def __post_init__(self) -> None:
        if not 0 <= self.p_spoof <= 1:
            raise ConfigError(f"Verdict.p_spoof must lie in [0, 1], got {self.p_spoof!r}")


@dataclass(frozen=True)
class Layers:
    """The arrays of an explanation."""

    heatmap: MapStore
    "Mean of the draws, ``(f, t)`` in [0, 1]."
    spread: MapStore
    "Standard deviation of the draws, ``(f, t)``."
    mask: MapStore
    "The bins with the most heat, ``(f, t)`` bool."
    wave: MapStore
    "The recording, ``(1, n)``."


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Where a recording was synthesised: maps, the regions they form, and what these sound like.

    Maps of a long recording lie in files, and are read as far as they are looked at. Make one with
    `assemble`, or read one with `load`.
    """

    axes: Axes
    "Seconds and Hz of every map."
    regions: tuple[Region, ...]
    "Connected parts of the mask, strongest first."
    provenance: Provenance
    "Recording, model, seed."
    layers: Layers
    "The arrays, for reading in windows."
    verdict: Verdict | None = None
    "What a detector says of the whole; None where none was asked."
    narrator: "Callable[[Explanation], Words] | None" = None
    "What `report` asks; it is not saved."
    answerer: "Callable[..., Words] | None" = None
    "What `ask` asks; it is not saved."

    def __post_init__(self) -> None:
        for name, store in vars(self.layers).items():
            shape = (1, self.axes.n_samples) if name == "wave" else self.axes.shape
            kind = torch.bool if name == "mask" else torch.float32
            if (store.shape, store.dtype) != (shape, kind):
                raise ShapeError(
                    f"expected {name} {shape} {kind} on these axes, "
                    f"got {store.shape} {store.dtype}; compute all on one recording"
                )

    @cached_property
    def report(self) -> Words:
        """What the narrator says, asked when first looked at.

        Raises `ConfigError` where there is no narrator, as after `load`; `specsegdiff.narrate`
        takes any explanation.
        """
        if self.narrator is None:
            raise ConfigError(
                "this explanation has no narrator; call specsegdiff.narrate(explanation)"
            )
        return self.narrator(self)

    def ask(
        self,
        question: "str | Box | None" = None,
        *,
        t0: float | None = None,
        t1: float | None = None,
        f0: float | None = None,
        f1: float | None = None,
        **options: Any,
    ) -> Words:
        """Answer on a part of the recording: a box (s, Hz), the id of a cell ('7') or of a region
        ('R3'), or a phrase such as 'high-frequency vowels'; `specsegdiff.ask` has the options.

        Raises `ConfigError` where there is no answerer, as after `load`; `specsegdiff.ask` takes
        any explanation.
        """
        if self.answerer is None:
            raise ConfigError(
                "this explanation has no answerer; call specsegdiff.ask(explanation, ...)"
            )
        return self.answerer(self, question, t0=t0, t1=t1, f0=f0, f1=f1, **options)

    @property
    def p_spoof(self) -> float | None:
        """Probability that the recording is spoofed (`Verdict`), or None."""
        return self.verdict.p_spoof if self.verdict else None

    @property
    def heatmap(self) -> Tensor:
        """Mean of the draws, ``(f, t)`` in [0, 1]; a view, of a file for a long recording."""
        return self.layers.heatmap.array

    @property
    def spread(self) -> Tensor:
        """Standard deviation of the draws, ``(f, t)``; a view."""
        return self.layers.spread.array

    @property
    def mask(self) -> Tensor:
        """The bins with the most heat, ``(f, t)`` bool; a view."""
        return self.layers.mask.array

    @property
    def wave(self) -> Tensor:
        """The recording, ``(n,)``; a view."""
        return self.layers.wave.array[0]

    def audio(
        self, what: Part, *, soft: bool = False, t0: float = 0.0, t1: float | None = None
    ) -> Tensor:
        """Waveform ``(n,)`` of the artifacts, of all else, or of the original, ``t0`` to ``t1`` s.

        Artifacts are the spectrum inside the mask with the recording's own phase, the residual is
        what lies outside: they add up to the recording. ``soft`` weighs by the heatmap instead of
        the mask. A stretch is that stretch of the whole. Raises `ConfigError` on other names or
        times.
        """
        if what not in ("artifacts", "residual", "original"):
            raise ConfigError(f"expected 'artifacts', 'residual' or 'original', got {what!r}")
        rate, n = self.axes.config.sample_rate, self.axes.n_samples
        last = n if t1 is None else min(n, round(t1 * rate))
        first = round(t0 * rate)
        if not 0 <= first < last:
            raise ConfigError(
                f"expected 0 <= t0 < t1 <= {self.axes.duration:.3f} s, got t0={t0}, t1={t1}"
            )
        if what == "original":
            return self.layers.wave.window(first, last)[0].clone()
        cuts = range(first, last, BLOCK_SAMPLES)
        blocks = [self._filtered(a, min(a + BLOCK_SAMPLES, last), what, soft) for a in cuts]
        return torch.cat(blocks)

    def listen(
        self,
        what: Part = "artifacts",
        *,
        t0: float = 0.0,
        t1: float | None = None,
        gain_db: float = 0.0,
    ) -> Any:
        """Notebook player of `audio`, at the recording's own level unless ``gain_db`` raises it.

        Raises `DependencyError` where IPython is not installed.
        """
        try:
            from IPython.display import Audio
        except ImportError as error:
            raise DependencyError(
                "listen needs IPython, which every notebook has: pip install ipython, "
                "or write .audio(...) to a file with specsegdiff.data.audio.write_audio"
            ) from error
        sound = playable(self.audio(what, t0=t0, t1=t1), gain_db=gain_db)
        return Audio(sound.numpy(), rate=self.axes.config.sample_rate, normalize=False)

    def plot(self, *, title: str | None = None) -> "Figure":
        """Figure of waveform, spectrogram with heat and mask, heatmap and spread; see `plots`."""
        maps = self.layers
        return explanation_figure(
            maps.wave,
            maps.heatmap,
            maps.spread,
            maps.mask,
            self.axes,
            regions=self.regions,
            title=self.provenance.name if title is None else title,
        )

    def save(self, folder: str | Path) -> None:
        """Write a folder of NumPy files and ``explanation.json`` that `load` reads bit for bit.

        It is written beside its place and renamed; an explanation that is there is replaced. Raises
        `OutputError` where the place cannot be written, or holds something else.
        """
        with replacing(Path(folder), marker=CARD_NAME) as temporary:
            hashes = {}
            for name, store in vars(self.layers).items():
                save_store(store, temporary / f"{name}.npy")
                hashes[name] = file_sha256(temporary / f"{name}.npy")
            card = self.to_dict() | {"sha256": hashes}
            text = json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False)
            (temporary / CARD_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Explanation":
        """Read what `save` wrote; maps of a long recording are read from its files when looked at.

        Raises `CheckpointError` where a file is missing or not the one that was saved, and
        `ConfigError` where ``explanation.json`` has missing, unknown or impossible fields.
        """
        folder = Path(folder)
        path = folder / CARD_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(
                f"{folder} holds no explanation ({error}); pass one that Explanation.save wrote"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON ({error}); save the explanation again") from error
        card = from_dict(_Card, values, where=str(path))
        axes = Axes(card.stft, card.n_samples)
        stores = {}
        for name, expected in vars(card.sha256).items():
            file = folder / f"{name}.npy"
            try:
                found = file_sha256(file)
            except OSError as error:
                raise CheckpointError(f"cannot read {file} ({error}); save it again") from error
            if found != expected:
                raise CheckpointError(
                    f"{file} has SHA-256 {found[:12]}..., expected {expected[:12]}...: "
                    "it was changed or damaged after saving; restore it, or explain again"
                )
            shape = (1, card.n_samples) if name == "wave" else axes.shape
            kind = torch.bool if name == "mask" else torch.float32
            stores[name] = load_store(file, shape=shape, dtype=kind)
        return cls(axes, card.regions, card.provenance, Layers(**stores), card.verdict)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, as plain data for JSON."""
        return {
            "format": FORMAT,
            "stft": dataclasses.asdict(self.axes.config),
            "n_samples": self.axes.n_samples,
            "provenance": dataclasses.asdict(self.provenance),
            "verdict": dataclasses.asdict(self.verdict) if self.verdict else None,
            "regions": [dataclasses.asdict(region) for region in self.regions],
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def __repr__(self) -> str:
        return (
            f"<Explanation of {self.provenance.name!r}: {self.axes.duration:.2f} s, "
            f"{len(self.regions)} regions>"
        )

    def __str__(self) -> str:
        return "\n".join([self._heading(), *map(str, self.regions), self._foot()])

    def _repr_html_(self) -> str:
        return render(
            self._heading(),
            self.plot(title=""),
            self.players(),
            self.regions,
            sample_rate=self.axes.config.sample_rate,
            alt=self.in_words(),
            words=f"<p>{escape(self._foot())}</p>" + (self._said()[1] if self.narrator else ""),
        )

    def to_html(self) -> str:
        """Document for a case file: maps, sounds, regions, words, and how all of it was made.

        One page without a link to anything outside.
        """
        return self._case_file().html()

    def to_pdf(self) -> bytes:
        """`to_html` as a PDF, without the sounds; the same explanation gives the same bytes."""
        return self._case_file().pdf()

    def _case_file(self) -> CaseFile:
        made, stft = self.provenance, self.axes.config
        text, html = self._said()
        facts = {
            "recording": made.source,
            "SHA-256 of the file": made.file_sha256 or "no file",
            "SHA-256 of its samples": f"{made.samples_sha256} (mono, {stft.sample_rate} Hz, float)",
            "length": f"{self.axes.n_samples} samples, {self.axes.duration:.3f} s",
            "segmenter": made.model,
            "SHA-256 of its weights": made.weights_sha256 or "none",
            "draws, steps, seed": f"{made.draws}, {made.steps}, {made.seed}",
            "share of the bins marked": f"{made.share:g}",
            "window, hop": f"{stft.n_fft}, {stft.hop} samples",
            "precision": made.precision,
            "detector": self.verdict.detector if self.verdict else "none",
            "SHA-256 of the detector's weights": self.verdict.weights_sha256
            if self.verdict
            else "none",
            "specsegdiff": made.version,
            "ran on": made.runtime or "not known",
            "same maps again": f"specsegdiff explain RECORDING --draws {made.draws} "
            f"--steps {made.steps} --seed {made.seed} --share {made.share:g}",
        }
        return CaseFile(
            title=f"Where {made.name} resembles synthetic speech",
            heading=f"{self._heading()}. {self._foot()}.",
            facts=tuple(facts.items()),
            picture=self.plot(title=""),
            alt=self.in_words(),
            players=self.players(),
            regions=self.regions,
            words=text,
            words_html=html,
            sample_rate=stft.sample_rate,
        )

    def _said(self) -> tuple[str, str]:
        """What the narrator says, as text and as HTML; why it says nothing, where it cannot."""
        try:
            return str(self.report), self.report._repr_html_()
        except ConfigError as error:
            return str(error), f"<p>{escape(str(error))}</p>"

    def in_words(self) -> str:
        """What the picture shows, for those who cannot see it."""
        top = self.axes.extent[3]
        shown = f"Spectrogram of {self.axes.duration:.2f} s up to {top:.0f} Hz with a heatmap"
        strongest = "; ".join(
            f"{r.id} {r.t0:.2f} to {r.t1:.2f} s, {r.f0:.0f} to {r.f1:.0f} Hz"
            for r in self.regions[:3]
        )
        return f"{shown}; strongest regions: {strongest}" if strongest else shown

    def _foot(self) -> str:
        held = sum(region.share for region in self.regions)
        foot = f"{len(self.regions)} regions hold {100 * held:.0f} % of the mask"
        if self.verdict:
            foot += f"; p(spoof) {self.verdict.p_spoof:.2f} by {self.verdict.detector}"
        return foot

    def players(self) -> list[tuple[str, Tensor]]:
        """Recording, artifacts and residual around the strongest region."""
        t0, t1 = self._strongest_stretch()
        original = self.audio("original", t0=t0, t1=t1)
        artifacts = self.audio("artifacts", t0=t0, t1=t1)
        residual = self.audio("residual", t0=t0, t1=t1)
        loud, quiet = float(original.abs().max()), float(artifacts.abs().max())
        # a twentieth of the bins is faint: raised to the recording's peak, and said so
        gain = 20 * math.log10(loud / quiet) if loud > 0 and quiet > 0 else 0.0
        cut = "" if t1 - t0 >= self.axes.duration else f", {t0:.1f}-{t1:.1f} s"
        return [
            (f"recording{cut}", original),
            (f"artifacts{cut} ({gain:+.0f} dB)", playable(artifacts, gain_db=gain)),
            (f"residual{cut}", residual),
        ]

    def _filtered(self, first: int, last: int, what: str, soft: bool) -> Tensor:
        """Samples of a part, from a stretch so wide that its ends do not matter."""
        config, n = self.axes.config, self.axes.n_samples
        # a sample depends on frames within half a window, and these on samples within another half
        begin = max(0, first - config.n_fft) // config.hop
        end = min(n, last + config.n_fft)
        stretch = self.layers.wave.window(begin * config.hop, end)[0]
        stft = Stft(config)
        spec = stft(stretch)
        store = self.layers.heatmap if soft else self.layers.mask
        weight = store.window(begin, begin + spec.shape[1]).float()
        if what == "residual":
            weight = 1 - weight
        wave = stft.inverse(spec * weight, length=len(stretch))
        return wave[first - begin * config.hop : last - begin * config.hop]

    def _strongest_stretch(self) -> tuple[float, float]:
        """Half a minute around the strongest region."""
        middle = (self.regions[0].t0 + self.regions[0].t1) / 2 if self.regions else 0.0
        t0 = max(0.0, min(middle - PLAYER_SECONDS / 2, self.axes.duration - PLAYER_SECONDS))
        return t0, min(self.axes.duration, t0 + PLAYER_SECONDS)

    def _heading(self) -> str:
        made = self.provenance
        weights = f" ({made.weights_sha256[:12]})" if made.weights_sha256 else ""
        return (
            f"{made.name}: {self.axes.duration:.2f} s at {self.axes.config.sample_rate} Hz, "
            f"model {made.model}{weights}, draws {made.draws}, steps {made.steps}, seed {made.seed}"
        )


def assemble(
    heatmap: Map | MapStore,
    spread: Map | MapStore,
    wave: Wave | MapStore,
    *,
    config: StftConfig,
    source: str,
    model: str,
    weights_sha256: str,
    seed: int,
    draws: int,
    steps: int,
    share: float = 0.05,
    precision: str = "float32",
    file_sha256: str = "",
    runtime: str = "",
    max_regions: int = 20,
    verdict: Verdict | None = None,
    narrator: Callable[[Explanation], Words] | None = None,
    answerer: Callable[..., Words] | None = None,
) -> Explanation:
    """Make an `Explanation` of a heatmap and its spread ``(f, t)`` for a waveform ``(n,)``.

    Finds the mask, the ``share`` of bins with the most heat, and its regions, in memory that does
    not grow with the recording where the maps are stores. Raises `ShapeError` where shapes do not
    fit, or heat lies outside [0, 1].
    """
    heat, samples = MapStore.of(heatmap), MapStore.of(wave)
    axes = Axes(config, samples.shape[1])
    mask = top_share_mask(heat, share=share)
    layers = Layers(heatmap=heat, spread=MapStore.of(spread), mask=mask, wave=samples)
    regions = tuple(find_regions(mask, heat, axes, max_regions=max_regions))
    provenance = Provenance(
        source=source,
        samples_sha256=_samples_sha256(samples),
        model=model,
        weights_sha256=weights_sha256,
        seed=seed,
        draws=draws,
        steps=steps,
        version=_version(),
        share=share,
        precision=precision,
        file_sha256=file_sha256,
        runtime=runtime,
    )
    return Explanation(axes, regions, provenance, layers, verdict, narrator, answerer)


@dataclass(frozen=True)
class _Hashes:
    heatmap: str
    spread: str
    mask: str
    wave: str


@dataclass(frozen=True)
class _Card:
    """Fields of ``explanation.json``."""

    format: str
    stft: StftConfig
    n_samples: int
    provenance: Provenance
    verdict: Verdict | None
    regions: tuple[Region, ...]
    sha256: _Hashes

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ConfigError(f"expected format {FORMAT!r}, got {self.format!r}; load another file")
        if self.n_samples < 1:
            raise ConfigError(f"n_samples must be positive, got {self.n_samples}")


def _samples_sha256(wave: MapStore) -> str:
    digest = hashlib.sha256()
    for _, block in wave.blocks(BLOCK_SAMPLES):
        digest.update(block.contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _version() -> str:
    try:
        return importlib.metadata.version("specsegdiff")
    except importlib.metadata.PackageNotFoundError:
        return "source"

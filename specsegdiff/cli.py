"""The command line: a thin door to the functions of the library.

Exit codes: 0 done, 1 unexpected failure, 2 wrong usage or bad input, 130 interrupted. With
``--json``, standard output holds one JSON document and nothing else, and an error is one JSON
document on standard error.
"""

import importlib
import importlib.metadata
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from specsegdiff.errors import (
    ConfigError,
    CorpusError,
    DependencyError,
    OutputError,
    PairError,
    SpecSegDiffError,
)

if TYPE_CHECKING:
    from specsegdiff.data.pairs import Pair
    from specsegdiff.data.synthesis import Source
    from specsegdiff.data.vocoders import Vocoder
    from specsegdiff.explanation import Explanation
    from specsegdiff.models.segdiff import SpecSegDiff
    from specsegdiff.shapes import Map, Wave

EXAMPLE = "example.flac"


class _Door(TyperGroup):
    """Turns every way to end into an exit code and at most one line of text."""

    def main(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]
        words = sys.argv[1:] if args is None else list(args)
        as_json = "--json" in words
        try:
            code = super().main(words, **options | {"standalone_mode": False})
        except SpecSegDiffError as error:
            code = _tell(error, str(error), code=2, as_json=as_json)
        except typer.TyperException as error:
            text = f"{error.format_message()} See specsegdiff --help."
            code = _tell(error, text, code=error.exit_code, as_json=as_json)
        except (typer.Abort, KeyboardInterrupt):
            code = 130
        except Exception as error:
            if not as_json:
                traceback.print_exc()
            text = f"unexpected {type(error).__name__}: {error}; please report it"
            code = _tell(error, text, code=1, as_json=as_json)
        sys.exit(code or 0)


app = typer.Typer(
    cls=_Door, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)
train_app = typer.Typer(help="Train a model.", rich_markup_mode=None)
app.add_typer(train_app, name="train")

Model = Annotated[
    str | None, typer.Option(help="Folder or Hub id of a model; by default the embedded one.")
]
Draws = Annotated[
    int | None, typer.Option(min=1, help="Masks that the heatmap averages; default: the model's.")
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Denoising steps a draw; default: the model's.")
]
Seed = Annotated[int, typer.Option(help="Seed; the same seed gives the same result.")]
Device = Annotated[str, typer.Option(help="Where the networks run: cpu, cuda, cuda:1, ...")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON and nothing else; errors are JSON, too.")
]


def main() -> None:
    """Run the command line; the entry point ``specsegdiff``."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"specsegdiff {_version_of('specsegdiff')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and end."
        ),
    ] = False,
) -> None:
    """Show where a voice recording was synthesised, and how sure that is."""


@app.command()
def explain(
    source: Annotated[
        Path | None, typer.Argument(help="Recording: any format, rate, length and channel count.")
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Explain the recording in the package.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for maps, picture, sound, and a report in HTML, PDF and JSON."),
    ] = None,
    draws: Draws = None,
    steps: Steps = None,
    seed: Seed = 0,
    share: Annotated[float, typer.Option(help="Share of the bins that the mask marks.")] = 0.05,
    model: Model = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Show where one recording was synthesised: print its regions; write maps, picture and report.

    A folder that already holds an explanation is replaced, any other non-empty folder is refused.
    """
    from specsegdiff import api

    if (source is None) != example:
        raise ConfigError("expected either a recording or --example, got both or neither")
    _check_device(device)
    explanation = api.explain(
        source or api.asset(EXAMPLE),
        model=_model(model),
        draws=draws,
        steps=steps,
        seed=seed,
        share=share,
        device=device,
        progress=False if as_json else None,
    )
    if out is not None:
        _save(explanation, out)
    found = _true_share(explanation) if example else None
    if as_json:
        more = {"out": out and str(out)} | ({} if found is None else {"true_share": found})
        print(json.dumps(explanation.to_dict() | more, ensure_ascii=False))
        return
    heading, *_, foot = str(explanation).splitlines()
    _print_table(
        ("region", "time (s)", "frequency (Hz)", "heat", "of the mask"),
        [
            (
                region.id,
                f"{region.t0:.2f}-{region.t1:.2f}",
                f"{region.f0:.0f}-{region.f1:.0f}",
                f"{region.score:.2f}",
                f"{100 * region.share:.1f} %",
            )
            for region in explanation.regions
        ],
        heading=heading,
    )
    print(foot)
    if found is not None:
        print(f"true mask: {100 * found:.0f} % of the marked bins lie in it, by chance 5 %")
    if out is not None:
        print(f"wrote {out / 'explanation.png'}, {out / 'report.html'} and the maps beside them")


def _add_training(what: str, text: str) -> None:
    """A command that trains what a module of `specsegdiff.train` trains; they differ in nothing
    else."""

    @train_app.command(what, help=f"{text} Paths in the YAML start here.")
    def command(
        config: Annotated[Path, typer.Option(help=f"YAML of the run, see configs/{what}.")],
        out: Annotated[Path, typer.Option(help="Folder for checkpoints, logs and the model.")],
        resume: Annotated[
            bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")
        ] = False,
        seed: Annotated[int | None, typer.Option(help="Overrides the seed of the YAML.")] = None,
        accelerator: Annotated[
            str, typer.Option(help="Lightning's accelerator: auto, cpu, gpu.")
        ] = "auto",
    ) -> None:
        _train(what, config, out, resume=resume, seed=seed, accelerator=accelerator)


_add_training(
    "segmenter", "Train a SpecSegDiff or ADDSegDiff; the averaged model lands in OUT/model."
)
_add_training(
    "detector", "Train a Wav2Vec2-AASIST; the averaged, calibrated model lands in OUT/model."
)
_add_training(
    "narrator",
    "Train one stage of a vision-language narrator; its adapter lands in OUT/adapter.",
)


def _train(
    what: str, config: Path, out: Path, *, resume: bool, seed: int | None, accelerator: str
) -> None:
    try:
        module = importlib.import_module(f"specsegdiff.train.{what}")
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"training needs {error.name}; pip install 'specsegdiff[train]'"
        ) from error
    settings = module.read_config(config, **({} if seed is None else {"seed": seed}))
    _make_folder(out)
    module.train(settings, out, resume=resume, accelerator=accelerator)
    print(f"wrote {out / ('adapter' if what == 'narrator' else 'model')}")


@app.command()
def evaluate(
    pairs: Annotated[Path, typer.Option(help="Manifest of pairs, or the folder of pairs.csv.")],
    split: Annotated[str, typer.Option(help="Split to measure on: val, test, ...")],
    draws: Draws = None,
    steps: Steps = None,
    seed: Seed = 0,
    model: Model = None,
    device: Device = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="JSON file for settings, summary and all rows.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a model's maps against the true masks of real/vocoded pairs; numbers are percent.

    Masks are the map's own top share. Brackets hold a 95 % bootstrap interval by source group.
    """
    from specsegdiff import api
    from specsegdiff.benchmark import SCORES, score_maps, summarise
    from specsegdiff.data.manifest import read_manifest
    from specsegdiff.hub import weights_hash

    _check_device(device)
    chosen = read_manifest(pairs, split=split, check_files=True)
    network = _model(model) or api.default_model()
    rate = network.config.stft.sample_rate
    draws, steps = draws or network.config.draws, steps or network.config.steps

    def heatmap(pair: "Pair", fake: "Wave") -> "Map":
        return api.explain(
            fake,
            rate,
            model=network,
            detector=False,
            draws=draws,
            steps=steps,
            seed=seed,
            device=device,
            progress=False,
        ).heatmap

    with _progress("pairs") as advance:
        rows = score_maps(heatmap, chosen, stft=network.config.stft, progress=advance)
    summary = {"all": summarise(rows)["all"]}
    summary |= {
        name: part
        for field in ("vocoder_seen", "family")
        for name, part in summarise(rows, by=field).items()
    }
    result = {
        "meta": {
            "pairs": str(pairs),
            "split": split,
            "model": network.name,
            "weights_sha256": weights_hash(network),
            "draws": draws,
            "steps": steps,
            "seed": seed,
            "device": device,
            "versions": {name: _version_of(name) for name in ("specsegdiff", "torch", "diffusers")},
        },
        "summary": summary,
        "rows": rows,
    }
    if out is not None:
        _write_json(out, result)
    if as_json:
        print(json.dumps(result))
        return
    _print_table(
        ("", "pairs", "GDice", "Dice", "IoU", "AP"),
        [
            (name, str(part["pairs"]), *(_cell(part.get(score)) for score in SCORES))
            for name, part in summary.items()
        ],
        heading=f"{network.name} on {len(rows)} pairs of {pairs}, split {split}",
    )


@app.command()
def benchmark(
    pairs: Annotated[Path, typer.Option(help="Manifest of pairs, or the folder of pairs.csv.")],
    split: Annotated[str, typer.Option(help="Split to measure on: val, test, ...")],
    methods: Annotated[str, typer.Option(help="Names with commas, as packages register them.")],
    out: Annotated[Path, typer.Option(help="JSON file; rows are kept beside it as they come.")],
    detector: Annotated[
        str, typer.Option(help="Folder of a detector, path of a published AASIST, or 'embedded'.")
    ] = "embedded",
    ranking: Annotated[
        str, typer.Option(help="Bins of a signed map by their 'absolute' value, or by 'value'.")
    ] = "absolute",
    every: Annotated[int, typer.Option(min=1, help="Keep every n-th pair.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Measure methods on pairs: against true masks, against a detector, in seconds and memory.

    The table shows means; OUT holds 95 % bootstrap intervals by source group, and all rows. Run the
    same command again to go on after an interruption.
    """
    from specsegdiff.benchmark import entries, load_detector, load_methods, measure
    from specsegdiff.benchmark.measurement import fingerprint
    from specsegdiff.data.manifest import read_manifest

    chosen = read_manifest(pairs, split=split, check_files=True)[::every]
    model = load_detector(detector)
    explainers = load_methods([name.strip() for name in methods.split(",")], model)
    with _progress("pairs") as advance:
        rows = measure(
            explainers,
            chosen,
            detector=model,
            ranking=ranking,  # type: ignore[arg-type]  # measure checks it
            journal=out.with_suffix(".rows.jsonl"),
            progress=advance,
        )
    summary = entries(rows)
    result = {
        "meta": {
            "pairs": str(pairs),
            "split": split,
            "every": every,
            "detector": fingerprint(model),
            "ranking": ranking,
            "versions": {name: _version_of(name) for name in ("specsegdiff", "torch")},
        },
        "summary": summary,
        "rows": [{k: v for k, v in row.items() if k != "marked"} for row in rows],
    }
    _write_json(out, result)
    if as_json:
        print(json.dumps(result))
        return
    print(f"{len(chosen)} pairs of {pairs}, split {split}; {out} holds intervals and rows")
    for columns in _COLUMNS:
        _print_table(
            ("method", "vocoders", *columns.values()),
            [
                (entry["method"], part, *(_mean(entry[part].get(name), name) for name in columns))
                for entry in summary
                for part in ("seen", "unseen", "unknown")
                if part in entry
            ],
        )


@app.command("make-pairs")
def make_pairs(
    sources: Annotated[
        list[Path] | None, typer.Argument(help="Recordings, and folders of recordings.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for real/, fake/ and pairs.csv.")] = Path(
        "pairs"
    ),
    manifest: Annotated[
        Path | None, typer.Option(help="Take the real recordings of its --split, too.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split of --manifest to take, and of all pairs made.")
    ] = "train",
    vocoders: Annotated[
        str | None, typer.Option(help="Names with commas; default: all that run here.")
    ] = None,
    per_recording: Annotated[
        int | None, typer.Option(min=1, help="Vocoders drawn for each recording; default: all.")
    ] = None,
    seed: Seed = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Make real/vocoded pairs out of any speech, with the vocoders and codecs on this machine."""
    from specsegdiff.data import synthesis

    todo = [*_sources(sources or [], split)]
    if manifest is not None:
        todo += _real_recordings(manifest, split)
    if not todo:
        raise CorpusError("expected recordings, folders of recordings or --manifest, got none")
    chosen = _vocoders(vocoders)
    _make_folder(out)
    with _progress("recordings") as advance:
        pairs = synthesis.make_pairs(
            todo,
            out,
            vocoders=chosen,
            per_source=per_recording,
            seed=seed,
            jobs=jobs,
            progress=advance,
        )
    if not pairs:
        raise PairError(f"no recording made a pair; {out / 'rejected.csv'} says why")
    with (out / "rejected.csv").open(encoding="utf-8") as file:
        rejected = sum(1 for _ in file) - 1
    result = {
        "pairs": len(pairs),
        "rejected": rejected,
        "vocoders": [v.name for v in chosen],
        "manifest": str(out / "pairs.csv"),
    }
    if as_json:
        print(json.dumps(result))
    else:
        print(f"wrote {len(pairs)} pairs to {out / 'pairs.csv'}; rejected {rejected}")


def _tell(error: BaseException, text: str, *, code: int, as_json: bool) -> int:
    line = " ".join(text.split())
    if as_json:
        report = {"error": {"kind": type(error).__name__, "message": line, "exit_code": code}}
        print(json.dumps(report), file=sys.stderr)
    else:
        print(f"error: {line}", file=sys.stderr)
    return code


def _model(source: str | None) -> "SpecSegDiff | None":
    from specsegdiff.models.segdiff import SpecSegDiff

    return None if source is None else SpecSegDiff.from_pretrained(source)


def _true_share(explanation: "Explanation") -> float:
    """Share of the marked bins that lie in the true mask of the example in the package."""
    from specsegdiff.data.voice import example_mask

    marked = explanation.mask
    return float((marked & example_mask()).sum() / marked.sum())


def _check_device(name: str) -> None:
    import torch

    try:
        torch.zeros(1, device=name)
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # torch asserts that it was built for the device
        raise ConfigError(
            f"cannot compute on device {name!r} ({error}); use cpu, or cuda where there is one"
        ) from error


def _save(explanation: "Explanation", out: Path) -> None:
    """Write an explanation with picture, sound and reports; the folder appears whole or not at
    all."""
    from specsegdiff.archive import replacing
    from specsegdiff.data.audio import write_audio
    from specsegdiff.explanation import CARD_NAME
    from specsegdiff.notebook import playable

    with replacing(out, marker=CARD_NAME) as folder:
        explanation.save(folder)
        explanation.plot().savefig(folder / "explanation.png", dpi=120)
        write_audio(
            folder / "artifacts.flac",
            playable(explanation.audio("artifacts")),
            sample_rate=explanation.axes.config.sample_rate,
        )
        (folder / "report.html").write_text(explanation.to_html(), encoding="utf-8")
        (folder / "report.pdf").write_bytes(explanation.to_pdf())
        # too short a recording has no cells to report on; the page says so
        with suppress(ConfigError):
            said = json.dumps(explanation.report.to_dict(), indent=2, ensure_ascii=False)
            (folder / "report.json").write_text(said + "\n", encoding="utf-8")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {folder}: {error}; choose another folder") from error


def _sources(paths: Sequence[Path], split: str) -> "Iterator[Source]":
    from specsegdiff.data.pairs import AUDIO_SUFFIXES
    from specsegdiff.data.synthesis import Source

    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.suffix.lower() in AUDIO_SUFFIXES and not file.name.startswith("."):
                    name = "-".join(file.relative_to(path).with_suffix("").parts)
                    yield Source(file, id=name, split=split)
        elif path.is_file():
            yield Source(path, split=split)
        else:
            raise CorpusError(f"no file or folder {path}; check its name")


def _real_recordings(manifest: Path, split: str) -> "list[Source]":
    """Real recordings of a manifest's split, each once, with the groups that keep splits apart."""
    from specsegdiff.data.manifest import read_manifest
    from specsegdiff.data.synthesis import Source

    pairs = read_manifest(manifest, split=split, check_files=True)
    unique = {pair.real: pair for pair in pairs}
    return [
        Source(path, group=pair.source_group, speaker=pair.speaker, split=split)
        for path, pair in unique.items()
    ]


def _vocoders(names: str | None) -> "list[Vocoder]":
    from specsegdiff.data.vocoders import vocoder_bank

    bank = {vocoder.name: vocoder for vocoder in vocoder_bank()}
    if names is None:
        return list(bank.values())
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in bank]:
        raise ConfigError(f"no vocoder {unknown[0]!r} on this machine; there are {', '.join(bank)}")
    return [bank[name] for name in wanted]


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source"


_COLUMNS = (
    {
        "gdice": "GDice",
        "foreground_dice": "Dice",
        "average_precision": "AP",
        "seconds": "s",
        "peak_mb": "MB",
    },
    {"ai": "AI", "ad": "AD", "ag": "AG", "fid_in": "Fid-In", "ff": "FF"},
)
"Columns of the benchmark's two tables: truth and cost, detector."


def _mean(score: Sequence[float] | None, name: str) -> str:
    if score is None:
        return "-"
    return f"{score[0]:.2f}" if name in ("ff", "seconds") else f"{score[0]:.1f}"


def _write_json(out: Path, result: object) -> None:
    from specsegdiff.hub import write_atomic

    try:
        write_atomic(out, json.dumps(result, indent=1).encode() + b"\n")
    except OSError as error:
        raise OutputError(
            f"cannot write {out}: {error}; choose a file in a writable folder"
        ) from error


def _cell(score: Sequence[float] | None) -> str:
    if score is None:
        return "-"
    mean, *bounds = (f"{value:.1f}" for value in score)
    return f"{mean} [{', '.join(bounds)}]" if bounds else mean


def _print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, heading: str = ""
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        # as Text, so that brackets are no markup
        table.add_row(*map(Text, row))
    if heading:
        print(heading)
    Console(highlight=False).print(table)


@contextmanager
def _progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, in a terminal only."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(unit, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

"""Commands that measure models and methods on pairs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specsegdiff.cli.options import (
    AsJson,
    Device,
    Draws,
    Model,
    Seed,
    Steps,
    check_device,
    load_model,
)
from specsegdiff.cli.output import (
    cell,
    check_file,
    print_table,
    progress_bar,
    version_of,
    write_json,
)

if TYPE_CHECKING:
    from specsegdiff.data.pairs import Pair
    from specsegdiff.shapes import Map, Wave

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

    check_device(device)
    if out is not None:
        check_file(out)
    chosen = read_manifest(pairs, split=split, check_files=True)
    network = load_model(model) or api.default_model()
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

    with progress_bar("pairs") as advance:
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
            "versions": {name: version_of(name) for name in ("specsegdiff", "torch", "diffusers")},
        },
        "summary": summary,
        "rows": rows,
    }
    if out is not None:
        write_json(out, result)
    if as_json:
        print(json.dumps(result))
        return
    print_table(
        ("", "pairs", "GDice", "Dice", "IoU", "AP"),
        [
            (name, str(part["pairs"]), *(cell(part.get(score)) for score in SCORES))
            for name, part in summary.items()
        ],
        heading=f"{network.name} on {len(rows)} pairs of {pairs}, split {split}",
    )


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
    from specsegdiff.benchmark.fingerprints import fingerprint
    from specsegdiff.data.manifest import read_manifest

    check_file(out)
    chosen = read_manifest(pairs, split=split, check_files=True)[::every]
    model = load_detector(detector)
    explainers = load_methods([name.strip() for name in methods.split(",")], model)
    with progress_bar("pairs") as advance:
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
            "versions": {name: version_of(name) for name in ("specsegdiff", "torch")},
        },
        "summary": summary,
        "rows": [{k: v for k, v in row.items() if k != "marked"} for row in rows],
    }
    write_json(out, result)
    if as_json:
        print(json.dumps(result))
        return
    print(f"{len(chosen)} pairs of {pairs}, split {split}; {out} holds intervals and rows")
    for columns in _COLUMNS:
        print_table(
            ("method", "vocoders", *columns.values()),
            [
                (entry["method"], part, *(_mean(entry[part].get(name), name) for name in columns))
                for entry in summary
                for part in ("seen", "unseen", "unknown")
                if part in entry
            ],
        )


def _mean(score: Sequence[float] | None, name: str) -> str:
    if score is None:
        return "-"
    return f"{score[0]:.2f}" if name in ("ff", "seconds") else f"{score[0]:.1f}"

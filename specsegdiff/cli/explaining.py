"""Commands that explain recordings: one, a corpus, and the networks for elsewhere."""

import dataclasses
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    load_segmenter,
)
from specsegdiff.cli.output import print_table
from specsegdiff.errors import ConfigError

if TYPE_CHECKING:
    from specsegdiff.explanation import Explanation

EXAMPLE = "example.flac"

ENDED_EARLY = 75
"Exit code of a run that a signal ended: EX_TEMPFAIL of sysexits.h, which schedulers may requeue."


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
    narrator: Annotated[
        Literal["rules", "small"],
        typer.Option(help="Who writes the report of --out: rules, or the embedded model."),
    ] = "rules",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Show where one recording was synthesised: print its regions; write maps, picture and report.

    A folder that already holds an explanation is replaced, any other non-empty folder is refused.
    """
    from specsegdiff import api

    if (source is None) != example:
        raise ConfigError("expected either a recording or --example, got both or neither")
    check_device(device)
    explanation = api.explain(
        source or api.asset(EXAMPLE),
        model=load_segmenter(model),
        # nothing but the files of --out holds a report
        narrator=api.small_narrator() if narrator == "small" and out is not None else None,
        draws=draws,
        steps=steps,
        seed=seed,
        share=share,
        device=device,
        progress=False if as_json else None,
    )
    if out is not None:
        _save(explanation, out)
    if as_json:
        more = {"out": out and str(out)} | (
            {"true_share": _true_share(explanation)} if example else {}
        )
        print(json.dumps(explanation.to_dict() | more, ensure_ascii=False))
        return
    heading, *_, foot = str(explanation).splitlines()
    print_table(
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
    if example:
        found = _true_share(explanation)
        print(
            "true mask: no bin is marked, so none can lie in it"
            if found is None
            else f"true mask: {100 * found:.0f} % of the marked bins lie in it, by chance 5 %"
        )
    if out is not None:
        print(f"wrote {out / 'explanation.png'}, {out / 'report.html'} and the maps beside them")


def explain_corpus(
    source: Annotated[
        Path,
        typer.Argument(help="CSV or parquet with the columns path and maybe id; or a folder."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for parts, plan and markers.")],
    draws: Draws = None,
    steps: Steps = None,
    seed: Seed = 0,
    share: Annotated[float, typer.Option(help="Share of the bins that a mask marks.")] = 0.05,
    model: Model = None,
    detector: Annotated[
        bool, typer.Option(help="Whether the embedded detector judges each recording.")
    ] = True,
    full_maps: Annotated[
        bool, typer.Option("--full-maps", help="Keep heatmaps too, 3.8 MB a minute uncompressed.")
    ] = False,
    device: Device = "cpu",
    precision: Annotated[
        str | None,
        typer.Option(help="float32 or bfloat16; default: what is fastest here. Machines differ."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes; default: one a core, or one with an accelerator."),
    ] = None,
    shard_seconds: Annotated[
        float, typer.Option(help="Audio in a shard, which is what a kill can cost a worker.")
    ] = 600.0,
    rank: Annotated[
        int | None,
        typer.Option(help="Number of this machine, from 0; default: torchrun or srun."),
    ] = None,
    world: Annotated[int | None, typer.Option(help="How many machines there are.")] = None,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that shards at hand have after SIGTERM.")
    ] = 20.0,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run on a Ray cluster, with --workers actors.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Explain every recording of a manifest into parquet parts; one that fails is a row that says
    why.

    Run the same command again to go on after an interruption. Under torchrun or srun, each process
    takes its share. specsegdiff.bulk.read_parts reads OUT.
    """
    from specsegdiff import bulk

    if ray and (rank, world) != (None, None):
        raise ConfigError(
            "expected either --ray or --rank and --world, got both; Ray counts itself"
        )
    check_device(device)
    settings = bulk.Settings(
        model=model,
        detector=detector,
        draws=draws,
        steps=steps,
        seed=seed,
        share=share,
        full_maps=full_maps,
        device=device,
        precision=precision,
    )
    if ray:
        summary = bulk.explain_on_ray(
            source,
            out,
            settings=settings,
            workers=workers or 1,
            gpus=float(device.startswith("cuda")),
            shard_seconds=shard_seconds,
        )
    else:
        summary = bulk.explain_corpus(
            source,
            out,
            settings=settings,
            workers=workers,
            shard_seconds=shard_seconds,
            rank=rank,
            world=world,
            grace=grace,
            progress=False if as_json else None,
        )
    if as_json:
        told = dataclasses.asdict(summary) | {"complete": summary.complete, "out": str(out)}
        print(json.dumps(told))
    else:
        print(
            f"{summary.files} recordings in {summary.finished} of {summary.shards} shards, "
            f"{summary.errors} of them with an error in their row, in {out / 'parts'}"
        )
        if not summary.complete:
            print("ended early; run the same command again to go on")
    if not summary.complete:
        raise typer.Exit(ENDED_EARLY)


def export(
    out: Annotated[Path, typer.Argument(help="Folder for encoder.onnx and denoiser.onnx.")],
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Write a model's networks as ONNX graphs with free batch and time axes.

    Needs the onnx extra. specsegdiff.export.OnnxSegmenter runs them.
    """
    from specsegdiff.api import default_model
    from specsegdiff.export import DENOISER_NAME, ENCODER_NAME, export_onnx

    export_onnx(load_model(model) or default_model(), out)
    files = [str(out / name) for name in (ENCODER_NAME, DENOISER_NAME)]
    if as_json:
        print(json.dumps({"files": files}))
        return
    print(f"wrote {files[0]} and {files[1]}")


def _true_share(explanation: "Explanation") -> float | None:
    """Share of the marked bins that lie in the true mask of the example in the package; None where
    none is marked."""
    from specsegdiff.data.voice import example_mask

    marked = explanation.mask
    if not marked.any():
        return None
    return float((marked & example_mask()).sum() / marked.sum())


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

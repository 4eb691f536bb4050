"""Commands that make what is trained on: pairs, and examples for narrators."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specsegdiff.cli.options import AsJson, Model, Seed, load_model
from specsegdiff.cli.output import make_folder, progress_bar
from specsegdiff.errors import ConfigError, CorpusError, PairError

if TYPE_CHECKING:
    from specsegdiff.data.synthesis import Source
    from specsegdiff.data.vocoders import Vocoder
    from specsegdiff.explanation import Explainer


def make_pairs(
    sources: Annotated[
        list[Path] | None, typer.Argument(help="Recordings, and folders of recordings.")
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Folder for real/, fake/ and pairs.csv; other pairs in it stay."),
    ] = Path("pairs"),
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
    make_folder(out)
    with progress_bar("recordings") as advance:
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


def make_examples(
    pairs: Annotated[Path, typer.Option(help="Manifest of pairs, or the folder of pairs.csv.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and examples.jsonl.")],
    split: Annotated[str, typer.Option(help="Split of the manifest to take.")] = "train",
    heat: Annotated[
        bool, typer.Option("--heat", help="Draw the heatmap beside the spectrogram.")
    ] = False,
    small: Annotated[
        bool, typer.Option("--small", help="The picture of the small model; it has the heatmap.")
    ] = False,
    crops: Annotated[
        int, typer.Option(min=0, help="Stretches of each recording beside the whole one.")
    ] = 0,
    every: Annotated[int, typer.Option(min=1, help="Take every so manieth pair.")] = 1,
    model: Model = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Make pictures, questions and answers out of pairs, to train a narrator on; the heatmap is one
    draw of one step."""
    from specsegdiff.data.manifest import read_manifest
    from specsegdiff.narration.picture import SMALL_PICTURE, PictureConfig
    from specsegdiff.train import examples

    todo = read_manifest(pairs, split=split, check_files=True)[::every]
    picture = SMALL_PICTURE if small else PictureConfig(heat=heat)
    make_folder(out)
    with progress_bar("pairs") as advance:
        made = examples.make_examples(
            todo,
            out,
            config=examples.ExampleConfig(crops=crops, seed=seed, picture=picture),
            explainer=_one_draw(model) if picture.heat else None,
            progress=advance,
        )
    if not made:
        raise PairError("no pair has a true mask in three cells; pass other pairs")
    result = {"examples": len(made), "pairs": len(todo), "file": str(out / "examples.jsonl")}
    if as_json:
        print(json.dumps(result))
    else:
        print(f"wrote {len(made)} examples from {len(todo)} pairs to {out / 'examples.jsonl'}")


def _one_draw(source: str | None) -> "Explainer":
    """Heatmaps of one draw and one step."""
    from specsegdiff.api import default_model
    from specsegdiff.sampling import sample

    model = load_model(source) or default_model()
    return lambda wave: sample(model, model.condition(wave), draws=1, steps=1).mean


def _sources(paths: Sequence[Path], split: str) -> "Iterator[Source]":
    from specsegdiff.data.pairs import has_audio_name
    from specsegdiff.data.synthesis import Source

    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if has_audio_name(file):
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

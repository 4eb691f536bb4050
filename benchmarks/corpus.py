"""Explaining a corpus: hours of audio per hour, what the run itself costs, and what parts weigh.

    python benchmarks/corpus.py

writes ``benchmarks/results/corpus.json``. Everything is a ratio within one run, for these machines
are noisy. Each measurement runs in a process of its own.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specsegdiff.bulk import Settings, explain_corpus, heatmap_of, mask_of, read_parts
from specsegdiff.bulk.parts import table_bytes
from specsegdiff.bulk.place import cores
from specsegdiff.bulk.rows import SIDE, Row, pack_mask, schema

RESULTS = Path(__file__).parent / "results"
ASSETS = Path(__file__).parents[1] / "specsegdiff" / "assets"
RATE = 16_000
CLIP_SECONDS = 4.0


def noise(seed: int) -> np.ndarray:
    """Something to explain; time does not depend on what is said."""
    random = np.random.default_rng(seed)
    return 0.05 * random.standard_normal(round(CLIP_SECONDS * RATE)).astype(np.float32)


@dataclass(frozen=True)
class Free:
    """Explains in no time: what is left is the run itself."""

    device: str = "cpu"

    def identity(self) -> dict[str, Any]:
        return {"weights": {}, "settings": {}}

    def open(self) -> Callable[[str | bytes], Row]:
        mask = np.random.default_rng(0).random((513, 251)) < 0.05
        row = {"bins": 513, "frames": 251, "mask": pack_mask(mask), "thumbnail": bytes(SIDE**2)}
        return lambda source: row


def growth(files: int) -> dict[str, float]:
    """Milliseconds a recording of a run whose explainer costs nothing, and of finding it done."""
    import soundfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        soundfile.write(folder / "clip.wav", noise(0), RATE)
        lines = ["id,path", *(f"{i},clip.wav" for i in range(files))]
        (folder / "manifest.csv").write_text("\n".join(lines))

        def run() -> float:
            start = time.perf_counter()
            summary = explain_corpus(
                folder / "manifest.csv", folder / "out", settings=Free(), workers=0, progress=False
            )
            if not summary.complete:
                raise RuntimeError(f"the run ended early: {summary}")
            return 1000 * (time.perf_counter() - start) / files

        # imports are no part of it
        table_bytes([{"id": "0", "path": ""}], schema())
        return {"ms_per_file": run(), "ms_per_file_again": run()}


def throughput(clips: int) -> dict[str, Any]:
    """Hours of 4 s clips explained per hour with the embedded models: by a plain loop on one
    thread, and by runs with one worker process, and one a core; loading is no part of it."""
    import soundfile
    import torch

    torch.set_num_threads(1)
    explain = Settings().open()
    result: dict[str, Any] = {"clips": clips, "clip_s": CLIP_SECONDS, "cores": cores()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "audio").mkdir()
        for i in range(clips):
            soundfile.write(folder / "audio" / f"{i}.wav", noise(i), RATE)
        explain(str(folder / "audio" / "0.wav"))
        start = time.perf_counter()
        for i in range(clips):
            explain(str(folder / "audio" / f"{i}.wav"))
        result["loop"] = clips * CLIP_SECONDS / (time.perf_counter() - start)
        for workers in sorted({1, cores()}):
            times: list[float] = []

            def note(done: int, total: int, times: list[float] = times) -> None:
                times.append(time.perf_counter())

            explain_corpus(
                folder / "audio",
                folder / f"out{workers}",
                workers=workers,
                shard_seconds=2 * CLIP_SECONDS,
                progress=note,
            )
            # from the first shards on, when all processes have loaded
            rest = times[workers - 1 :]
            audio = 2 * CLIP_SECONDS * (len(rest) - 1)
            result[f"workers_{workers}"] = audio / (rest[-1] - rest[0])
    result["one_worker_over_loop"] = result["workers_1"] / result["loop"]
    result["all_cores_over_one_worker"] = result[f"workers_{cores()}"] / result["workers_1"]
    return result


def weight(audio: str) -> dict[str, float]:
    """Bytes a minute of audio in a parquet part, of all recordings below a folder."""
    with tempfile.TemporaryDirectory() as name:
        settings = Settings(full_maps=True, detector=False)
        explain_corpus(audio, name, settings=settings, workers=0)
        rows = [row for row in read_parts(name) if row["error"] is None]
    minutes = sum(row["duration"] for row in rows) / 60
    full = len(table_bytes(rows, schema()))
    kept = len(table_bytes([row | {"heatmap": None} for row in rows], schema()))
    bare = [row | {"heatmap": None, "mask": None} for row in rows]
    without = len(table_bytes(bare, schema()))
    empty = len(table_bytes([], schema()))
    return {
        "files": len(rows),
        "minutes": minutes,
        "mask_raw": sum(len(row["mask"]) for row in rows) / minutes,
        "mask": (kept - without) / minutes,
        "mask_share": float(np.mean([mask_of(row).mean() for row in rows])),
        "heatmap_raw": sum(heatmap_of(row).nbytes for row in rows) / minutes,
        "heatmap": (full - kept) / minutes,
        "all_else_per_file": (without - empty) / len(rows),
        "empty_part": empty,
    }


def main() -> None:
    """Measure every part, or the one named, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", help="measure one part and print it: growth, throughput, weight")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument(
        "--audio", default=str(ASSETS), help="folder of recordings whose maps are weighed"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "corpus.json")
    options = parser.parse_args()
    if options.part == "growth":
        print(json.dumps(growth(options.sizes[0])))
    elif options.part == "throughput":
        print(json.dumps(throughput(options.clips)))
    elif options.part == "weight":
        print(json.dumps(weight(options.audio)))
    else:
        measure(options.sizes, clips=options.clips, audio=options.audio, out=options.out)


def measure(sizes: list[int], *, clips: int, audio: str, out: Path) -> None:
    """Measure every part in a process of its own."""
    from apart import apart
    from provenance import provenance, write_results

    from specsegdiff.api import default_model

    results: dict[str, Any] = {
        str(n): apart(__file__, "--part", "growth", "--sizes", n) for n in sizes
    }
    first, last = results[str(sizes[0])], results[str(sizes[-1])]
    growing = {"by_files": results}
    growing["last_over_first"] = {name: last[name] / first[name] for name in first}
    content = {
        "meta": provenance(default_model()),
        "growth": growing,
        "throughput": apart(__file__, "--part", "throughput", "--clips", clips),
        "bytes_per_minute": apart(__file__, "--part", "weight", "--audio", audio),
    }
    write_results(out, content)


if __name__ == "__main__":
    main()

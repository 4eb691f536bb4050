"""Where the time of `explain` goes, and how time and memory grow with the length of a recording.

    python benchmarks/pipeline.py

writes ``benchmarks/results/pipeline.json``. Each measurement runs in a process of its own, started
from one that has loaded no model, so that its peak memory is its own too.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from apart import apart
from provenance import RESULTS, provenance, write_results
from speed import RATE, length, noise, seconds_of

from specsegdiff.api import default_detector, default_model, explain
from specsegdiff.data.audio import load_audio, write_audio
from specsegdiff.sampling import fastest_dtype

CLIPS = (4, 30)
"Seconds of the recordings whose parts are timed."
LENGTHS = (1, 10, 60, 600, 3600)
"Seconds of the recordings that are explained from file to maps."


@torch.inference_mode()
def parts(seconds: float, *, repeats: int = 7) -> dict[str, float]:
    """Seconds of each part of explaining a file and writing the result, in one process."""
    model, detector = default_model(), default_detector()
    dtype = fastest_dtype("cpu")
    wave = noise(seconds)[None]
    condition = model.condition(wave)
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        encoded = model.encode(condition)
        x, step = torch.zeros_like(model.fold(condition)), model.scheduler().timesteps[:1]
        encode = seconds_of(lambda: model.encode(condition), repeats=repeats)
        denoise = seconds_of(lambda: model.denoise(x, step, encoded), repeats=repeats)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "clip.flac"
        write_audio(path, wave[0], sample_rate=RATE)
        made = explain(path)
        found = {
            "read": seconds_of(lambda: load_audio(path), repeats=repeats),
            "spectrogram": seconds_of(lambda: model.condition(wave), repeats=repeats),
            "encode": encode,
            "denoise": denoise,
            "detector": seconds_of(lambda: detector(wave), repeats=repeats),
        }
        whole = seconds_of(lambda: explain(path), repeats=repeats)
        found["regions, hashes and the rest"] = whole - sum(found.values())
        # a folder is replaced as a whole
        found["write maps"] = seconds_of(lambda: made.save(Path(name) / "out"), repeats=repeats)
        found["page with report and pictures"] = seconds_of(made.to_html, repeats=3)
    return found


def main() -> None:
    """Measure everything, or one length, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=float, help="time the parts of one length and print them")
    parser.add_argument("--length", type=float, help="explain one length and print what it took")
    parser.add_argument("--out", type=Path, default=RESULTS / "pipeline.json")
    options = parser.parse_args()
    if options.parts or options.length:
        print(json.dumps(parts(options.parts) if options.parts else length(options.length)))
        return

    content: dict[str, Any] = {
        "parts": {str(seconds): apart(__file__, "--parts", seconds) for seconds in CLIPS},
        "growth": {str(seconds): apart(__file__, "--length", seconds) for seconds in LENGTHS},
        "meta": provenance(default_model()),
    }
    write_results(options.out, content)


if __name__ == "__main__":
    main()

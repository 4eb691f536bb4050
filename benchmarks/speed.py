"""Speed and memory of `explain`, as ratios within one run: these machines are noisy.

    python benchmarks/speed.py

writes ``benchmarks/results/speed.json``. Each measurement runs in a process of its own, so that its
peak memory is its own too.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import soundfile as sf
import torch
from apart import apart
from provenance import RESULTS, provenance, write_results

from specsegdiff.api import default_model, explain
from specsegdiff.models.segdiff import SpecSegDiff
from specsegdiff.sampling import draw_masks, fastest_dtype, moments, sample

RATE = 16_000


def noise(seconds: float) -> torch.Tensor:
    """Something to explain; time does not depend on what is said."""
    wave = torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(0))
    return 0.05 * wave


def seconds_of(call: Callable[[], object], *, repeats: int) -> float:
    """Median wall seconds of a call, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_mb() -> float:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.inference_mode()
def published(model: SpecSegDiff, wave: torch.Tensor, *, draws: int, steps: int) -> None:
    """SegDiff's own loop: the condition is encoded anew for each draw at each step."""
    condition = model.condition(wave[None]).expand(draws, -1, -1)
    scheduler = model.scheduler(sampler="ddpm")
    scheduler.set_timesteps(steps)
    with torch.autocast("cpu", fastest_dtype("cpu")):
        for first in range(0, draws, 8):
            some = condition[first : first + 8]
            x = torch.randn_like(model.fold(some))
            for step in scheduler.timesteps:
                encoded = model.encode(some)
                prediction = model.denoise(x, step.expand(len(x)), encoded).float()
                if model.config.prediction == "sample":
                    prediction = model.clean(prediction)
                x = scheduler.step(prediction, step, x).prev_sample


def cached(model: SpecSegDiff, wave: torch.Tensor, *, draws: int, steps: int, sampler: str) -> None:
    """Our loop: the condition is encoded once."""
    condition = model.condition(wave[None])[0]
    dtype = fastest_dtype("cpu")
    moments(draw_masks(model, condition, range(draws), steps=steps, sampler=sampler, dtype=dtype))


def clip() -> dict[str, float]:
    """`explain` of a 4 s clip with the embedded model and its own draws and steps."""
    default_model()
    wave = noise(4)
    return {
        "seconds": seconds_of(lambda: explain(wave, RATE), repeats=5),
        "peak_mb": peak_mb(),
    }


def procedures() -> dict[str, float]:
    """The published procedure against ours, same network and clip: seconds and ratios.

    At 100 steps draws take equal time and nothing that counts is shared, so 8 of 32 are timed.
    """
    model, wave = default_model(), noise(4)
    ours = seconds_of(lambda: sample(model, model.condition(wave[None])), repeats=5)
    two = seconds_of(
        lambda: sample(model, model.condition(wave[None]), draws=32, steps=2), repeats=1
    )
    start = time.perf_counter()
    cached(model, wave, draws=8, steps=100, sampler="ddpm")
    same_steps = 4 * (time.perf_counter() - start)
    start = time.perf_counter()
    published(model, wave, draws=8, steps=100)
    theirs = 4 * (time.perf_counter() - start)
    return {
        "published_100_steps_s": theirs,
        "cached_100_steps_s": same_steps,
        "default_s": ours,
        "draws_32_steps_2_s": two,
        "published_over_cached_100_steps": theirs / same_steps,
        "published_over_default": theirs / ours,
        "published_over_draws_32_steps_2": theirs / two,
    }


def paper() -> dict[str, float]:
    """The published network, untrained: one step of one draw with and without a cached
    condition."""
    model, wave = SpecSegDiff.from_preset("paper").eval(), noise(4)
    dtype = fastest_dtype("cpu")
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        condition = model.condition(wave[None])
        encoded = model.encode(condition)
        x, step = torch.randn_like(model.fold(condition)), torch.tensor([50])
        encode = seconds_of(lambda: model.encode(condition), repeats=1)
        denoise = seconds_of(lambda: model.denoise(x, step, encoded), repeats=1)
    return {
        "encode_s": encode,
        "denoise_s": denoise,
        # (encode + denoise) at each of 100 x 32 passes against encode once, denoise at each
        "published_over_cached": (encode + denoise) / (encode / 3200 + denoise),
    }


def length(seconds: float) -> dict[str, float]:
    """`explain` of a file of some length: seconds and peak memory."""
    default_model()
    explain(noise(4), RATE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.wav"
        # written bit by bit: a whole wave here would be the peak that is measured
        with sf.SoundFile(path, "w", RATE, channels=1) as file:
            for _ in range(round(seconds)):
                file.write(noise(1).numpy())
        start = time.perf_counter()
        explain(path)
        return {"seconds": time.perf_counter() - start, "peak_mb": peak_mb()}


def imports() -> dict[str, float]:
    """Least seconds that fresh interpreters need for torch, and for this package beyond it.

    Both in turn, so that a disk that warms up favours neither.
    """
    times: dict[str, list[float]] = {"import torch": [], "import torch, specsegdiff.api": []}
    for _ in range(5):
        for statement, seconds in times.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            seconds.append(time.perf_counter() - start)
    torch_s, ours_s = (min(seconds) for seconds in times.values())
    return {"torch_s": torch_s, "beyond_torch_s": ours_s - torch_s}


PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "clip_4_s": clip,
    "procedures_4_s": procedures,
    "paper_network_4_s": paper,
    "length_30_s": lambda: length(30),
    "length_300_s": lambda: length(300),
    "length_1800_s": lambda: length(1800),
}


def main() -> None:
    """Measure every part, or the one named, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=sorted(PARTS), help="measure one part and print it")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed.json")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part]()))
        return
    results: dict[str, Any] = {name: apart(__file__, "--part", name) for name in PARTS}
    results["import"] = imports()
    half_minute, half_hour = results["length_30_s"], results["length_1800_s"]
    results["half_hour_over_half_minute"] = {
        "seconds": half_hour["seconds"] / half_minute["seconds"],
        "peak_mb": half_hour["peak_mb"] / half_minute["peak_mb"],
    }
    content = {"meta": provenance(default_model()), "parts": results}
    write_results(options.out, content)


if __name__ == "__main__":
    main()

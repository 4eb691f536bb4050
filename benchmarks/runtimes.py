"""What other runtimes would gain over PyTorch: the networks of one pass over a clip, in one run.

    pip install openvino
    python benchmarks/runtimes.py

writes ``benchmarks/results/runtimes.json``: time over PyTorch's, and the largest difference of a
bin's heat. The graphs are those of `specsegdiff.export`. A CPU without instructions for bfloat16
emulates it.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import RESULTS, provenance, write_results

from specsegdiff.api import asset, default_model
from specsegdiff.data.audio import load_audio
from specsegdiff.export import DENOISER_NAME, ENCODER_NAME, OnnxSegmenter, export_onnx

REPEATS = 15
PAUSE = 0.2
"Seconds until the threads of the runtime before have stopped spinning."


def main() -> None:
    """Time all runtimes in turns, compare their maps, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "runtimes.json")
    out = parser.parse_args().out
    model = default_model()
    condition = model.condition(load_audio(asset("example.flac"))[None])
    nothing = torch.zeros(
        1, model.config.patch[0] * model.config.patch[1], *model.grid(condition.shape[-1])
    )
    step = torch.tensor([model.config.train_steps - 1])
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, folder)
        passes: dict[str, Callable[[], torch.Tensor]] = {
            "PyTorch": passing(model, condition, nothing, step)
        }
        passes["ONNX Runtime"] = passing(OnnxSegmenter(folder), condition, nothing, step)
        for precision in ("f32", "bf16"):
            passes[f"OpenVINO, {precision}"] = openvino_pass(
                Path(folder), model, condition, nothing, step, precision=precision
            )
    with torch.inference_mode():
        heats = {name: one().sigmoid() for name, one in passes.items()}
        times: dict[str, list[float]] = {name: [] for name in passes}
        # in turns: what disturbs the machine disturbs all of them
        for _ in range(REPEATS):
            for name, one in passes.items():
                time.sleep(PAUSE)
                start = time.perf_counter()
                one()
                times[name].append(time.perf_counter() - start)
    rows = {
        name: {
            "ratio": statistics.median(a / b for a, b in zip(taken, times["PyTorch"], strict=True)),
            "difference": float((heats[name] - heats["PyTorch"]).abs().max()),
        }
        for name, taken in times.items()
    }
    print(json.dumps(rows, indent=1))
    result = {"meta": provenance(model), "rows": rows}
    write_results(out, result)


def passing(
    segmenter: Any, condition: torch.Tensor, x: torch.Tensor, step: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """One pass of a segmenter."""
    return lambda: segmenter.denoise(x, step, segmenter.encode(condition))


def openvino_pass(
    folder: Path,
    model: Any,
    condition: torch.Tensor,
    x: torch.Tensor,
    step: torch.Tensor,
    *,
    precision: str,
) -> Callable[[], torch.Tensor]:
    """One pass of the exported graphs in OpenVINO."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    encoder, denoiser = (
        core.compile_model(core.read_model(folder / name), "CPU", settings)
        for name in (ENCODER_NAME, DENOISER_NAME)
    )

    def one() -> torch.Tensor:
        encoded = next(iter(encoder([model.images(condition).numpy()]).values()))
        inputs = {"x": x.numpy(), "step": step.numpy(), "encoded": encoded}
        return torch.from_numpy(np.asarray(next(iter(denoiser(inputs).values()))))

    return one


if __name__ == "__main__":
    main()

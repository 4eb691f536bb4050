"""A segmenter as two ONNX graphs: written here, and run by ONNX Runtime in place of PyTorch.

The graphs are the networks and nothing else: images to encoded condition, and noised mask, step and
encoded condition to prediction. Spectrograms, the reverse process and its noise stay in Python
(`specsegdiff.sampling`), so that a map depends on the seed as it always does.
"""

import dataclasses
import importlib
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from specsegdiff.errors import CheckpointError, ConfigError, DependencyError, OutputError
from specsegdiff.frontend import Stft
from specsegdiff.hub import from_dict, weights_hash, write_together
from specsegdiff.models.segdiff import SegDiffConfig, SpecSegDiff, signal_share
from specsegdiff.shapes import Map, Wave
from specsegdiff.storage import MapStore

ENCODER_NAME = "encoder.onnx"
"Graph from ``images`` ``(b, c, f, t)`` to ``encoded`` ``(b, e, f, t)``."

DENOISER_NAME = "denoiser.onnx"
"Graph from ``x`` ``(b, c, f, t)``, ``step`` ``(b,)`` and ``encoded`` to ``prediction``."

OPSET = 17
"Version of the operators; runtimes from 2022 on know it."

TOLERANCE = 1e-4
"""By how much a bin of the map may differ from PyTorch's, for models that predict the mask: float32
rounding. One that predicts the noise divides its rounding by sqrt(alpha_bar), a hundredfold and
more where few steps start from noise alone: ten times this."""

_TRACED_COLUMNS = 5
"Grid columns of the example that is traced: no multiple of a stride, so that padding is seen."


class _Encoder(nn.Module):
    def __init__(self, model: SpecSegDiff) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_images(images)


class _Denoiser(nn.Module):
    def __init__(self, model: SpecSegDiff) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, step: Tensor, encoded: Tensor) -> Tensor:
        return self.model.denoise(x, step, encoded)


def export_onnx(model: SpecSegDiff, folder: str | Path) -> None:
    """Write a model's networks to ``folder`` as ``encoder.onnx`` and ``denoiser.onnx``.

    Batch and time are free axes; frequency is the model's. Both files carry the configuration, the
    model's name and the hash of its weights as metadata, and `OnnxSegmenter` runs them. The model
    is exported in evaluation mode, in float32. Raises `ConfigError` for a model of another class,
    `DependencyError` without the ``onnx`` extra, and `OutputError` where the folder cannot be
    written.
    """
    if not isinstance(model, SpecSegDiff):
        raise ConfigError(
            f"expected a SpecSegDiff, got {type(model).__name__}; other models see more than a "
            "spectrogram, which these graphs do not hold"
        )
    _require("onnx")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before the long work, not after it
    except OSError as error:
        raise _unwritable(folder, error) from error
    facts = {
        "class": SpecSegDiff.__name__,
        "name": model.name,
        "weights_sha256": weights_hash(model),
        "config": json.dumps(dataclasses.asdict(model.config)),
    }
    place = next(model.parameters()).device
    training = model.training
    model.eval().cpu()
    try:
        with torch.no_grad():
            bins = model.config.stft.n_freqs
            frames = _TRACED_COLUMNS * model.config.patch[1]
            images = model.images(torch.zeros(1, bins, frames))
            encoded = model.encode_images(images)
            x = model.fold(torch.zeros(1, bins, frames))
        encoder = _graph(_Encoder(model), {"images": images}, "encoded", facts)
        step = torch.zeros(1, dtype=torch.int64)
        inputs = {"x": x, "step": step, "encoded": encoded}
        denoiser = _graph(_Denoiser(model), inputs, "prediction", facts)
    finally:
        model.to(place).train(training)
    try:
        write_together({folder / ENCODER_NAME: encoder, folder / DENOISER_NAME: denoiser})
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write ONNX graphs to {folder}: {error}; choose a writable folder")


def _graph(
    module: nn.Module, inputs: dict[str, Tensor], output: str, facts: dict[str, str]
) -> bytes:
    import onnx

    axes = {0: "batch", 3: "columns"}
    free = {
        name: axes if name == output or inputs[name].ndim == 4 else {0: "batch"}
        for name in (*inputs, output)
    }
    with (
        tempfile.TemporaryDirectory(prefix="specsegdiff-") as folder,
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        file = Path(folder) / "graph.onnx"
        # torch.export, behind dynamo=True, cannot prove for every length that the padded levels of
        # the UNet fit (torch 2.11). The tracer need not, and warns of what it did not prove; the
        # tests run several lengths
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            file,
            dynamo=False,
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes=free,
            opset_version=OPSET,
        )
        graph = onnx.load(file)
    onnx.helper.set_model_props(graph, facts)
    onnx.checker.check_model(graph)
    return graph.SerializeToString()


class OnnxSegmenter:
    """Exported networks run by ONNX Runtime on the CPU; a `specsegdiff.sampling.Segmenter`.

    ``explain(wave, model=OnnxSegmenter(folder))`` gives the map of the exported model to
    `TOLERANCE`, for the same seeds, draws and steps. ``threads`` is ONNX Runtime's number of
    threads, by default PyTorch's. Raises `CheckpointError` where the folder does not hold what one
    `export_onnx` wrote, `ConfigError` where its configuration is damaged, and `DependencyError`
    without the ``onnx`` extra.
    """

    def __init__(self, folder: str | Path, *, threads: int | None = None) -> None:
        folder = Path(folder)
        count = torch.get_num_threads() if threads is None else threads
        self._encoder, facts = _open(folder / ENCODER_NAME, count)
        self._denoiser, others = _open(folder / DENOISER_NAME, count)
        if facts != others:
            raise CheckpointError(
                f"{ENCODER_NAME} and {DENOISER_NAME} in {folder} are of two models; export again"
            )
        if facts.get("class") != SpecSegDiff.__name__ or not facts.keys() >= {
            "config",
            "name",
            "weights_sha256",
        }:
            raise CheckpointError(
                f"{folder} holds ONNX graphs of something else, expected a SpecSegDiff's; "
                "write them with specsegdiff.export.export_onnx"
            )
        try:
            stored = json.loads(facts["config"])
        except ValueError as error:
            raise CheckpointError(
                f"the configuration in {folder} is damaged ({error}); export again"
            ) from error
        self.config: SegDiffConfig = from_dict(SegDiffConfig, stored, where=str(folder))
        self.name: str = facts["name"]
        self.weights_sha256: str = facts["weights_sha256"]
        # not of the distribution, which has another name where it is built for an accelerator
        self.runtime: str = f"onnxruntime {_require('onnxruntime').__version__}"
        self._outline = _outline(self.config)

    def condition(self, wave: Wave, *, gain: Tensor | None = None) -> Map:
        """Condition ``(b, f, t)`` of waveforms ``(b, n)``, as `SpecSegDiff.condition` makes it."""
        return self._outline.condition(wave, gain=gain)

    def observe(self, recording: MapStore, start: int, stop: int, *, gain: float) -> Map:
        """Condition of some frames, as `SpecSegDiff.observe` makes it."""
        return self._outline.observe(recording, start, stop, gain=gain)

    @property
    def column_frames(self) -> int:
        """Frames of the coarsest grid column; windows of a recording start at multiples of it."""
        return self._outline.column_frames

    def grid(self, n_frames: int) -> tuple[int, int]:
        """Patch rows and columns of a map with ``n_frames`` frames."""
        return self._outline.grid(n_frames)

    def encode(self, condition: Map) -> Float[Tensor, "b e f t"]:
        """Encode a condition ``(b, f, t)``."""
        return _run(self._encoder, images=self._outline.images(condition))

    def denoise(self, x: Tensor, step: Tensor, encoded: Tensor) -> Float[Tensor, "b c f t"]:
        """Predict on the patch grid from ``x`` and steps ``(b,)``."""
        return _run(self._denoiser, x=x, step=step, encoded=encoded)

    def is_blind(self, step: Tensor) -> bool:
        """Tell whether all draws share the prediction at a step."""
        return self._outline.is_blind(step)

    def clean(self, prediction: Tensor) -> Tensor:
        """Clean mask of a ``sample`` prediction's logits."""
        return self._outline.clean(prediction)

    def unfold(self, grid: Float[Tensor, "b c f t"], *, frames: int) -> Map:
        """Patches to a map ``(b, f, frames)``."""
        return self._outline.unfold(grid, frames=frames)

    def scheduler(self, *, sampler: str | None = None) -> Any:
        """Noise scheduler of diffusers, as `SpecSegDiff.scheduler` gives it."""
        return self._outline.scheduler(sampler=sampler)


def _outline(config: SegDiffConfig) -> SpecSegDiff:
    """A model without weights: its axes, images and schedule, and no network that could run."""
    with torch.device("meta"):
        model = SpecSegDiff(config)
    model.stft = Stft(config.stft)
    model.signal = signal_share(config)
    return model


def _open(path: Path, threads: int) -> tuple[Any, dict[str, str]]:
    """Session and metadata of a graph."""
    ort = _require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(
            path.read_bytes(), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's own errors share no base
        raise CheckpointError(
            f"{path} is no readable ONNX graph ({error}); pass a folder that export_onnx wrote"
        ) from error
    return session, dict(session.get_modelmeta().custom_metadata_map)


def _run(session: Any, **inputs: Tensor) -> Tensor:
    arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in inputs.items()}
    return torch.from_numpy(session.run(None, arrays)[0])


def _require(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DependencyError(
            f"ONNX graphs need {name}, which is not installed; pip install 'specsegdiff[onnx]'"
        ) from error

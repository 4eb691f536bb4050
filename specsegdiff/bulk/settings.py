"""How recordings are explained: everything that a row depends on, small enough to be sent about."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specsegdiff.bulk.place import local_rank
from specsegdiff.bulk.rows import Row, row_of
from specsegdiff.errors import ConfigError

if TYPE_CHECKING:
    from specsegdiff.models.segdiff import SpecSegDiff

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """Arguments of `specsegdiff.explain` for all recordings of a corpus.

    A row is what that function returns for the recording: its noise depends on the seed and the
    draw, and on nothing else that a corpus has, such as a place, a batch or a process. Numbers are
    those of one torch thread.
    """

    model: str | None = None
    "Folder or Hub id of a model; None is the embedded one."
    detector: bool = True
    "Whether the embedded detector judges each recording."
    draws: int | None = None
    "Masks that a heatmap is the mean of; None takes the model's own number."
    steps: int | None = None
    "Denoising steps a draw; None takes the model's own number."
    seed: int = 0
    "Seed of the draws."
    share: float = 0.05
    "Share of the bins that a mask marks."
    full_maps: bool = False
    "Whether the heatmap is kept, 3.8 MB a minute before compression."
    device: str = "cpu"
    "Where the networks run; ``cuda`` is this process's own of the machine's."
    precision: str | None = None
    """``float32`` or ``bfloat16``; None takes what is fastest here, so name it where machines
    differ."""

    def __post_init__(self) -> None:
        if any(n is not None and n < 1 for n in (self.draws, self.steps)):
            raise ConfigError(
                f"draws and steps must be at least 1, got {self.draws} and {self.steps}"
            )
        if not 0 < self.share < 1:
            raise ConfigError(f"share must lie between 0 and 1, got {self.share!r}")
        if self.precision not in (None, *PRECISIONS):
            raise ConfigError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")

    def identity(self) -> dict[str, Any]:
        """Hashes of the weights, and settings with defaults filled in.

        The kind of device is one of them, for two kinds round differently; the package's version
        is, too.
        """
        from specsegdiff import api
        from specsegdiff.hub import weights_hash

        model = self._model()
        weights = {"model": weights_hash(model)}
        if self.detector:
            weights["detector"] = weights_hash(api.default_detector())
        return {
            "weights": weights,
            "settings": {
                "draws": self.draws or model.config.draws,
                "steps": self.steps or model.config.steps,
                "seed": self.seed,
                "share": self.share,
                "full_maps": self.full_maps,
                "device": self.device.partition(":")[0],
                "precision": self._precision(),
                "version": _version(),
            },
        }

    def open(self) -> Callable[[str | bytes], Row]:
        """Load the networks, and return what maps a recording to the columns of its row."""
        import torch

        from specsegdiff import api

        device, model = self._device(), self._model()
        model.to(device)
        precision = getattr(torch, self._precision())

        def explain(source: str | bytes) -> Row:
            with _one_thread():
                explanation = api.explain(
                    source,
                    model=model,
                    detector=self.detector,
                    draws=self.draws,
                    steps=self.steps,
                    seed=self.seed,
                    share=self.share,
                    precision=precision,
                    device=device,
                    progress=False,
                )
                return row_of(explanation, full_maps=self.full_maps)

        return explain

    def _model(self) -> "SpecSegDiff":
        from specsegdiff import api
        from specsegdiff.models.segdiff import SpecSegDiff

        return SpecSegDiff.from_pretrained(self.model or api.asset(api.DEFAULT_MODEL))

    def _precision(self) -> str:
        from specsegdiff.sampling import fastest_dtype

        return self.precision or str(fastest_dtype(self.device)).removeprefix("torch.")

    def _device(self) -> str:
        import torch

        if self.device != "cuda":
            return self.device
        # a scheduler that shows each process one card only calls it 0
        return f"cuda:{local_rank() % max(1, torch.cuda.device_count())}"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums round by how threads share them, so that rows must not depend on their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("specsegdiff")
    except importlib.metadata.PackageNotFoundError:
        return "source"

"""What the package brings to the benchmark: its models as methods, and its detector."""

from importlib.resources import files
from pathlib import Path

from specsegdiff.api import DEFAULT_DETECTOR, DEFAULT_MODEL
from specsegdiff.errors import CheckpointError
from specsegdiff.explanation import Explainer
from specsegdiff.models import loading
from specsegdiff.models.addsegdiff import ADDSegDiff
from specsegdiff.models.detector import Detector
from specsegdiff.models.segdiff import SpecSegDiff
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST

EMBEDDED = "embedded"
"Says `load_detector` to take the detector in the package."

ADDSEGDIFF = "addsegdiff-small"
"Folder of its weights in ``specsegdiff/assets``."


def specsegdiff(detector: object = None) -> Explainer:
    """Entry point: the embedded SpecSegDiff with its own draws, steps and seed 0; the detector is
    ignored."""
    return SpecSegDiff.from_pretrained(_weights(DEFAULT_MODEL))


def addsegdiff(detector: object = None) -> Explainer:
    """Entry point: the embedded ADDSegDiff on the embedded detector, whose features it was trained
    on, so that another detector is ignored.

    Raises `CheckpointError` where the package does not ship their weights.
    """
    # first, so that the error names what was asked for
    folder = _weights(ADDSEGDIFF)
    backbone = Wav2Vec2AASIST.from_pretrained(_weights(DEFAULT_DETECTOR))
    return ADDSegDiff.from_pretrained(folder, detector=backbone)


def load_detector(source: str) -> Detector:
    """`specsegdiff.models.loading.load_detector`, and ``"embedded"`` for the one in the package."""
    return loading.load_detector(_weights(DEFAULT_DETECTOR) if source == EMBEDDED else source)


def _weights(name: str) -> Path:
    folder = Path(str(files("specsegdiff") / "assets" / name))
    if not folder.is_dir():
        raise CheckpointError(
            f"this version of the package ships no {name}; pass weights of your own: a detector by "
            "its folder, a method in Python through specsegdiff.benchmark.measure"
        )
    return folder

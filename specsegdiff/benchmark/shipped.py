"""What the package brings to the benchmark: its models as methods, and its detector."""

import json
from importlib.resources import files
from pathlib import Path

from specsegdiff.api import DEFAULT_DETECTOR, DEFAULT_MODEL
from specsegdiff.errors import CheckpointError
from specsegdiff.explanation import Explainer
from specsegdiff.hub import CONFIG_NAME
from specsegdiff.models.aasist import AASIST
from specsegdiff.models.addsegdiff import ADDSegDiff
from specsegdiff.models.detector import Detector
from specsegdiff.models.segdiff import SpecSegDiff
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST

EMBEDDED = "embedded"
"Says `load_detector` to take the detector in the package."

ADDSEGDIFF = "addsegdiff-small"
"Folder of its weights in ``specsegdiff/assets``."

DETECTORS = (AASIST, Wav2Vec2AASIST)
"Classes that a folder of weights may name."


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
    """Load a detector: a folder that ``save_pretrained`` wrote, ``"embedded"``, or the path of a
    published AASIST without the endings of its two files.

    Raises `CheckpointError` where there is none, or it is of an unknown class.
    """
    folder = _weights(DEFAULT_DETECTOR) if source == EMBEDDED else Path(source)
    if folder.with_name(folder.name + ".safetensors").is_file():
        return AASIST.from_published(folder)
    try:
        stored = json.loads((folder / CONFIG_NAME).read_text("utf-8"))
        kind = stored["class"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source} holds no detector ({type(error).__name__}: {error}); pass a folder that "
            "save_pretrained wrote, or the path of a published AASIST without its endings"
        ) from error
    for known in DETECTORS:
        if known.__name__ == kind:
            return known.from_pretrained(folder)
    names = " or ".join(known.__name__ for known in DETECTORS)
    raise CheckpointError(
        f"{source} holds a {kind!r}, expected {names}; in Python, any detector can be measured"
    )


def _weights(name: str) -> Path:
    folder = Path(str(files("specsegdiff") / "assets" / name))
    if not folder.is_dir():
        raise CheckpointError(
            f"this version of the package ships no {name}; pass weights of your own: a detector by "
            "its folder, a method in Python through specsegdiff.benchmark.measure"
        )
    return folder

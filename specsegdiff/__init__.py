"""specsegdiff shows where a voice recording was synthesised, how sure it is, and lets you hear it.

>>> import specsegdiff as ssd
>>> ex = ssd.explain(ssd.asset("example.flac"))  # doctest: +SKIP
>>> print(ex)  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specsegdiff.api import (
        asset,
        default_detector,
        default_model,
        explain,
        narrate,
        small_narrator,
    )
    from specsegdiff.data.audio import load_audio
    from specsegdiff.explanation import Explainer, Explanation
    from specsegdiff.frontend import Axes, Stft, StftConfig
    from specsegdiff.masks import MaskConfig, ground_truth, top_share
    from specsegdiff.models.segdiff import SegDiffConfig, SpecSegDiff
    from specsegdiff.narration.answers import ask

# each public name and the module that holds it, imported on first use (PEP 562)
_HOMES = {
    "explain": "api",
    "default_model": "api",
    "default_detector": "api",
    "narrate": "api",
    "small_narrator": "api",
    "ask": "narration.answers",
    "asset": "api",
    "load_audio": "data.audio",
    "Explainer": "explanation",
    "Explanation": "explanation",
    "Axes": "frontend",
    "Stft": "frontend",
    "StftConfig": "frontend",
    "MaskConfig": "masks",
    "ground_truth": "masks",
    "top_share": "masks",
    "SegDiffConfig": "models.segdiff",
    "SpecSegDiff": "models.segdiff",
}

__all__ = [
    "Axes",
    "Explainer",
    "Explanation",
    "MaskConfig",
    "SegDiffConfig",
    "SpecSegDiff",
    "Stft",
    "StftConfig",
    "ask",
    "asset",
    "default_detector",
    "default_model",
    "explain",
    "ground_truth",
    "load_audio",
    "narrate",
    "small_narrator",
    "top_share",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"specsegdiff.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

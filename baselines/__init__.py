"""Attributions that users compare specsegdiff with, each an `Explainer` on the axes of `Stft`.

A package beside the library, which never imports it. Every method takes a detector of waveforms and
shows it as a function of the spectrogram (`specsegdiff.frontend.RawWrapper`).

>>> from baselines import DeepSHAP
>>> attribution = DeepSHAP(detector, references=real_waves)(wave)  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baselines.attnlrp import AttnLRP
    from baselines.contrast import RuleError
    from baselines.controls import Energy, LowEnergy, MeanMaskByFrequency, Random
    from baselines.deepshap import DeepSHAP
    from baselines.deepshap_check import check_rules
    from baselines.gradientshap import GradientSHAP
    from baselines.integrated_gradients import IntegratedGradients
    from baselines.occlusion import Occlusion
    from baselines.plane import Attribution

# each public name and the module that holds it, imported on first use (PEP 562)
_HOMES = {
    "AttnLRP": "attnlrp",
    "Attribution": "plane",
    "DeepSHAP": "deepshap",
    "Energy": "controls",
    "GradientSHAP": "gradientshap",
    "IntegratedGradients": "integrated_gradients",
    "LowEnergy": "controls",
    "MeanMaskByFrequency": "controls",
    "Occlusion": "occlusion",
    "Random": "controls",
    "RuleError": "contrast",
    "check_rules": "deepshap_check",
}

__all__ = [
    "AttnLRP",
    "Attribution",
    "DeepSHAP",
    "Energy",
    "GradientSHAP",
    "IntegratedGradients",
    "LowEnergy",
    "MeanMaskByFrequency",
    "Occlusion",
    "Random",
    "RuleError",
    "check_rules",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"baselines.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

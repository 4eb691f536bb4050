"""AASIST on an encoder of any family, and what all detectors on an encoder share."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from specsegdiff.models.encoder import BackboneConfig, EncoderConfig, encoder_config
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST, Wav2Vec2AASISTConfig


class SSLDetector(Protocol):
    """What detectors on such an encoder share: `Wav2Vec2AASIST`, `SSLAASIST`, `AttMECAPA`."""

    config: Any
    "With ``backbone``, ``normalise`` and ``n_samples``."
    backbone: Any
    "The encoder, a model of transformers."


@dataclass(frozen=True)
class SSLAASISTConfig(Wav2Vec2AASISTConfig):
    """`Wav2Vec2AASISTConfig` with an encoder of any family."""

    backbone: EncoderConfig = field(default_factory=EncoderConfig)
    "The encoder; the default is WavLM Large."


class SSLAASIST(Wav2Vec2AASIST):
    """`Wav2Vec2AASIST` on an encoder of any family.

    >>> import torch
    >>> from dataclasses import replace
    >>> from specsegdiff.models.wav2vec2_aasist import PRESETS
    >>> small = replace(encoder_config(PRESETS["tiny"].backbone), family="wavlm")
    >>> model = SSLAASIST.from_preset("tiny", backbone=small).eval()
    >>> tuple(model(torch.randn(2, 10_000)).shape)
    (2, 2)
    """

    name = "SSL-AASIST"
    config_kind: ClassVar[type[Wav2Vec2AASISTConfig]] = SSLAASISTConfig
    backbone_kind: ClassVar[type[BackboneConfig]] = EncoderConfig

    def __init__(self, config: Wav2Vec2AASISTConfig | None = None) -> None:
        config = config or SSLAASISTConfig()
        if not isinstance(config, SSLAASISTConfig):
            backbone = encoder_config(config.backbone)
            config = SSLAASISTConfig(**(vars(config) | {"backbone": backbone}))
        super().__init__(config)

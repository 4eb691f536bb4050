"""The mean of several runs' weights: a model soup (Wortsman et al. 2022, arXiv 2203.05482)."""

from collections.abc import Sequence
from typing import cast

from torch.optim.swa_utils import AveragedModel

from specsegdiff.errors import ConfigError
from specsegdiff.models.segdiff import SegDiff


def average(models: Sequence[SegDiff]) -> SegDiff:
    """Mean of the weights of segmenters, as a new one.

    It is worth something for runs that started from the same weights, and nothing for others.
    Raises `ConfigError` for fewer than two models, and where they differ in class or configuration.
    """
    if len(models) < 2:
        raise ConfigError(f"an average needs two models or more, got {len(models)}")
    first, *others = models
    for model in others:
        if type(model) is not type(first) or model.config != first.config:
            raise ConfigError(
                f"{model.name} differs from {first.name} in class or configuration; "
                "average runs of one configuration that started from the same weights"
            )
    mean = AveragedModel(first)
    for model in models:
        mean.update_parameters(model)
    found = cast(SegDiff, mean.module)
    found.name = "average"
    return found

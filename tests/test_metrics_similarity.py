"""Content or artifact: what ignores the vocoder is told from what follows it."""

import pytest
import torch
from torch import Tensor

from specsegdiff.errors import ShapeError
from specsegdiff.masks import top_share
from specsegdiff.metrics import foreground_dice
from specsegdiff.metrics.similarity import phi, similarity


def masks(seed: int, count: int = 4, share: float = 0.05) -> Tensor:
    heat = torch.rand(count, 40, 50, generator=torch.Generator().manual_seed(seed))
    return top_share(heat, share=share)


def test_a_method_that_ignores_the_vocoder_draws_content() -> None:
    truths = masks(0)
    content = masks(1, count=1).expand(4, -1, -1)
    found = similarity(content, truths)
    # rounding of sums over 2000 bins in float64
    assert found.maps == pytest.approx(1, abs=1e-12)
    assert found.specificity == pytest.approx(0, abs=1e-12)
    assert found.gap == pytest.approx(1 - found.truths)
    # a map that is right for one of them has learnt nothing of the others either
    assert similarity(truths[:1].expand(4, -1, -1), truths).specificity == pytest.approx(0)


def test_the_truth_has_no_gap_and_the_most_specificity() -> None:
    truths = masks(0)
    truths[1] = truths[0]
    found = similarity(truths, truths)
    assert found.gap == 0
    assert found.specificity == pytest.approx(1 - found.truths, abs=1e-12)
    assert found.truths > 0.1


def test_noise_is_alike_to_nothing() -> None:
    found = similarity(masks(2), masks(0))
    # the standard deviation of phi over 2000 bins is 1 / sqrt(2000) = 0.022
    assert abs(found.maps) < 0.05
    assert abs(found.specificity) < 0.05


def test_vocoders_come_in_any_order() -> None:
    truths, maps, order = masks(0), masks(0) | masks(3), torch.tensor([2, 0, 3, 1])
    assert similarity(maps[order], truths[order]) == pytest.approx(similarity(maps, truths))


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_phi_is_dice_without_chance(share: float) -> None:
    first, second = masks(4, share=share), masks(5, share=share)
    dice = foreground_dice(first, second).double()
    torch.testing.assert_close(phi(first, second), (dice - share) / (1 - share), rtol=0, atol=1e-6)


def test_phi_is_the_correlation_of_the_bins() -> None:
    first, second = masks(6, share=0.1), masks(7, share=0.3)
    for a, b, value in zip(first, second, phi(first, second), strict=True):
        slow = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1]
        assert float(value) == pytest.approx(float(slow), abs=1e-12)


def test_masks_that_vary_nowhere() -> None:
    full = torch.ones(1, 3, 4, dtype=torch.bool)
    assert phi(full, full).item() == phi(~full, ~full).item() == 1
    assert phi(full, ~full).item() == 0


def test_what_is_no_stack_of_masks_is_an_error() -> None:
    truths = masks(0)
    with pytest.raises(ShapeError, match="two vocoders"):
        similarity(truths[:1], truths[:1])
    with pytest.raises(ShapeError, match="bool"):
        similarity(truths.float(), truths)
    with pytest.raises(ShapeError, match="maps has shape"):
        similarity(truths[:, 1:], truths)

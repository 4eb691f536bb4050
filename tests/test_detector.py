"""Detectors as such: the order of their columns, calibration, and recordings of any length."""

import math

import numpy as np
import pytest
import torch
from models import noise
from torch import nn

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.models import detector
from specsegdiff.models.aasist import AASIST
from specsegdiff.models.detector import (
    LABELS,
    Detector,
    fit_temperature,
    over_windows,
    p_spoof,
    spoof_column,
    windows,
)

# ------------------------------------------------------------------ labels


def named(*labels):
    model = nn.Identity()
    model.labels = labels
    return model


def test_the_column_of_spoof_is_found_by_name():
    assert LABELS == ("spoof", "bonafide")
    assert spoof_column(named("spoof", "bonafide")) == 0
    assert spoof_column(named("bonafide", "spoof")) == 1
    assert spoof_column(named("bonafide", "replay", "spoof")) == 2


@pytest.mark.parametrize(
    "model",
    [
        nn.Identity(),
        named("fake", "real"),
        named("spoof"),
        named("spoof", "spoof"),
        named("Spoof", "bonafide"),
        named(),
    ],
)
def test_no_order_is_guessed(model):
    with pytest.raises(ConfigError, match=r"identity\.labels|'spoof'"):
        spoof_column(model)


def test_one_string_is_no_list_of_labels():
    model = nn.Identity()
    model.labels = "spoof"
    with pytest.raises(ConfigError, match="does not name"):
        spoof_column(model)


def test_our_detectors_keep_the_protocol():
    assert isinstance(AASIST.from_preset("tiny"), Detector)
    assert isinstance(named("spoof", "bonafide"), Detector)
    assert not isinstance(nn.Identity(), Detector)


# ------------------------------------------------------------------ probability


def test_p_spoof_is_the_softmax_of_the_named_column():
    logits = noise(5, 3, scale=2.0)
    for column, labels in enumerate(
        [("spoof", "a", "b"), ("a", "spoof", "b"), ("a", "b", "spoof")]
    ):
        found = p_spoof(logits, labels=labels, temperature=1.7)
        for row, value in zip(logits.tolist(), found.tolist(), strict=True):
            weight = [math.exp(logit / 1.7) for logit in row]
            assert value == pytest.approx(weight[column] / sum(weight), abs=1e-6)


def test_temperature_draws_p_to_one_half():
    logits = torch.tensor([[3.0, -1.0]])
    values = [p_spoof(logits, labels=LABELS, temperature=t).item() for t in (0.5, 1, 4, 1e6)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_must_be_positive(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        p_spoof(torch.zeros(1, 2), labels=LABELS, temperature=temperature)


@pytest.mark.parametrize("logits", [torch.zeros(2), torch.zeros(1, 3), torch.zeros(1, 2).int()])
def test_logits_must_fit_their_labels(logits):
    with pytest.raises(ShapeError, match="2 columns"):
        p_spoof(logits, labels=LABELS)


# ------------------------------------------------------------------ calibration


def drawn(temperature, *, n=20_000):
    """Logits whose classes are drawn with the probability that they have at ``temperature``."""
    logits = noise(n, 2, seed=1, scale=3.0)
    chance = torch.rand(n, generator=torch.Generator().manual_seed(2))
    return logits, chance < p_spoof(logits, labels=LABELS, temperature=temperature)


def nll(logits, is_spoof, temperature):
    p = p_spoof(logits.double(), labels=LABELS, temperature=temperature)
    return -torch.where(is_spoof, p, 1 - p).log().mean().item()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_temperature_of_drawn_classes_is_found(temperature):
    logits, truth = drawn(temperature)
    found = fit_temperature(logits, truth)
    # 20,000 items: the standard error of the slope is about 1 to 2 %
    assert found == pytest.approx(temperature, rel=0.08)
    best = nll(logits, truth, found)
    assert all(best < nll(logits, truth, found * factor) for factor in (0.9, 0.99, 1.01, 1.1))


def test_temperature_scales_with_the_logits_and_follows_the_labels():
    logits, truth = drawn(2.0, n=500)
    found = fit_temperature(logits, truth)
    assert fit_temperature(10 * logits, truth) == pytest.approx(10 * found, rel=1e-6)
    assert fit_temperature(logits + 5, truth) == pytest.approx(found, rel=1e-5)  # float32 sum
    swapped = fit_temperature(logits.flip(1), truth, labels=("bonafide", "spoof"))
    assert swapped == pytest.approx(found, rel=1e-9)


def test_without_an_optimum_nothing_is_returned():
    logits, truth = drawn(1.0, n=200)
    right = torch.where(truth[:, None], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    with pytest.raises(ShapeError, match="right side"):
        fit_temperature(right, truth)
    with pytest.raises(ShapeError, match="no better than chance"):
        fit_temperature(logits.flip(1), truth)


@pytest.mark.parametrize(
    ("logits", "truth"),
    [
        (torch.zeros(2, 2), torch.tensor([True])),
        (torch.zeros(2, 2), torch.tensor([1, 0])),
        (torch.full((2, 2), math.nan), torch.tensor([True, False])),
    ],
)
def test_other_calibration_data_is_refused(logits, truth):
    with pytest.raises(ShapeError, match=r"one bool per item|NaN"):
        fit_temperature(logits, truth)


# ------------------------------------------------------------------ any length


def published_pad(x, max_len):
    """What clovaai/aasist does to a waveform before evaluation."""
    if len(x) >= max_len:
        return x[:max_len]
    return np.tile(x, int(max_len / len(x)) + 1)[:max_len]


@pytest.mark.parametrize("n", [1, 2, 7, 9, 10, 11, 25])
def test_the_first_window_is_the_published_one(n):
    wave = noise(2, n)
    found = windows(wave, length=10, long="first")
    assert found.shape == (2, 1, 10)
    for row, item in zip(found[:, 0], wave, strict=True):
        assert np.array_equal(row.numpy(), published_pad(item.numpy(), 10))
    if n <= 10:
        assert torch.equal(windows(wave, length=10, long="windows"), found)


@pytest.mark.parametrize("n", [11, 19, 20, 21, 57])
def test_windows_cover_every_sample_evenly(n):
    place = torch.arange(float(n))[None]
    found = windows(place, length=10, long="windows")[0]
    assert len(found) == -(-n // 10)
    assert torch.equal(found - found[:, :1], torch.arange(10.0).expand_as(found))
    assert set(found.flatten().tolist()) == set(range(n))
    step = found[:, 0].diff()
    assert step.max() - step.min() <= 1


def mean_and_peak(wave):
    return torch.stack([wave.mean(-1), wave.abs().max(-1).values], dim=1)


def test_logits_are_the_mean_over_windows():
    wave = noise(3, 45)
    parts = [wave[:, start : start + 10] for start in (0, 9, 18, 26, 35)]
    expected = torch.stack([mean_and_peak(part) for part in parts]).mean(0)
    found = over_windows(mean_and_peak, wave, length=10, long="windows")
    assert torch.allclose(found, expected, atol=1e-7)
    first = over_windows(mean_and_peak, wave, length=10, long="first")
    assert torch.equal(first, mean_and_peak(wave[:, :10]))


def test_one_pass_with_gradients_and_bounded_ones_without(monkeypatch):
    monkeypatch.setattr(detector, "WINDOWS_AT_ONCE", 4)
    seen = []

    def network(wave):
        seen.append(len(wave))
        return mean_and_peak(wave)

    wave = noise(3, 45).requires_grad_()
    recorded = over_windows(network, wave, length=10, long="windows")
    recorded.sum().backward()
    assert seen == [15]
    assert (wave.grad != 0).all()
    with torch.no_grad():
        assert torch.equal(over_windows(network, wave, length=10, long="windows"), recorded)
    assert seen[1:] == [4, 4, 4, 3]


@pytest.mark.parametrize(
    "wave", [torch.zeros(5), torch.zeros(1, 1, 5), torch.zeros(2, 0), torch.zeros(0, 5)]
)
def test_other_shapes_are_refused(wave):
    with pytest.raises(ShapeError, match=r"n >= 1|\(b, n\)"):
        windows(wave, length=10, long="windows")

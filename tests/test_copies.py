"""Copies: what is measured of them, and what is none."""

import dataclasses
import math

import pytest
import torch
from speech import Stub, speech
from torch import Tensor

from specsegdiff.data.copies import make_pair
from specsegdiff.errors import PairError


@pytest.fixture(scope="module")
def wave() -> Tensor:
    return speech()


def test_a_pair_measures_level_and_delay(wave):
    copy = make_pair(wave, Stub(gain=0.5, delay=77, tail=200))
    assert copy.lag == 77
    assert copy.gain_db == pytest.approx(20 * math.log10(0.5), abs=1e-4)
    assert copy.logmel_corr == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(copy.fake, 0.5 * wave)


def test_a_clipping_copy_is_scaled_and_says_so(wave):
    copy = make_pair(wave, Stub(gain=10.0))
    assert float(copy.fake.abs().max()) == pytest.approx(1.0)
    assert copy.gain_db == pytest.approx(-20 * math.log10(float(wave.abs().max())), abs=1e-4)


def test_the_correlation_counts_only_the_band_that_the_vocoder_keeps(wave):
    narrow = torch.fft.rfft(wave)
    narrow[len(narrow) // 2 :] = 0
    narrow = torch.fft.irfft(narrow, len(wave))

    @dataclasses.dataclass(frozen=True)
    class Narrow(Stub):
        def __call__(self, wave: Tensor) -> Tensor:
            return narrow

    assert make_pair(wave, Narrow(band_hz=3_900.0)).logmel_corr > 0.99
    assert make_pair(wave, Narrow(), min_logmel_corr=0.0).logmel_corr < 0.9


@pytest.mark.parametrize(
    ("vocoder", "message"),
    [
        (Stub(value=0.0), "silent"),
        (Stub(value=math.nan), "finite"),
        (Stub(tail=9_000), "25000 samples for 16000"),
    ],
)
def test_what_is_no_copy_is_refused(vocoder, message, wave):
    with pytest.raises(PairError, match=message):
        make_pair(wave, vocoder)


def test_another_utterance_is_refused(wave):
    @dataclasses.dataclass(frozen=True)
    class Other(Stub):
        def __call__(self, wave: Tensor) -> Tensor:
            return speech(seed=2, f0=190.0)

    with pytest.raises(PairError, match="no copy"):
        make_pair(wave, Other())

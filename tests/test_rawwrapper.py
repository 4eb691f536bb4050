"""RawWrapper: the detector's own answer at every length, with gradients in value and phase."""

import math

import pytest
import torch
from models import STFT, noise
from torch import nn

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.frontend import RawWrapper, Stft, StftConfig

SCALES = ["linear", "log"]

# the contract of the issue; rounding of float32 is 1e-6 here
EXACT = {"atol": 1e-5, "rtol": 0}


class Detector(nn.Module):
    """Any length, not linear, two logits."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv1d(1, 8, 9, padding=4)
            self.head = nn.Linear(8, 2)

    def forward(self, wave):
        return self.head(torch.nn.functional.gelu(10 * self.conv(wave[:, None])).mean(-1))


def samples(wave):
    """The strictest detector: every sample is a logit."""
    return wave


def wrap(detector, *, scale, **options):
    return RawWrapper(detector, Stft(STFT), scale=scale, **options)


# -- the detector's own answer -------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_the_answer_is_the_detectors_at_every_length(scale):
    detector = Detector()
    exact, wrapper = wrap(samples, scale=scale), wrap(detector, scale=scale)
    for n in [*range(1, 20), 63, 64, 65, 127, 128, 129, 300, 1001]:
        wave = noise(2, n, seed=n, scale=0.3)
        assert torch.allclose(exact(*exact.split(wave)), wave, **EXACT), n
        assert torch.allclose(wrapper(*wrapper.split(wave)), detector(wave), **EXACT), n


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("n", [1, 255, 5_003, 64_600])
def test_the_answer_is_the_detectors_at_the_default_axes(n, scale):
    # 64,600: the only public wrapper leaves the last 88 samples silent
    wave, wrapper = noise(1, n, seed=n, scale=0.3), RawWrapper(samples, scale=scale)
    value, phase, length = wrapper.split(wave)
    assert length == n
    assert value.shape == phase.shape == (1, *Stft().axes(n).shape)
    assert torch.allclose(wrapper(value, phase, length), wave, **EXACT)


@pytest.mark.parametrize("scale", SCALES)
def test_it_wraps_an_audio_classifier_of_hugging_face(scale):
    transformers = pytest.importorskip("transformers", reason="the wrapper needs no transformers")
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
        num_labels=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = transformers.Wav2Vec2ForSequenceClassification(config).eval()
    wrapper, wave = wrap(classifier, scale=scale), noise(2, 777)
    value, phase, length = wrapper.split(wave)
    value.requires_grad_()
    logits = wrapper(value, phase, length)
    assert torch.allclose(logits, classifier(wave).logits, **EXACT)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), value)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().amax((1, 2)).gt(0).all()


def test_an_item_is_answered_alone():
    wrapper, waves = wrap(Detector(), scale="log"), noise(3, 200)
    together = wrapper(*wrapper.split(waves))
    for item in range(3):
        alone = wrapper(*wrapper.split(waves[item : item + 1]))
        assert torch.allclose(together[item], alone[0], atol=1e-6)


def test_double_precision_is_kept():
    wave = noise(1, 300).double()
    for scale in SCALES:
        wrapper = wrap(samples, scale=scale)
        value, phase, length = wrapper.split(wave)
        assert (value.dtype, phase.dtype) == (torch.float64, torch.complex128)
        # 16 digits instead of 7
        assert torch.allclose(wrapper(value, phase, length), wave, atol=1e-12)


# -- silence and the floor -----------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_silence_is_silence_to_the_last_bit(scale):
    wrapper = wrap(samples, scale=scale)
    value, phase, length = wrapper.split(torch.zeros(2, 301))
    assert torch.equal(value, torch.full_like(value, wrapper.silence))
    assert torch.equal(phase, torch.ones_like(phase))
    assert torch.equal(wrapper(value, phase, length), torch.zeros(2, 301))
    # any phase, and on the log scale any lower value, sounds the same
    _, other, _ = wrapper.split(noise(2, 301))
    assert torch.equal(wrapper(value, other, length), torch.zeros(2, 301))
    if scale == "log":
        assert torch.equal(wrapper(value - 3, other, length), torch.zeros(2, 301))


def test_zero_is_no_silence_on_the_log_scale():
    # the trap of the public GradientSHAP: a baseline of zeros is magnitude 1 everywhere
    wrapper = wrap(samples, scale="log")
    assert wrapper.silence == math.log(1e-5)
    zeros = torch.zeros(2, 3)
    assert torch.allclose(wrapper.to_magnitude(zeros), torch.ones(2, 3), atol=2e-5)
    assert torch.equal(wrapper.to_magnitude(torch.full_like(zeros, wrapper.silence)), zeros)


def test_what_lies_below_the_floor_comes_back_too():
    # magnitudes near 1e-7, a hundredth of the floor: a clamp would return noise a hundred times
    # as loud; what is left is the rounding of exp near 1e-5, some 1e-12
    wrapper, wave = wrap(samples, scale="log"), noise(1, 500, scale=1e-8)
    value, phase, length = wrapper.split(wave)
    assert wrapper.stft.magnitude(wave).max() < 1e-6
    assert torch.allclose(wrapper(value, phase, length), wave, atol=1e-11)


def test_scales_convert():
    magnitude = torch.tensor([0.0, 1e-9, 1e-5, 0.3, 200.0])
    linear, log = wrap(samples, scale="linear"), wrap(samples, scale="log", floor=1e-3)
    assert torch.equal(linear.to_value(magnitude), magnitude)
    assert torch.equal(linear.to_magnitude(magnitude), magnitude)
    value = log.to_value(magnitude)
    assert torch.allclose(value[1:], (magnitude[1:] + 1e-3).log())
    assert value.diff().ge(0).all()
    # a float32 logarithm near 5 has steps of 5e-7, relative to the magnitude
    assert torch.allclose(log.to_magnitude(value), magnitude, rtol=1e-6, atol=1e-9)


# -- gradients -----------------------------------------------------------------------------------


def leaf_gradient(wrapper, wave, *, column=0):
    value, phase, length = wrapper.split(wave)
    value.requires_grad_()
    (gradient,) = torch.autograd.grad(wrapper(value, phase, length)[:, column].sum(), value)
    return value.detach(), gradient


@pytest.mark.parametrize("scale", SCALES)
def test_gradients_are_those_of_finite_differences(scale):
    stft = Stft(StftConfig(sample_rate=1000, n_fft=8, hop=2))
    wrapper = RawWrapper(Detector().double(), stft, scale=scale)
    value, phase, length = wrapper.split(noise(2, 9, scale=1.0).double())
    inputs = (value.requires_grad_(), phase.requires_grad_())
    assert torch.autograd.gradcheck(lambda v, p: wrapper(v, p, length), inputs, fast_mode=True)


def test_value_times_gradient_sums_to_a_linear_detector():
    weight = noise(200, 1, seed=1, scale=1.0)
    wave = noise(2, 200, seed=2)
    expected = (wave @ weight)[:, 0]
    value, gradient = leaf_gradient(wrap(lambda x: x @ weight, scale="linear"), wave)
    # sums of 429 products in float32
    assert torch.allclose((value * gradient).sum((1, 2)), expected, atol=1e-4)
    wrapper = wrap(lambda x: x @ weight, scale="log")
    value, gradient = leaf_gradient(wrapper, wave)
    magnitude = wrapper.to_magnitude(value)
    total = (magnitude / (magnitude + wrapper.floor) * gradient).sum((1, 2))
    assert torch.allclose(total, expected, atol=1e-4)


def test_gradient_times_value_is_the_real_and_imaginary_sum_of_dft_lrp():
    detector, stft, wave = Detector(), Stft(STFT), noise(1, 300)
    parts = torch.view_as_real(stft(wave)).requires_grad_()
    back = stft.inverse(torch.view_as_complex(parts), length=300)
    (gradient,) = torch.autograd.grad(detector(back)[:, 0].sum(), parts)
    value, ours = leaf_gradient(wrap(detector, scale="linear"), wave)
    assert torch.allclose(value * ours, (parts * gradient).sum(-1), atol=1e-6)


def test_the_log_gradient_is_the_linear_one_times_the_magnitude():
    detector, wave = Detector(), noise(1, 300)
    magnitude, linear = leaf_gradient(wrap(detector, scale="linear"), wave)
    _, log = leaf_gradient(wrap(detector, scale="log", floor=0.1), wave)
    assert torch.allclose(log, (magnitude + 0.1) * linear, atol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_gradients_reach_the_wave_through_the_split(scale):
    detector, wave = Detector(), noise(2, 150).requires_grad_()
    wrapper = wrap(detector, scale=scale)
    (through,) = torch.autograd.grad(wrapper(*wrapper.split(wave))[:, 0].sum(), wave)
    (direct,) = torch.autograd.grad(detector(wave)[:, 0].sum(), wave)
    assert torch.allclose(through, direct, **EXACT)


@pytest.mark.parametrize("scale", SCALES)
def test_gradients_are_finite_where_there_is_no_sound(scale):
    wrapper = wrap(Detector(), scale=scale)
    wave = noise(2, 400)
    wave[0] = 0
    wave[1, 100:300] = 0  # whole frames without sound inside a recording
    wave[1, 300:] *= 1e-40  # below the smallest normal number
    wave.requires_grad_()
    value, phase, length = wrapper.split(wave)
    value.retain_grad()
    phase.retain_grad()
    wrapper(value, phase, length)[:, 0].sum().backward()
    for name, tensor in {"wave": wave, "value": value, "phase": phase}.items():
        assert torch.isfinite(tensor.grad).all(), name
    # a sound that sets in there would be heard
    assert value.grad[0].abs().max() > 0


def test_the_phase_is_heard():
    wrapper = wrap(samples, scale="linear")
    value, phase, length = wrapper.split(noise(1, 100))
    wave = wrapper(value, phase, length)
    assert torch.equal(wrapper(value, -phase, length), -wave)
    assert not torch.allclose(wrapper(value, phase.conj(), length), wave, atol=1e-2)


# -- manners and bad input -----------------------------------------------------------------------


def test_the_detector_is_left_as_it_is():
    detector = Detector()
    detector.head.eval()
    modes = [module.training for module in detector.modules()]
    state = {name: value.clone() for name, value in detector.state_dict().items()}
    wrapper = wrap(detector, scale="linear")
    wrapper(*wrapper.split(noise(2, 100)))
    assert [module.training for module in detector.modules()] == modes
    assert all(torch.equal(detector.state_dict()[name], value) for name, value in state.items())
    assert all(p.requires_grad and p.grad is None for p in detector.parameters())
    assert wrapper.training is True
    assert wrap(detector.eval(), scale="linear").training is False


@pytest.mark.usefixtures("unchecked")
def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="scale must be 'linear' or 'log', got 'db'"):
        wrap(samples, scale="db")
    for floor in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="floor must be positive"):
            wrap(samples, scale="log", floor=floor)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_a_typed_error():
    wrapper = wrap(Detector(), scale="linear")
    value, phase, length = wrapper.split(noise(2, 100))
    with pytest.raises(ShapeError, match=r"batch axis with \[None\]"):
        wrapper.split(noise(100))
    with pytest.raises(ShapeError, match="floating waveform"):
        wrapper.split(torch.zeros(1, 5, dtype=torch.int16))
    with pytest.raises(ShapeError, match="has shape"):
        wrapper(value[:1], phase, length)
    with pytest.raises(ShapeError, match=r"torch\.polar"):
        wrapper(value, phase.angle(), length)
    with pytest.raises(ShapeError, match="a waveform of 200 samples"):
        wrapper(value, phase, 200)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("detector", "came"),
    [
        (lambda wave: (wave, wave), "tuple"),
        (lambda wave: wave.mean(1), r"\(2,\)"),
        (lambda wave: wave[:1], r"\(1, 100\)"),
    ],
)
def test_what_are_no_logits_is_refused(detector, came):
    wrapper = wrap(detector, scale="linear")
    with pytest.raises(ShapeError, match=f"logits .*got {came}; wrap it"):
        wrapper(*wrapper.split(noise(2, 100)))

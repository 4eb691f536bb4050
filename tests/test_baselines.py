"""The attributions that others are compared with: one protocol, the laws of each, and controls."""

import doctest
import importlib
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import STFT, noise
from torch import nn

import baselines
from baselines.attnlrp import AttnLRP
from baselines.contrast import RuleError
from baselines.controls import Energy, LowEnergy, MeanMaskByFrequency, Random
from baselines.deepshap import DeepSHAP
from baselines.gradientshap import GradientSHAP
from baselines.integrated_gradients import IntegratedGradients
from baselines.lrp_rules import LRPRules
from baselines.occlusion import Occlusion
from baselines.plane import WINDOWS_AT_ONCE, Plane, at_length, seed_of
from baselines.rows import each_row, fitting_memory
from specsegdiff.errors import ConfigError, DependencyError, ShapeError
from specsegdiff.frontend import Stft
from specsegdiff.models.detector import over_windows

ROOT = Path(__file__).parent.parent
TRANSFORM = Stft(STFT)
WAVES = noise(2, 200, seed=5, scale=0.3)
REFERENCES = [noise(n, seed=n, scale=0.3) for n in (200, 150, 260)]


class Linear(nn.Module):
    """One weight a sample: every gradient method has one right answer."""

    labels = ("bonafide", "spoof")

    def forward(self, wave):
        weights = noise(wave.shape[1], 2, seed=7, scale=1.0)
        return wave @ weights + torch.tensor([0.5, -0.5])


class Smooth(nn.Module):
    """Not linear, and no kinks; a dropout shows whether it was set to evaluate."""

    labels = ("spoof", "bonafide")

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv1d(1, 6, 16, stride=8)
            self.drop = nn.Dropout(0.5)
            self.head = nn.Linear(6, 2)

    def forward(self, wave):
        return self.head(F.gelu(self.drop(10 * self.conv(wave[:, None]))).mean(-1))


class Failing(Smooth):
    """Fails at the second pass."""

    passes = 0

    def forward(self, wave):
        Failing.passes += 1
        if Failing.passes > 1:
            raise RuntimeError("failed in the middle")
        return super().forward(wave)


METHODS = {
    "DeepSHAP": DeepSHAP,
    "DeepSHAP of captum": lambda detector, **options: DeepSHAP(detector, rules="captum", **options),
    "GradientSHAP": lambda detector, **options: GradientSHAP(detector, samples=5, **options),
    "IntegratedGradients": lambda detector, **o: IntegratedGradients(detector, steps=20, **o),
    "Occlusion": lambda detector, **options: Occlusion(detector, patch=(11, 5), **options),
}
"Methods that ask the detector, on its linear scale by default."
CONTROLS = {
    "Random": Random,
    "Energy": Energy,
    "LowEnergy": LowEnergy,
    "MeanMaskByFrequency": lambda detector, **options: MeanMaskByFrequency(
        detector, profile=torch.rand(33), **options
    ),
}
SUMS = [name for name in METHODS if name != "Occlusion"]


def build(name, detector, **options):
    return (METHODS | CONTROLS)[name](detector, stft=TRANSFORM, **options)


# ------------------------------------------------------------------ one protocol


@pytest.mark.parametrize("name", [*METHODS, *CONTROLS])
def test_maps_lie_on_the_axes_of_the_transform(name):
    method = build(name, Smooth())
    for wave in (WAVES, WAVES[:1], noise(1, 16, seed=1), noise(1, 1_000, seed=1)):
        result = method(wave)
        assert result.shape == (len(wave), *TRANSFORM.axes(wave.shape[1]).shape)
        assert result.dtype == torch.float32
        assert result.isfinite().all()
        assert not result.requires_grad


@pytest.mark.parametrize("name", [*METHODS, *CONTROLS])
def test_a_map_hangs_on_its_own_recording_alone(name):
    method = build(name, Smooth())
    before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    result = method(WAVES)
    after = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert all(np.array_equal(one, two) for one, two in zip(before[1], after[1], strict=True))
    assert torch.equal(method(WAVES.flip(0)).flip(0), result)
    assert torch.equal(method(WAVES[1:])[0], result[1])
    with torch.no_grad():
        assert torch.equal(method(WAVES), result)
    with torch.inference_mode():
        assert torch.equal(method(WAVES.clone()), result)


@pytest.mark.parametrize("name", METHODS)
def test_chunks_change_no_number(name):
    maps = [build(name, Smooth(), chunk=chunk)(WAVES) for chunk in (None, 2, 7)]
    assert torch.allclose(maps[0], maps[1], atol=1e-6)
    assert torch.allclose(maps[0], maps[2], atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_the_target_is_found_by_its_label(name):
    # the columns of `Linear` lie the other way round, and `Smooth` has its own order
    one, other = (build(name, Linear(), target=target)(WAVES) for target in ("spoof", 1))
    assert torch.equal(one, other)
    assert not torch.allclose(one, build(name, Linear(), target="bonafide")(WAVES), atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", [Smooth, Failing])
def test_the_detector_is_left_as_it_was_found(name, kind):
    detector = kind().train()
    detector.head.eval()
    detector.conv.weight.requires_grad_(False)
    detector.head.weight.grad = torch.ones_like(detector.head.weight)
    weights = {key: value.clone() for key, value in detector.state_dict().items()}
    Failing.passes = 0
    method = build(name, detector)
    if kind is Failing:
        with pytest.raises(RuntimeError, match="in the middle"):
            method(WAVES)
    else:
        method(WAVES)
    assert [part.training for part in detector.modules()] == [True, True, True, False]
    assert [p.requires_grad for p in detector.parameters()] == [False, True, True, True]
    assert [p.grad is None for p in detector.parameters()] == [True, True, False, True]
    assert (detector.head.weight.grad == 1).all()
    assert all(torch.equal(value, weights[key]) for key, value in detector.state_dict().items())
    for part in detector.modules():
        assert not any(value for key, value in vars(part).items() if "hooks" in key)


def test_names_resolve_on_first_use():
    assert dir(baselines) == sorted(baselines.__all__)
    for name in baselines.__all__:
        assert getattr(baselines, name).__doc__, name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = baselines.nonsense
    code = "import sys, baselines; print('torch' in sys.modules, 'captum' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("module", sorted(path.stem for path in ROOT.glob("baselines/[a-z]*.py")))
def test_examples_in_docstrings_are_true(module):
    failed, _ = doctest.testmod(
        importlib.import_module(f"baselines.{module}"), extraglobs={"torch": torch}
    )
    assert failed == 0


def test_without_captum_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    for name in ("DeepSHAP of captum", "GradientSHAP", "IntegratedGradients"):
        with pytest.raises(DependencyError, match="pip install"):
            build(name, Smooth())(WAVES)
    assert build("DeepSHAP", Smooth())(WAVES).isfinite().all()


# ------------------------------------------------------------------ laws


@pytest.mark.parametrize("name", SUMS)
def test_of_a_linear_detector_all_methods_give_gradient_times_magnitude(name):
    wrapper = Plane(Linear(), target=1, stft=TRANSFORM, scale="linear").wrapper
    value, phase, length = wrapper.split(WAVES)
    leaf = value.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(wrapper(leaf, phase, length)[:, 1].sum(), leaf)
    result, delta = build(name, Linear()).attribute(WAVES)
    # sums of 429 float32 products below 1
    assert torch.allclose(result, gradient * value, atol=1e-5)
    assert delta.abs().max() < 1e-4


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("name", ["DeepSHAP", "IntegratedGradients"])
def test_maps_sum_to_the_change_from_silence(name, scale):
    method = build(name, Smooth().eval(), scale=scale)
    result, delta = method.attribute(WAVES)
    wrapper = method.plane.wrapper
    value, phase, length = wrapper.split(WAVES)
    with torch.no_grad():
        quiet = wrapper(torch.full_like(value, wrapper.silence), phase, length)
        change = (wrapper(value, phase, length) - quiet)[:, 0]
    assert torch.allclose(result.sum((1, 2)) - change, delta, atol=1e-6)
    # the silence of the log scale sounds like none
    assert torch.allclose(quiet, wrapper.detector(0 * WAVES), atol=1e-6)
    # 20 Gauss-Legendre points on a smooth line: on the log scale, an exponential's
    assert delta.abs().max() < (1e-5 if name == "DeepSHAP" or scale == "linear" else 5e-3)
    assert change.abs().min() > 0.01


@pytest.mark.parametrize("references", [None, REFERENCES])
def test_gradientshap_sums_to_the_change_in_expectation(references):
    def sums(seed, samples):
        method = GradientSHAP(
            Smooth(), stft=TRANSFORM, samples=samples, seed=seed, references=references, chunk=50
        )
        result, delta = method.attribute(WAVES[:1])
        return float(result.sum()), float(delta)

    single = torch.tensor([sums(seed, 1)[0] for seed in range(20)])
    total, delta = sums(0, 400)
    assert single.std() > 1e-3
    # the mean of 400 draws has a twentieth of a draw's deviation; five of those are certain
    assert abs(delta) < 5 * float(single.std()) / 20
    assert abs(total - delta) > 0.02


@pytest.mark.parametrize("references", [None, REFERENCES[:1]])
def test_gradientshap_is_captums_with_its_draws(references):
    from captum.attr import GradientShap

    method = GradientSHAP(Smooth().eval(), stft=TRANSFORM, samples=1, seed=3, references=references)
    wrapper, (item,) = method.plane.wrapper, method.plane.items(WAVES[:1])
    baseline = method.plane.baseline(item, references)
    found = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(seed_of(3, item.key) % 2**32)  # noqa: NPY002
        # captum's other draw, which of one baseline, takes nothing from the state
        expected = GradientShap(lambda x: wrapper(x, item.phase, item.length)[:, 0]).attribute(
            item.value, baselines=baseline, n_samples=1, stdevs=0.0
        )
    finally:
        np.random.set_state(found)  # noqa: NPY002
    # the same product, but for rounding: captum's α (x - b) + b against our b + α (x - b)
    assert torch.allclose(method(WAVES[:1]), expected, atol=1e-6)
    assert expected.abs().max() > 1e-3


def test_gradientshap_draws_by_seed_recording_and_index():
    def explain(wave=WAVES, **options):
        return GradientSHAP(Smooth(), stft=TRANSFORM, **options)(wave)

    first = explain(samples=4)
    assert torch.equal(first, explain(samples=4))
    assert not torch.allclose(first, explain(samples=4, seed=1), atol=1e-4)
    # one more draw: the first four stay
    more = explain(samples=5)
    assert not torch.allclose(more, first, atol=1e-4)
    options = {"references": REFERENCES, "noise": 0.1, "samples": 6}
    assert torch.allclose(explain(chunk=1, **options), explain(chunk=4, **options), atol=1e-6)
    assert not torch.allclose(explain(**options), explain(**options | {"noise": 0.0}), atol=1e-4)


def test_integrated_gradients_are_captums():
    from captum.attr import IntegratedGradients as Captums

    # few points, since many of a smooth line agree
    method = IntegratedGradients(Smooth().eval(), stft=TRANSFORM, steps=2)
    wrapper = method.plane.wrapper
    value, phase, length = wrapper.split(WAVES[:1])
    expected = Captums(lambda x: wrapper(x, phase.expand_as(x), length)[:, 0]).attribute(
        value, baselines=torch.zeros_like(value), n_steps=2
    )
    assert torch.allclose(method(WAVES[:1]), expected.float(), atol=1e-6)


# ------------------------------------------------------------------ occlusion


def starts(length, size, step):
    """Starts of patches, until one reaches the border."""
    found = [0]
    while found[-1] + size < length:
        found.append(found[-1] + step)
    return found


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize(("patch", "stride"), [((11, 5), None), ((8, 4), (5, 3)), ((99, 99), None)])
def test_occlusion_is_its_slow_replica(patch, stride, scale):
    method = Occlusion(Smooth().eval(), stft=TRANSFORM, patch=patch, stride=stride, scale=scale)
    wrapper = method.plane.wrapper
    value, phase, length = wrapper.split(WAVES[:1])
    step = stride or patch
    total, count = torch.zeros(33, 13), torch.zeros(33, 13)
    with torch.no_grad():
        whole = wrapper(value, phase, length)[0, 0]
        for row in starts(33, patch[0], step[0]):
            for column in starts(13, patch[1], step[1]):
                bins, frames = slice(row, row + patch[0]), slice(column, column + patch[1])
                masked = value.clone()
                masked[:, bins, frames] = 0.0 if scale == "linear" else math.log(1e-5)
                total[bins, frames] += whole - wrapper(masked, phase, length)[0, 0]
                count[bins, frames] += 1
    assert count.min() == 1 if stride is None else count.min() >= 1
    assert torch.allclose(method(WAVES[:1])[0], total / count, atol=1e-6)


def test_occlusion_is_captums():
    from captum.attr import Occlusion as Captums

    method = Occlusion(Smooth().eval(), stft=TRANSFORM, patch=(8, 4), stride=(5, 3))
    wrapper = method.plane.wrapper
    value, phase, length = wrapper.split(WAVES[:1])
    expected = Captums(lambda x: wrapper(x, phase.expand_as(x), length)[:, 0]).attribute(
        value, sliding_window_shapes=(8, 4), strides=(5, 3), baselines=0
    )
    assert torch.allclose(method(WAVES[:1]), expected, atol=1e-6)


# ------------------------------------------------------------------ controls


def test_random_maps_hang_on_seed_and_recording():
    one, other = Random(stft=TRANSFORM), Random(stft=TRANSFORM, seed=1)
    assert one(WAVES).min() >= 0
    assert one(WAVES).max() < 1
    assert not torch.equal(one(WAVES)[0], one(WAVES)[1])
    assert not torch.equal(one(WAVES), other(WAVES))
    # a uniform number: mean 1/2, to 5 deviations of 858 of them
    assert float(one(WAVES).mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * 858))


def test_energies_are_the_magnitude_and_its_negative():
    magnitude = TRANSFORM.magnitude(WAVES)
    assert torch.equal(Energy(stft=TRANSFORM)(WAVES), magnitude)
    assert torch.equal(LowEnergy(stft=TRANSFORM)(WAVES), -magnitude)


def test_the_mean_mask_counts_every_mask_once():
    short = torch.zeros(33, 4, dtype=torch.bool)
    short[3] = True
    long = torch.zeros(33, 10, dtype=torch.bool)
    long[3, :5] = True
    long[7, :1] = True
    method = MeanMaskByFrequency.fit([short, long], stft=TRANSFORM)
    expected = torch.zeros(33)
    expected[3], expected[7] = (1 + 0.5) / 2, 0.1 / 2
    assert torch.allclose(method.profile, expected)
    batch = MeanMaskByFrequency.fit([torch.stack([long, long])], stft=TRANSFORM)
    assert torch.allclose(batch.profile[3], torch.tensor(0.5))
    assert torch.equal(method(WAVES)[1], expected[:, None].expand(33, 13))


# ------------------------------------------------------------------ memory


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_rows_are_halved_until_they_fit(rows):
    asked = []

    def work(some):
        asked.append(len(some))
        if len(some) > rows:
            raise torch.OutOfMemoryError("full")
        return torch.tensor([float(index) for index in some])

    device = torch.device("cuda")
    result = list(each_row(work, 10, chunk=None, device=device))
    assert [float(value) for value in result] == list(range(10))
    # what did not fit once is not tried again
    assert asked == {1: [8, 4, 2, *[1] * 10], 3: [8, 4, 2, 2, 2, 2, 2], 8: [8, 2]}[rows]
    with pytest.raises(torch.OutOfMemoryError):
        list(each_row(work, 10, chunk=rows + 1, device=device))


class Counting(Smooth):
    """Notes how many rows each pass has."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, wave):
        self.rows.append(len(wave))
        return super().forward(wave)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_no_pass_has_more_rows_than_a_chunk(name, chunk):
    detector = Counting()
    options = {} if name in ("Occlusion", "IntegratedGradients") else {"references": REFERENCES * 3}
    build(name, detector, chunk=chunk, **options)(WAVES)
    # captum's DeepLift passes the recording beside each reference
    assert max(detector.rows) == max(chunk or 1, 2 if name == "DeepSHAP of captum" else 1)


class Windowed(Counting):
    """Averages windows of 150 samples, and notes how many pass with gradients."""

    def __init__(self, long="windows", says=True):
        super().__init__()
        self.long = long
        if says:
            self.config = SimpleNamespace(n_samples=150, long=long)

    def forward(self, wave):
        return over_windows(self.classify, wave, length=150, long=self.long)

    def classify(self, wave):
        if torch.is_grad_enabled():
            self.rows.append(len(wave))
        return Smooth.forward(self, wave)


LONG = METHODS | {
    "AttnLRP": lambda detector, **options: AttnLRP(
        detector, rules=LRPRules(gamma_conv=0, gamma_linear=0), **options
    )
}
DIFFERENTIATED = [name for name in LONG if name not in ("Occlusion", "DeepSHAP of captum")]


@pytest.mark.parametrize("name", LONG)
# seven windows, whose starts are no multiples of the hop; the last part has one
@pytest.mark.parametrize("samples", [1_001, 1_050])
def test_windows_of_a_long_recording_change_no_number(name, samples):
    waves = noise(2, samples, seed=8, scale=0.3).double()
    for options in ({}, {"scale": "log"}, {"references": REFERENCES, "chunk": 2}):
        if "references" in options and name in ("Occlusion", "IntegratedGradients", "AttnLRP"):
            continue
        # float64, so that all differences are the method's own; maps are float32
        parts, whole = (
            LONG[name](Windowed(says=says).double(), stft=TRANSFORM, **options)
            for says in (True, False)
        )
        result = parts(waves)
        assert torch.allclose(result, whole(waves), atol=1e-7, rtol=1e-5)
        assert result.abs().max() > 1e-3
        if name != "Occlusion":
            (one, other) = (method.attribute(waves).delta for method in (parts, whole))
            assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_few_windows_pass_at_once_with_gradients(name):
    for samples in (600, 2_400):
        parts, whole = (LONG[name](Windowed(says=s), stft=TRANSFORM) for s in (True, False))
        for method in (parts, whole):
            method(noise(1, samples, seed=8, scale=0.3))
        detectors = [method.plane.wrapper.detector for method in (parts, whole)]
        rows = [max(detector.rows) for detector in detectors]
        assert rows == [WINDOWS_AT_ONCE, samples // 150]


def test_parts_are_the_recording_that_the_detector_hears():
    plane = Plane(Windowed().eval(), target=0, stft=TRANSFORM, scale="linear")
    for samples in (301, 449, 450, 1_001, 4_321):
        (item,) = plane.items(noise(1, samples, seed=3, scale=0.3))
        parts = plane.parts(item)
        assert sum(part.weight for part in parts) == pytest.approx(1)
        with torch.no_grad():
            logits = [
                p.weight * p.plane.score(p.item.value, p.item.phase, p.item.length) for p in parts
            ]
            whole = plane.score(item.value, item.phase, item.length)
        assert torch.allclose(sum(logits), whole, atol=1e-6)
        assert max(part.item.value.shape[-1] for part in parts) <= 2 + (64 + 2 * 150) // 16 + 2
        assert len(parts) == math.ceil(math.ceil(samples / 150) / WINDOWS_AT_ONCE)
    # one that hears its first window alone, or says nothing, is one part
    for detector in (Windowed("first"), Windowed(says=False), lambda wave: wave[:, :2]):
        plane = Plane(detector, target=0, stft=TRANSFORM, scale="linear")
        (item,) = plane.items(noise(1, 4_321, seed=3, scale=0.3))
        assert len(plane.parts(item)) == 1


def test_one_row_that_does_not_fit_is_an_error():
    def work(rows):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        fitting_memory(work, chunk=None, device=torch.device("cpu"))


def test_references_are_cut_or_repeated():
    wave = torch.tensor([1.0, 2.0, 3.0])
    assert at_length(wave, 2).tolist() == [1, 2]
    assert at_length(wave, 7).tolist() == [1, 2, 3, 1, 2, 3, 1]


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize("name", [*METHODS, *CONTROLS])
def test_bad_waves_are_shape_errors(name):
    method = build(name, Smooth())
    bad = torch.ones(1, 50)
    bad[0, 3] = math.nan
    for wave in (
        torch.ones(50),
        torch.ones(1, 1, 50),
        torch.ones(0, 50),
        torch.ones(1, 0),
        torch.ones(1, 50, dtype=torch.long),
        bad,
        [0.0, 1.0],
    ):
        with pytest.raises(ShapeError):
            method(wave)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", METHODS)
def test_bad_detectors_are_typed_errors(name):
    unlabelled = Smooth()
    unlabelled.labels = None
    with pytest.raises(ConfigError, match="labels"):
        build(name, unlabelled)
    with pytest.raises(ConfigError, match="model itself"):
        build(name, "detector")
    with pytest.raises(ConfigError, match="2 logits"):
        build(name, unlabelled, target=2)(WAVES)
    with pytest.raises(ConfigError, match="scale"):
        build(name, Smooth(), scale="mel")
    with pytest.raises(ConfigError, match="chunk"):
        build(name, Smooth(), chunk=0)


class Frozen(Smooth):
    """Its forward asks for no gradient."""

    def __init__(self, mode):
        super().__init__()
        self.mode = mode

    def forward(self, wave):
        with self.mode():
            return super().forward(wave)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", LONG)
def test_a_detector_without_gradients_is_a_typed_error(name, mode):
    method = LONG[name](Frozen(mode), stft=TRANSFORM)
    if name in ("DeepSHAP", "Occlusion"):
        # the one lifts the mode, the other needs no gradient
        assert torch.equal(method(WAVES), LONG[name](Smooth(), stft=TRANSFORM)(WAVES))
        return
    with pytest.raises(RuleError, match="no_grad"):
        method(WAVES)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", [*LONG, *CONTROLS])
def test_settings_in_place_of_a_transform_are_a_typed_error(name):
    with pytest.raises(ConfigError, match=r"Stft\(StftConfig"):
        (LONG | CONTROLS)[name](Smooth(), stft=STFT)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: GradientSHAP(Smooth(), samples=0), "samples"),
        (lambda: GradientSHAP(Smooth(), noise=-1.0), "noise"),
        (lambda: GradientSHAP(Smooth(), noise=math.inf), "noise"),
        (lambda: GradientSHAP(Smooth(), seed=0.5), "seed"),
        (lambda: GradientSHAP(Smooth(), references=[]), "references"),
        (lambda: IntegratedGradients(Smooth(), steps=0), "steps"),
        (lambda: Occlusion(Smooth(), patch=(0, 4)), "patch"),
        (lambda: Occlusion(Smooth(), patch=4), "pair"),
        (lambda: Occlusion(Smooth(), patch=(4, 4), stride=(5, 4)), "wider"),
        (lambda: Random(seed="a"), "seed"),
        (lambda: MeanMaskByFrequency.fit([]), "one mask"),
    ],
)
def test_bad_settings_are_config_errors(make, told):
    with pytest.raises(ConfigError, match=told):
        make()


def test_bad_masks_and_profiles_are_shape_errors():
    mask = torch.zeros(33, 4, dtype=torch.bool)
    for masks in ([mask.float()], [mask[0]], [mask, mask[:5]], [[True]]):
        with pytest.raises(ShapeError):
            MeanMaskByFrequency.fit(masks)
    with pytest.raises(ShapeError, match="fit"):
        MeanMaskByFrequency(profile=torch.ones(2, 3))
    with pytest.raises(ShapeError, match="StftConfig"):
        MeanMaskByFrequency(profile=torch.ones(5), stft=TRANSFORM)(WAVES)

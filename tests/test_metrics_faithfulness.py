"""Faithfulness: published formulas, known answers of simple detectors, slow replicas, twins.

Probabilities are float64 where a tolerance is 1e-12; what went through a float32 transform and
detector is known to 1e-6 of a logit near 1.
"""

import math

import pytest
import torch
from models import STFT, noise
from torch import nn

from specsegdiff import metrics
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.frontend import RawWrapper, Stft
from specsegdiff.masks import top_share
from specsegdiff.metrics.faithfulness import faithfulness

EXACT = {"atol": 1e-12, "rtol": 0}
HEARD = {"atol": 1e-6, "rtol": 0}
NAMES = ["ai", "ad", "ag", "fid_in", "ff"]
N = 300


def probabilities(*, seed, items=6, classes=3):
    return noise(items, classes, seed=seed, scale=2.0).double().softmax(1)


def random_maps(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def maps_of(wave, *, seed=0):
    return random_maps(len(wave), *Stft(STFT).axes(wave.shape[-1]).shape, seed=seed)


def scores_of(detector, wave, heatmap, **options):
    return faithfulness(detector, wave, heatmap, stft=Stft(STFT), **options)


def curves_of(detector, wave, heatmap, **options):
    return metrics.perturbation_curves(detector, wave, heatmap, stft=Stft(STFT), **options)


class Linear:
    """Logits ``(w x, 0)`` without bias: a mask of ``a`` everywhere scales the first by ``a``."""

    def __init__(self, *, seed=0):
        self.weight = noise(N, seed=seed, scale=1.0)

    def __call__(self, wave):
        score = wave @ self.weight
        return torch.stack([score, torch.zeros_like(score)], dim=1)


class Detector(nn.Module):
    """Convolutions, batch norm and dropout: what a mode changes, and a batch may mix."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv1d(1, 6, 9, padding=4)
            self.norm = nn.BatchNorm1d(6)
            self.drop = nn.Dropout(0.5)
            self.head = nn.Linear(6, 3)

    def forward(self, wave):
        hidden = self.norm(10 * self.conv(wave[:, None]))
        return self.head(self.drop(hidden.relu().mean(-1)))


# -- formulas ------------------------------------------------------------------------------------


def slow_scores(full, kept, left, *, target=None):
    rows = []
    for before, inside, outside in zip(full.tolist(), kept.tolist(), left.tolist(), strict=True):
        c = before.index(max(before)) if target is None else target
        p, o = before[c], inside[c]
        rows.append(
            [
                100.0 if p < o else 0.0,
                100 * max(0.0, p - o) / (p + 1e-10),
                100 * max(0.0, o - p) / (1 - p + 1e-10),
                100.0 if inside.index(max(inside)) == before.index(max(before)) else 0.0,
                p - outside[c],
            ]
        )
    return dict(zip(NAMES, torch.tensor(rows, dtype=torch.float64).T, strict=True))


def all_scores(full, kept, left, *, target=None):
    return {
        "ai": metrics.ai(full, kept, target=target),
        "ad": metrics.ad(full, kept, target=target),
        "ag": metrics.ag(full, kept, target=target),
        "fid_in": metrics.fid_in(full, kept),
        "ff": metrics.ff(full, left, target=target),
    }


def assert_scores(ours, expected, **tolerance):
    assert list(ours) == NAMES
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, msg=name, **(tolerance or EXACT))


@pytest.mark.parametrize("target", [None, 0, 2])
def test_scores_match_the_slow_replica(target):
    full, kept, left = (probabilities(seed=seed, items=40) for seed in range(3))
    expected = slow_scores(full, kept, left, target=target)
    assert expected["ai"].unique().tolist() == expected["fid_in"].unique().tolist() == [0, 100]
    assert_scores(all_scores(full, kept, left, target=target), expected)


def test_the_second_softmax_is_that_of_speechbrain():
    full, kept = probabilities(seed=3, items=40), probabilities(seed=4, items=40)
    expected = []
    for row, kept_row in zip(full.tolist(), kept.tolist(), strict=True):
        again = [math.exp(x) / sum(math.exp(y) for y in row) for x in row]
        kept_again = [math.exp(x) / sum(math.exp(y) for y in kept_row) for x in kept_row]
        c = again.index(max(again))
        expected.append(max(again[c] - kept_again[c], 0) / (again[c] + 1e-10) * 100)
    ours = metrics.ad(full, kept, double_softmax=True)
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), **EXACT)
    # the numbers that reference works quote for a fall from 0.99 to 0.50 of two classes
    full, kept = torch.tensor([[0.99, 0.01]]).double(), torch.tensor([[0.5, 0.5]]).double()
    assert metrics.ad(full, kept).item() == pytest.approx(49.5, abs=0.05)
    assert metrics.ad(full, kept, double_softmax=True).item() == pytest.approx(31.2, abs=0.05)


def test_ranges_are_reached():
    sure, never = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    half = torch.tensor([[0.5, 0.5]])
    assert metrics.ad(sure, never).item() == 100
    assert metrics.ff(sure, never).item() == 1
    assert metrics.ag(half, sure).item() == 100
    assert metrics.ff(never, sure, target=0).item() == -1
    # no change of 0 or 1 is a change
    for before in (sure, never):
        assert metrics.ad(before, before, target=0).item() == 0
        assert metrics.ag(before, before, target=0).item() == 0
        assert metrics.ai(before, before, target=0).item() == 0


def test_an_empty_batch_has_no_scores():
    none = torch.zeros(0, 2)
    for score in all_scores(none, none, none).values():
        assert score.shape == (0,)
        assert score.mean().isnan()


@pytest.mark.parametrize("name", ["ai", "ad", "ag", "fid_in", "ff"])
@pytest.mark.parametrize(
    ("full", "other", "message"),
    [
        (torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 0.5]]), "full as probabilities"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([[1.2, -0.2]]), "softmax of logits"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.9]]), "rows with sum 1"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([[math.nan, 0.5]]), "finite"),
        (torch.tensor([0.5]), torch.tensor([0.5]), r"\(b, classes\), got \(1,\)"),
        (torch.ones(1, 1), torch.ones(1, 1), "one logit"),
        (torch.ones(1, 2) / 2, torch.ones(2, 2) / 2, "one shape"),
        (torch.tensor([[1, 0]]), torch.tensor([[1, 0]]), r"torch\.int64"),
        ([[1.0, 0.0]], [[1.0, 0.0]], "floating probabilities"),
    ],
)
def test_what_are_no_probabilities_is_refused(name, full, other, message):
    with pytest.raises(ShapeError, match=message):
        getattr(metrics, name)(full, other)


def test_an_unknown_class_is_refused():
    half = torch.tensor([[0.5, 0.5]])
    for target in (-1, 2, "spoof", True, 1.0):
        for score in (metrics.ai, metrics.ad, metrics.ag, metrics.ff):
            with pytest.raises(ConfigError, match="one of the 2 classes"):
                score(half, half, target=target)


# -- maps of anyone ------------------------------------------------------------------------------


def test_a_mask_of_ones_keeps_everything():
    wave, detector = noise(3, N), Detector()
    ones = torch.ones_like(maps_of(wave))
    silent = detector.eval()(torch.zeros(3, N)).softmax(1)
    full = detector(wave).softmax(1)
    for options in ({"masking": "soft"}, {"masking": "positive"}, {"share": 1.0}):
        scores = scores_of(detector, wave, ones, **options)
        for name, value in {"ai": 0.0, "ad": 0.0, "ag": 0.0, "fid_in": 100.0}.items():
            # to the last bit: a rounding upwards would be an increase
            assert scores[name].tolist() == [value] * 3
        expected = metrics.ff(full, silent)
        torch.testing.assert_close(scores["ff"].float(), expected, **HEARD)


def test_a_mask_of_zeros_leaves_silence():
    wave, detector = noise(4, N), Detector().eval()
    full, silent = detector(wave).softmax(1), detector(torch.zeros(4, N)).softmax(1)
    expected = all_scores(full.double(), silent.double(), full.double())
    zeros = torch.zeros_like(maps_of(wave))
    for options in ({"masking": "soft"}, {"masking": "positive"}, {"share": 0.0}):
        scores = scores_of(detector, wave, zeros, **options)
        # percents of float32 probabilities
        assert_scores(scores, expected, atol=1e-3, rtol=0)
    assert scores_of(detector, wave, zeros.bool())["ad"].equal(scores["ad"])


@pytest.mark.parametrize("kept", [0.0, 0.25, 0.5, 1.0])
def test_a_linear_detector_hears_the_share_that_a_flat_mask_keeps(kept):
    wave, detector = noise(5, N), Linear()
    odds = (wave @ detector.weight).double()
    assert odds.gt(0).any()
    assert odds.lt(0).any()
    flat = torch.full_like(maps_of(wave), kept)

    def expected(scale):
        return torch.stack([(scale * odds).sigmoid(), (-scale * odds).sigmoid()], dim=1)

    for target in (None, 0, 1):
        scores = scores_of(detector, wave, flat, masking="soft", target=target)
        answers = (expected(1), expected(kept), expected(1 - kept))
        known = all_scores(*answers, target=target)
        # at 0 both classes are equally likely, but for a rounding
        names = [n for n in NAMES if n != "fid_in" or kept]
        for name in names:
            torch.testing.assert_close(scores[name], known[name], atol=1e-3, rtol=0, msg=name)
        if target is None:
            # a detector without bias is never surer of its class with less
            assert scores["ai"].eq(0).all()


def test_masks_act_on_the_linear_magnitude():
    # a tone each in two bands; the detector hears how loud they are
    time = torch.arange(N) / STFT.sample_rate
    low, high = torch.sin(2 * math.pi * 125 * time), torch.sin(2 * math.pi * 375 * time)

    def detector(wave):
        return torch.stack([(wave @ low) / N, (wave @ high) / N], dim=1)

    wave = (0.8 * low + 0.4 * high)[None]
    band = torch.zeros_like(maps_of(wave), dtype=torch.bool)
    band[:, : band.shape[1] // 2] = True
    heard = detector(wave)[0]
    scores = scores_of(detector, wave, band)
    # the part kept has the low tone whole and nothing of the high one; Hann's side lobes at 15
    # bins' distance are below 1e-4 of a tone
    low_alone = torch.tensor([heard[0], 0.0]).softmax(0)[0]
    high_alone = torch.tensor([0.0, heard[1]]).softmax(0)[0]
    p = heard.softmax(0)[0]
    assert scores["ff"].item() == pytest.approx(float(p - high_alone), abs=2e-3)
    gain = 100 * float((low_alone - p) / (1 - p))
    assert scores["ag"].item() == pytest.approx(gain, abs=0.5)
    assert scores["ai"].item() == 100


def test_maskings_are_what_they_say():
    wave, detector = noise(3, N), Detector()
    signed = maps_of(wave, seed=1) - 0.6
    signed[2] = -1.0
    top = scores_of(detector, wave, signed, share=0.1)
    assert_scores(top, scores_of(detector, wave, top_share(signed, share=0.1)))
    assert_scores(top, scores_of(detector, wave, 5 * signed, masking="top", share=0.1))
    positive = signed.clamp_min(0)
    soft = positive / positive.amax((1, 2), keepdim=True).clamp_min(1e-9)
    relative = scores_of(detector, wave, signed, masking="positive")
    assert_scores(relative, scores_of(detector, wave, soft, masking="soft"))
    assert not torch.equal(relative["ff"], top["ff"])


def test_ties_go_to_the_lower_index():
    wave, detector = noise(2, N), Detector()
    tied = (maps_of(wave) * 3).floor() * 0.0 - 0.0  # zeros of both signs
    tied[1] = (maps_of(wave)[1] * 3).floor()
    expected = scores_of(detector, wave, top_share(tied, share=0.2))
    assert_scores(scores_of(detector, wave, tied, share=0.2), expected)


@pytest.mark.parametrize("masking", ["top", "soft", "positive"])
def test_a_batch_is_its_items(masking):
    wave, heat, detector = noise(4, N), maps_of(noise(4, N)), Detector()
    scores = scores_of(detector, wave, heat, masking=masking)
    curves = curves_of(detector, wave, heat, steps=3)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = scores_of(detector, wave[order], heat[order], masking=masking)
    turned = curves_of(detector, wave[order], heat[order], steps=3)
    torch.testing.assert_close(turned.insertion, curves.insertion[order], **HEARD)
    torch.testing.assert_close(turned.deletion, curves.deletion[order], **HEARD)
    for name, value in scores.items():
        torch.testing.assert_close(shuffled[name], value[order], atol=1e-4, rtol=0)
    loud, huge = wave.clone(), heat.clone()
    loud[1:], huge[1:] = 50 * wave[1:], heat[1:].square()
    beside = scores_of(detector, loud, huge, masking=masking)
    for name, value in scores.items():
        torch.testing.assert_close(beside[name][:1], value[:1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("fails", [False, True])
def test_the_detector_is_asked_at_rest_and_left_as_it_was(fails):
    wave, heat, detector = noise(3, N), maps_of(noise(3, N)), Detector().train()
    detector.norm.eval()
    state = {name: value.clone() for name, value in detector.state_dict().items()}
    modes = [module.training for module in detector.modules()]
    asked = []

    def hook(module, inputs, output):
        asked.append((module.training, torch.is_grad_enabled()))
        if fails:
            raise RuntimeError("broken detector")

    handle = detector.drop.register_forward_hook(hook)
    if fails:
        for measure in (scores_of, curves_of):
            with pytest.raises(RuntimeError, match="broken detector"):
                measure(detector, wave, heat)
    else:
        scores = scores_of(detector, wave, heat)
        handle.remove()
        again = scores_of(Detector().eval(), wave, heat)
        assert_scores(scores, again)
    assert set(asked) == {(False, False)}
    assert torch.is_grad_enabled()
    assert [module.training for module in detector.modules()] == modes
    assert all(torch.equal(detector.state_dict()[name], value) for name, value in state.items())


def test_a_wrapper_of_either_scale_is_a_detector():
    wave, heat, detector = noise(2, N), maps_of(noise(2, N)), Detector()
    expected = scores_of(detector, wave, heat)
    for scale in ("linear", "log"):
        wrapper = RawWrapper(detector, Stft(STFT), scale=scale)
        assert_scores(faithfulness(wrapper, wave, heat), expected)
        with pytest.raises(ConfigError, match="leave stft out"):
            faithfulness(wrapper, wave, heat, stft=Stft())


def test_bad_maps_and_options_are_refused():
    wave, detector = noise(2, N), Detector()
    heat = maps_of(wave)
    broken = heat.clone()
    broken[0, 0, 0] = math.nan
    for measure in (scores_of, curves_of):
        with pytest.raises(ShapeError, match=r"expected a map \(2, 33, 19\) on the wave's axes"):
            measure(detector, wave, heat[:, :-1])
        with pytest.raises(ShapeError, match=r"batch axis with \[None\]"):
            measure(detector, wave, heat[0])
        with pytest.raises(ShapeError, match="1 values that are not finite"):
            measure(detector, wave, broken)
        with pytest.raises(ShapeError, match=r"torch\.int64"):
            measure(detector, wave, heat.long())
        with pytest.raises(ShapeError, match="non-empty"):
            measure(detector, wave[:0], heat[:0])
        with pytest.raises(ConfigError, match="one of the 3 classes"):
            measure(detector, wave, heat, target=3)
        with pytest.raises(ShapeError, match="NaN"):
            measure(lambda x: torch.full((2, 2), math.nan), wave, heat)
    with pytest.raises(ShapeError, match="a soft mask lies in"):
        scores_of(detector, wave, heat - 0.5, masking="soft")
    with pytest.raises(ConfigError, match="masking must be 'top'"):
        scores_of(detector, wave, heat, masking="hard")
    for share in (5, math.nan, "0.05", None, True):
        with pytest.raises(ConfigError, match="share must lie in"):
            scores_of(detector, wave, heat, share=share)
    for steps in (0, 33 * 19 + 1, 2.0, "2", True):
        with pytest.raises(ConfigError, match=r"steps must lie in \[1, 627\]"):
            curves_of(detector, wave, heat, steps=steps)


# -- insertion and deletion ----------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, 1])
def test_curves_match_the_slow_replica(target):
    wave, detector = noise(2, N), Detector().eval()
    heat = maps_of(wave, seed=2)
    heat[1] = (4 * heat[1]).floor()  # tied bins
    curves = curves_of(detector, wave, heat, steps=4, target=target)
    stft, bins = Stft(STFT), heat[0].numel()
    for item in range(2):
        values = heat[item].flatten().tolist()
        order = sorted(range(bins), key=lambda i, v=values: (-v[i], i))
        spec = stft(wave[item])
        column = int(detector(wave[item][None]).argmax()) if target is None else target
        areas = {"insertion": 0.0, "deletion": 0.0}
        for kind, curve in (("insertion", curves.insertion), ("deletion", curves.deletion)):
            slow = []
            for step in range(5):
                count = round(step * bins / 4)
                mask = torch.full((bins,), float(kind == "deletion"))
                for place in order[:count]:
                    mask[place] = float(kind == "insertion")
                part = stft.inverse(mask.reshape(spec.shape) * spec, length=N)
                slow.append(float(detector(part[None]).detach().softmax(1)[0, column]))
            torch.testing.assert_close(curve[item], torch.tensor(slow).double(), **HEARD)
            shares = [round(step * bins / 4) / bins for step in range(5)]
            for i in range(4):
                areas[kind] += (shares[i + 1] - shares[i]) * (slow[i] + slow[i + 1]) / 2
        assert curves.insertion_auc[item].item() == pytest.approx(areas["insertion"], abs=1e-6)
        assert curves.deletion_auc[item].item() == pytest.approx(areas["deletion"], abs=1e-6)


def test_curves_run_between_silence_and_the_recording():
    wave, detector = noise(2, N), Linear()
    curves = curves_of(detector, wave, maps_of(wave), steps=5, target=0)
    assert curves.share[[0, -1]].tolist() == [0, 1]
    assert curves.insertion.shape == curves.deletion.shape == (2, 6)
    assert torch.equal(curves.insertion[:, 0], torch.full((2,), 0.5).double())
    odds = (wave @ detector.weight).double()
    torch.testing.assert_close(curves.insertion[:, -1], odds.sigmoid(), **HEARD)
    # what is heard and what is not add up to the recording, before the sigmoid
    total = curves.insertion.logit() + curves.deletion.logit()
    torch.testing.assert_close(total, odds[:, None].expand(2, 6), atol=1e-5, rtol=0)
    # so the areas of a map and of its reverse mirror each other
    steps = {"steps": 33, "target": 0}  # 19 bins each
    forth = curves_of(detector, wave[:1], maps_of(wave)[:1], **steps)
    back = curves_of(detector, wave[:1], -maps_of(wave)[:1], **steps)
    torch.testing.assert_close(back.insertion, forth.deletion.flip(1), **HEARD)
    torch.testing.assert_close(back.insertion_auc, forth.deletion_auc, **HEARD)


def test_the_map_of_what_is_heard_has_the_better_curves():
    time = torch.arange(N) / STFT.sample_rate
    tone = torch.sin(2 * math.pi * 125 * time)

    def detector(wave):
        loud = 10 * (wave @ tone) / N
        return torch.stack([loud, torch.ones_like(loud)], dim=1)

    wave = (tone + noise(N))[None]
    right = Stft(STFT).magnitude(tone[None])
    areas = {}
    for name, heat in {"right": right, "wrong": -right, "random": maps_of(wave)}.items():
        curves = curves_of(detector, wave, heat)
        areas[name] = (curves.insertion_auc.item(), curves.deletion_auc.item())
    assert areas["right"][0] > areas["random"][0] > areas["wrong"][0]
    assert areas["right"][1] < areas["random"][1] < areas["wrong"][1]


def test_a_deaf_detector_has_flat_curves():
    wave = noise(2, N)
    curves = curves_of(lambda x: torch.tensor([[0.0, math.log(3)]] * 2), wave, maps_of(wave))
    for area in (curves.insertion_auc, curves.deletion_auc):
        torch.testing.assert_close(area, torch.full((2,), 0.75).double(), **HEARD)


# -- torchmetrics classes ------------------------------------------------------------------------

TWINS = {
    "AverageIncrease": "ai",
    "AverageDrop": "ad",
    "AverageGain": "ag",
    "InputFidelity": "fid_in",
    "FaithfulnessOnSpectra": "ff",
}


@pytest.mark.parametrize("name", TWINS)
def test_classes_equal_their_functional_twins(name):
    metric, twin = getattr(metrics, name)(), getattr(metrics, TWINS[name])
    full, other = probabilities(seed=5), probabilities(seed=6)
    # batches of three, one, none and two: a mean of batch means would differ
    for part in zip(full.split([3, 1, 0, 2]), other.split([3, 1, 0, 2]), strict=True):
        metric.update(*part)
    torch.testing.assert_close(metric.compute(), twin(full, other).mean(), **EXACT)
    assert metric.higher_is_better is (name != "AverageDrop")
    metric.reset()
    metric.update(full[:0], other[:0])
    assert metric.compute().isnan()


def test_options_reach_the_functions():
    full, other = probabilities(seed=7), probabilities(seed=8)
    for name, twin in TWINS.items():
        if name != "InputFidelity":
            metric = getattr(metrics, name)(target=1)
            metric.update(full, other)
            expected = getattr(metrics, twin)(full, other, target=1).mean()
            torch.testing.assert_close(metric.compute(), expected, **EXACT)
    metric = metrics.AverageDrop(double_softmax=True)
    metric.update(full, other)
    expected = metrics.ad(full, other, double_softmax=True).mean()
    torch.testing.assert_close(metric.compute(), expected, **EXACT)


@pytest.mark.usefixtures("unchecked")
def test_settings_in_place_of_a_transform_are_a_typed_error():
    wave = noise(1, 200, seed=1, scale=0.1)
    for detector in (nn.Flatten(), RawWrapper(nn.Flatten(), Stft(STFT), scale="linear")):
        with pytest.raises(ConfigError, match=r"Stft\(StftConfig"):
            faithfulness(detector, wave, Stft(STFT).magnitude(wave), stft=STFT)


def test_a_collection_keeps_scores_apart_that_agree_on_the_first_batch():
    torchmetrics = pytest.importorskip("torchmetrics")
    members = {name: getattr(metrics, name)() for name in TWINS}
    members["Twice"] = metrics.AverageDrop(double_softmax=True)
    members["Second"] = metrics.AverageDrop(target=1)
    collection = torchmetrics.MetricCollection(members)
    same, full, other = (probabilities(seed=seed) for seed in (9, 10, 11))
    collection.update(same, same)
    collection.update(full, other)
    results = collection.compute()
    for name, metric in members.items():
        alone = type(metric)(
            **({"double_softmax": True} if name == "Twice" else {}),
            **({"target": 1} if name == "Second" else {}),
        )
        alone.update(same, same)
        alone.update(full, other)
        torch.testing.assert_close(results[name], alone.compute(), **EXACT)

"""ADDSegDiff: features at the right time and frequency, a detector that stays outside."""

from dataclasses import replace

import pytest
import torch
from models import STFT, TINY, awake, make_model, noise

from specsegdiff.api import explain
from specsegdiff.errors import CheckpointError, ConfigError, ShapeError
from specsegdiff.hub import weights_hash
from specsegdiff.models.aasist import AASIST
from specsegdiff.models.addsegdiff import (
    ADDSegDiff,
    ADDSegDiffConfig,
    FrontConfig,
    align,
    spread_layers,
)
from specsegdiff.models.losses import LossConfig, diffusion_loss
from specsegdiff.models.segdiff import SpecSegDiff
from specsegdiff.train.segmenter import start_from

FIELDS = {k: v for k, v in vars(TINY).items() if k != "smoothed"}
CONFIG = ADDSegDiffConfig(
    **FIELDS, layers=(0, 2), feature_size=6, hidden=10, feature_hop=20, feature_window=25
)
GRID = replace(CONFIG, mapping="grid")
FRONT = replace(GRID, front=FrontConfig(channels=3, rows=8, hop=10, window=15, width=4, maps=2))
ALL = pytest.mark.parametrize("config", [CONFIG, GRID, FRONT], ids=["resize", "grid", "front"])


class Energies(torch.nn.Module):
    """A detector whose layer ``i`` is the mean of the samples of each window, times ``i + 1``."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def features(self, wave, layers):
        windows = wave.unfold(-1, 25, 20).mean(-1, keepdim=True)
        return [self.weight * (i + 1) * windows.expand(-1, -1, 6) for i in layers]

    def front_map(self, wave, layer):
        """Channel ``c`` of row ``r`` is the mean of a shorter window, times ``10 r + c``."""
        windows = wave.unfold(-1, 15, 10).mean(-1)
        place = 10 * torch.arange(8.0)[None, :] + torch.arange(3.0)[:, None]
        return self.weight * place[..., None] * windows[:, None, None]


class OnlyLayers:
    """A detector without a front end to read."""

    features = Energies.features
    weight = torch.ones(())


def make(config=CONFIG):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return awake(ADDSegDiff(config, Energies()))


# ------------------------------------------------------------------ time


def test_features_keep_their_time():
    """On a ramp, the mean of a window is the time of its centre: interpolation must return it."""
    ramp = torch.arange(2000.0)[None]
    (features,) = Energies().features(ramp, [0])
    aligned = align(features, frames=126, stft_hop=16, hop=20, window=25)
    times = torch.arange(126) * 16.0
    # centres of the first and the last window
    expected = times.clamp(12.0, float(features[0, -1, 0].detach()))
    assert torch.allclose(aligned[0], expected.expand(6, -1), atol=1e-3)


def test_a_condition_holds_all_layers_at_the_stfts_frames():
    model = make()
    wave = noise(2, 500)
    condition = model.condition(wave)
    assert condition.shape == (2, 12, STFT.n_frames(500))
    assert torch.allclose(condition[:, 6:], 3 * condition[:, :6], atol=1e-6)
    assert torch.allclose(model.condition(wave / 4), condition, atol=1e-5)


def test_a_front_end_follows_the_layers_in_the_condition():
    model, ramp = make(FRONT), torch.arange(2000.0)[None]
    condition = model.condition(ramp, gain=torch.ones(1))
    assert condition.shape == (1, 2 * 6 + 3 * 8, 126)
    times = (torch.arange(126) * 16.0).clamp(7.0, 1987.0)
    for channel in range(3):
        for row in range(8):
            found = condition[0, 12 + 8 * channel + row]
            assert torch.allclose(found, (10 * row + channel) * times, rtol=1e-5, atol=1e-2)


def test_layers_spread_over_smaller_backbones():
    assert spread_layers(24) == (0, 5, 9, 14, 18, 23)
    assert spread_layers(6) == (0, 1, 2, 3, 4, 5)
    assert spread_layers(12, 1) == (0,)
    with pytest.raises(ConfigError, match="spread 6 layers over 4"):
        spread_layers(4)


# ------------------------------------------------------------------ frequency


def test_resizing_gives_an_image_a_layer():
    model = make()
    condition = model.condition(noise(1, 500))
    images = model.images(condition)
    frames = condition.shape[-1]
    assert images.shape == (1, 2 * 32, *model.grid(frames))
    for layer, image in enumerate(images.split(32, dim=1)):
        with torch.no_grad():
            rows = model.project(condition[0, 6 * layer : 6 * layer + 6].T)
        whole = model.unfold(image, frames=frames)[0]
        # the outermost of the MLP's values are the outermost bins
        assert torch.allclose(whole[0], rows[:, 0], atol=1e-5)
        assert torch.allclose(whole[32], rows[:, 9], atol=1e-5)


def test_a_grid_gives_every_bin_its_own_answer_at_its_own_frame():
    model = make(GRID)
    condition = model.condition(noise(1, 500))
    images = model.images(condition)
    frames = condition.shape[-1]
    assert images.shape == (1, 2 * 32, *model.grid(frames))
    with torch.no_grad():
        bins = model.project(condition[0].T)
        for place, image in enumerate(images.split(32, dim=1)):
            whole = model.unfold(image, frames=frames)[0]
            assert torch.allclose(whole, bins[:, 33 * place : 33 * place + 33].T, atol=1e-5)
        changed = condition.clone()
        changed[..., 9] += 1
        moved = (model.images(changed) - images).split(32, dim=1)
        for image in moved:
            whole = model.unfold(image, frames=frames)[0].abs()
            assert bool((whole[:, 9] > 1e-4).all())
            whole[:, 9] = 0
            assert float(whole.max()) == 0


def test_a_front_end_keeps_time_and_frequency():
    """Its images come first, and a value moves what two 3 x 3 convolutions reach: two frames and
    two rows of four bins around it."""
    model = make(FRONT)
    condition = model.condition(noise(1, 500))
    images = model.images(condition)
    frames = condition.shape[-1]
    assert images.shape == (1, 4 * 32, *model.grid(frames))
    alone = make(GRID)
    alone.project.load_state_dict(model.project.state_dict())
    assert torch.equal(alone.images(condition[:, :12]), images[:, 64:])
    changed = condition.clone()
    changed[0, 12 + 8 * 1 + 5, 9] += 10
    moved = (model.images(changed) - images)[:, :64].split(32, dim=1)
    for image in moved:
        whole = model.unfold(image, frames=frames)[0].abs()
        rows, columns = whole.nonzero(as_tuple=True)
        assert (int(rows.min()), int(columns.min()), int(columns.max())) == (12, 7, 11)
        # row 7 is the last, and its last bin is repeated above it
        assert int(rows.max()) == 32
        assert torch.equal(whole[32], whole[31])


def test_a_front_end_starts_as_the_spectrogram_of_a_specsegdiff():
    """What is known of the first images is kept, the others count for nothing at first."""
    older = make_model(smoothed=True)
    newer = make(FRONT)
    start_from(newer, older)
    seen = older.images(noise(1, 33, 16))
    more = torch.cat([seen, noise(*seen.shape, seed=1)], dim=1)
    with torch.no_grad():
        expected = older.encode_images(seen)
        assert torch.allclose(newer.encode_images(more), expected, atol=1e-6)


@ALL
def test_every_weight_learns_and_the_detector_does_not(config):
    model = make(config)
    detector = model.__dict__["detector"]
    loss, _ = diffusion_loss(
        model,
        model.condition(noise(2, 500)),
        noise(2, 33, 32),
        config=LossConfig(dice=0.3),
        generator=torch.Generator().manual_seed(0),
    )
    loss.backward()
    still = [name for name, value in model.named_parameters() if value.grad is None]
    assert still == []
    assert detector.weight.grad is None
    assert not any(value is detector.weight for value in model.parameters())


# ------------------------------------------------------------------ use


@ALL
def test_it_explains_and_comes_back_from_disk(config, tmp_path):
    model = make(config)
    wave = noise(3000)
    first = explain(wave, 1000, model=model, draws=2, steps=2, precision=torch.float32)
    assert first.heatmap.shape == (33, 188)
    assert float(first.heatmap.std()) > 0
    model.save_pretrained(tmp_path / "add")
    again = ADDSegDiff.from_pretrained(tmp_path / "add", detector=Energies())
    assert weights_hash(again) == weights_hash(model)
    second = explain(wave, 1000, model=again, draws=2, steps=2, precision=torch.float32)
    assert torch.equal(second.heatmap, first.heatmap)
    assert second.provenance.model == "add"
    with pytest.raises(CheckpointError, match="'ADDSegDiff', expected 'SpecSegDiff'"):
        SpecSegDiff.from_pretrained(tmp_path / "add")


def test_windows_of_a_recording_agree_with_the_whole_away_from_borders():
    from specsegdiff.storage import MapWriter

    model, wave = make(), noise(3000)
    writer = MapWriter(1, 3000)
    writer.append(wave[None])
    recording = writer.finish()
    whole = model.condition(wave[None], gain=torch.tensor([2.0]))
    for start, stop in ((0, 188), (0, 40), (100, 140), (150, 188), (187, 188)):
        part = model.observe(recording, start, stop, gain=2.0)
        assert part.shape[-1] == stop - start
        # the first feature of a window may begin up to one window after its first frame
        inner = slice(0 if start == 0 else min(2, stop - start - 1), None)
        assert torch.allclose(part[..., inner], whole[..., start:stop][..., inner], atol=0.05)


def test_the_paper_preset_has_the_published_sizes():
    config = ADDSegDiffConfig()
    assert (config.layers, config.feature_size, config.hidden) == (
        (0, 4, 9, 14, 19, 23),
        1024,
        320,
    )
    assert (config.rrdb_blocks, config.steps, config.prediction) == (1, 100, "epsilon")
    small = ADDSegDiff.from_preset("tiny", layers=(0,), feature_size=8, mapping="grid").config
    assert small.patch == (8, 4)
    assert small.mapping == "grid"


def test_bad_input_is_a_typed_error():
    model = make()
    with pytest.raises(ShapeError, match=r"\(b, 12, t\)"):
        model.images(noise(1, 33, 20))
    with pytest.raises(ConfigError, match="no detector"):
        ADDSegDiff(CONFIG).condition(noise(1, 500))
    with pytest.raises(ConfigError, match="expected features of width 7"):
        ADDSegDiff(replace(CONFIG, feature_size=7), Energies()).condition(noise(1, 500))
    for detector in (AASIST.from_preset("tiny"), "a detector"):
        with pytest.raises(ConfigError, match=f"features.*got a {type(detector).__name__}"):
            ADDSegDiff(CONFIG, detector)
        with pytest.raises(ConfigError, match="features"):
            model.attach(detector)
    with pytest.raises(ConfigError, match="has no front_map"):
        ADDSegDiff(FRONT, OnlyLayers()).condition(noise(1, 500))
    wider = replace(FRONT, front=replace(FRONT.front, channels=4))
    with pytest.raises(ConfigError, match="4 channels and 8 rows, got \\(3, 8\\)"):
        ADDSegDiff(wider, Energies()).condition(noise(1, 500))
    with pytest.raises(ConfigError, match="rows=13 do not divide 33 bins"):
        ADDSegDiff(replace(FRONT, front=replace(FRONT.front, rows=13)))
    for fields in ({"layer": -1}, {"rows": 0}, {"maps": 1.5}, {"hop": True}):
        with pytest.raises(ConfigError, match=f"FrontConfig.{next(iter(fields))} must"):
            FrontConfig(**fields)
    for fields in ({"layers": ()}, {"layers": (-1,)}, {"maps": 0}, {"smoothed": True}):
        with pytest.raises(ConfigError, match=next(iter(fields))):
            replace(CONFIG, **fields)

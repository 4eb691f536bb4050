"""The networks: sizes of the papers, slow replicas, and how far a frame's heat looks."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from models import TINY, TINY_PAPER, awake, make_model, noise

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.masks import smooth
from specsegdiff.models.refine import Refine
from specsegdiff.models.rrdb import RRDB, DenseBlock, RRDBNet
from specsegdiff.models.segdiff import PRESETS, SegDiffConfig, SpecSegDiff
from specsegdiff.models.unet import Attention, PositionNorm, UNet, UNetConfig, step_embedding
from specsegdiff.sampling import sample

FREQUENCY = UNetConfig(
    channels=16,
    multipliers=(1, 1.5),
    res_blocks=1,
    attention_levels=(1,),
    attention_axis="frequency",
    norm="position",
    heads=2,
)


def size(model):
    return sum(value.numel() for value in model.parameters())


def millions(model, digits):
    return round(size(model) / 1e6, digits)


# ------------------------------------------------------------------ sizes


def test_the_papers_networks_have_the_published_sizes():
    """Parameter counts of SegDiff's code at 128 channels; the meta device holds no memory."""
    with torch.device("meta"):
        model = SpecSegDiff.from_preset("paper")
        assert millions(model.unet, 1) == 117.6
        deeper, wider = replace(UNetConfig(), res_blocks=3), (1, 1, 2, 2, 4, 4)
        assert millions(UNet(deeper, in_channels=1, out_channels=1), 1) == 155.4
        shallow = replace(UNetConfig(), multipliers=wider)
        assert millions(UNet(shallow, in_channels=1, out_channels=1), 1) == 118.9
        images = RRDBNet(3, 128, blocks=12)
        assert millions(images, 2) == 8.78
        assert millions(RRDBNet(6, 128, blocks=1), 2) == 0.87
    # a spectrogram has one channel, an image three: 3 x 3 taps to 64 features for each
    assert size(images) - size(model.encoder) == 2 * 9 * 64
    assert all(value.is_meta for value in model.parameters())


def test_the_paper_preset_is_the_published_configuration():
    config = PRESETS["paper"]
    assert config == SegDiffConfig()
    assert (config.rrdb_blocks, config.unet.res_blocks) == (12, 2)
    assert (config.train_steps, config.steps, config.draws) == (100, 100, 32)
    assert (config.sampler, config.schedule, config.prediction) == ("ddpm", "linear", "epsilon")
    assert (config.patch, config.mask_scale, config.row_embedding) == ((1, 1), 1.0, False)


# ------------------------------------------------------------------ condition encoder


def test_dense_blocks_are_residuals_scaled_by_a_fifth():
    block = awake(DenseBlock(6, 4))
    x = noise(2, 6, 5, 7, scale=1.0)
    seen = [x]
    for conv in block.convs[:4]:
        y = F.conv2d(torch.cat(seen, 1), conv.weight, conv.bias, padding=1)
        seen.append(torch.where(y > 0, y, 0.2 * y))
    last = block.convs[4]
    slow = x + 0.2 * F.conv2d(torch.cat(seen, 1), last.weight, last.bias, padding=1)
    with torch.no_grad():
        assert torch.allclose(block(x), slow, atol=1e-6)
        outer = awake(RRDB(6, 4))
        inner = outer.blocks[2](outer.blocks[1](outer.blocks[0](x)))
        assert torch.allclose(outer(x), x + 0.2 * inner, atol=1e-6)


def test_a_row_embedding_tells_frequencies_apart():
    with torch.no_grad():
        plain, rows = (
            awake(RRDBNet(1, 4, blocks=1, features=8, growth=4, rows=r)) for r in (None, 60)
        )
        flat = torch.ones(1, 1, 60, 60)
        # 19 convolutions: beyond 19 bins from the border, a flat input stays flat
        inside = plain(flat)[..., 20:-20, 30]
        assert torch.allclose(inside, inside[..., :1].expand_as(inside), atol=1e-6)
        inside = rows(flat)[..., 20:-20, 30]
        assert float(inside.std(dim=-1).min()) > 1e-4


# ------------------------------------------------------------------ denoiser


def test_step_embedding_is_the_transformers():
    step = torch.tensor([0, 1, 99])
    found = step_embedding(step, 8)
    for row, t in zip(found.tolist(), step.tolist(), strict=True):
        angle = [t / 10_000 ** (i / 4) for i in range(4)]
        expected = [math.cos(a) for a in angle] + [math.sin(a) for a in angle]
        assert row == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("axis", ["both", "frequency"])
def test_attention_is_its_slow_replica(axis):
    config = replace(FREQUENCY, attention_axis=axis)
    layer = awake(Attention(config, 16))
    x = noise(2, 16, 5, 3, scale=1.0)
    with torch.no_grad():
        q, k, v = layer.qkv(layer.norm(x)).chunk(3, dim=1)
        y = torch.zeros_like(x)
        for b in range(2):
            for head in (slice(0, 8), slice(8, 16)):
                for f in range(5):
                    for t in range(3):
                        places = [
                            (g, s) for g in range(5) for s in range(3) if axis == "both" or s == t
                        ]
                        score = torch.stack(
                            [q[b, head, f, t] @ k[b, head, g, s] / 8**0.5 for g, s in places]
                        ).softmax(0)
                        values = torch.stack([v[b, head, g, s] for g, s in places])
                        y[b, head, f, t] = score @ values
        assert torch.allclose(layer(x), x + layer.out(y), atol=1e-5)


def test_position_norm_is_a_layer_norm_at_each_position():
    layer = awake(PositionNorm(6))
    x = noise(2, 6, 4, 5, scale=3.0)
    with torch.no_grad():
        for f, t in ((0, 0), (3, 2)):
            one = x[1, :, f, t]
            expected = (one - one.mean()) / (one.var(correction=0) + 1e-5).sqrt()
            expected = expected * layer.weight + layer.bias
            assert torch.allclose(layer(x)[1, :, f, t], expected, atol=1e-5)


@pytest.mark.parametrize("config", [FREQUENCY, TINY_PAPER.unet])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 8), (8, 5), (7, 9)])
def test_a_unet_takes_any_bins_and_frames(config, shape):
    unet = awake(UNet(config, in_channels=3, out_channels=2))
    with torch.no_grad():
        y = unet(noise(2, 3, *shape), torch.tensor([0, 7]), noise(2, config.channels, *shape))
    assert y.shape == (2, 2, *shape)
    assert bool(torch.isfinite(y).all())
    assert float(y.std()) > 0


def test_an_untrained_unet_says_nothing():
    # zero-initialised last convolutions (SegDiff): training starts from a constant
    unet = UNet(FREQUENCY, in_channels=1, out_channels=1).eval()
    with torch.no_grad():
        y = unet(noise(1, 1, 5, 6), torch.tensor([3]), noise(1, 16, 5, 6))
    assert float(y.abs().max()) == 0


def test_the_condition_is_added_once_after_the_first_convolution():
    unet = awake(UNet(FREQUENCY, in_channels=1, out_channels=1))
    x, step, condition = noise(1, 1, 6, 8), torch.tensor([3]), noise(1, 16, 6, 8)
    shift = noise(16, seed=9, scale=1.0)
    with torch.no_grad():
        expected = unet(x, step, condition + shift[:, None, None])
        assert not torch.allclose(expected, unet(x, step, condition), atol=1e-3)
        # SegDiff, Eq. 6: F(x) + G(I); a shift of one sum's term is that of the other
        unet.first.bias += shift
        assert torch.allclose(unet(x, step, condition), expected, atol=1e-5)


def test_the_step_matters_and_items_do_not_mix():
    unet = awake(UNet(FREQUENCY, in_channels=1, out_channels=1), scale=0.3)
    x, condition = noise(3, 1, 6, 8), noise(3, 16, 6, 8)
    steps = torch.tensor([0, 50, 99])
    with torch.no_grad():
        together = unet(x, steps, condition)
        for i in range(3):
            alone = unet(x[i : i + 1], steps[i : i + 1], condition[i : i + 1])
            assert torch.allclose(together[i : i + 1], alone, atol=1e-5)
        assert not torch.allclose(unet(x, steps.flip(0), condition)[0], together[0], atol=1e-4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "fields",
    [
        {"channels": 0},
        {"channels": 100},
        {"res_blocks": 1.5},
        {"multipliers": ()},
        {"heads": 3},
        {"norm": "batch"},
        {"attention_axis": "time"},
        {"dropout": 1.0},
        {"multipliers": (1, 1.01)},
        {"multipliers": (1, -1)},
        {"multipliers": (1, math.inf)},
        {"multipliers": (1, 2), "attention_levels": (2,)},
        {"channels": 2**20},
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields):
    with pytest.raises(ConfigError):
        UNetConfig(**fields)


# ------------------------------------------------------------------ the model


def test_folding_is_undone_and_repeats_the_edge():
    model = make_model()
    for frames in (1, 3, 4, 26):
        value = noise(2, 33, frames)
        grid = model.fold(value)
        assert grid.shape == (2, 32, *model.grid(frames)) == (2, 32, 5, -(-frames // 4))
        assert torch.equal(model.unfold(grid, frames=frames), value)
        whole = grid.reshape(2, 8, 4, 5, -1)[:, 1:, :, -1]  # rows 33 to 39 of 40
        last = model.fold(value[:, -1:].expand(-1, 33, -1)).reshape(2, 8, 4, 5, -1)[:, 1:, :, -1]
        assert torch.equal(whole, last)


def test_a_condition_knows_no_level():
    model, wave = make_model(), noise(1, 400)
    expected = model.condition(wave)
    # a power of two, so that no sample is rounded
    assert torch.allclose(model.condition(wave / 64), expected, atol=1e-5)
    spectrum = model.stft.magnitude(wave * 0.05 / wave.square().mean().sqrt())
    assert torch.allclose(expected, (spectrum.log() + 4.0) / 3.0, atol=1e-4)
    silence = model.condition(torch.zeros(1, 400))
    assert torch.allclose(silence, torch.full_like(silence, (math.log(1e-5) + 4) / 3))
    assert torch.equal(model.level(torch.zeros(2, 400)), torch.ones(2))


def test_a_wave_becomes_a_heatmap():
    model = make_model(draws=2)
    heat = model(noise(2, 400))
    assert heat.shape == (2, 33, 26)
    assert 0 <= float(heat.min()) < float(heat.max()) <= 1
    assert torch.equal(heat, sample(model, model.condition(noise(2, 400)), draws=2, seed=0).mean)


def test_refining_splits_a_patch_into_quarters_and_those_into_quarters():
    model = make_model(refine=(8, 8))
    value = noise(1, 33, 24)
    for refine, bins, frames in ((model.refine, 4, 2), (model.refine.finer, 2, 1)):
        parts = refine._split(model.fold(value))
        assert parts.shape == (1, bins * frames, 40 // bins, 24 // frames)
        for row, column in ((0, 0), (3, 7), (32 // bins - 1, 24 // frames - 1)):
            found = parts[0, :, row, column].reshape(bins, frames)
            wanted = value[0, bins * row :, frames * column :][:bins, :frames]
            assert torch.equal(found, wanted)


@pytest.mark.parametrize(("trained", "reach"), [("refine", 2), ("refine.finer", 1)])
def test_an_untrained_refinement_changes_nothing_and_a_trained_one_sees_the_condition(
    trained, reach
):
    """Four convolutions reach four half patches: two patches to each side; or one of quarters."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"refine": Refine((8, 4), views=2, widths=(16, 8))})
    refine = model["refine"]
    prediction, condition = noise(1, 32, 5, 6), noise(1, 64, 5, 6, seed=1, scale=1.0)
    with torch.no_grad():
        assert torch.equal(refine(prediction, refine.view(condition)), prediction)
        torch.nn.init.normal_(model.get_submodule(trained).last.weight)
        changed = condition.clone()
        changed[:, 0, 2, 3] += 1
        moved = refine(prediction, refine.view(changed)) - refine(
            prediction, refine.view(condition)
        )
    assert float(moved[..., 2, 3].abs().max()) > 1e-3
    still = [column for column in range(6) if abs(column - 3) > reach]
    assert float(moved[..., still].abs().max()) == 0


def test_each_refinement_corrects_what_the_one_before_gives():
    torch.manual_seed(0)
    refine = Refine((8, 4), views=1, widths=(8, 4))
    prediction, condition = noise(1, 32, 5, 6), noise(1, 32, 5, 6, seed=1)
    with torch.no_grad():
        refine.last.bias.fill_(1.0)
        refine.finer.last.bias.fill_(0.5)
        assert torch.allclose(refine(prediction, refine.view(condition)), prediction + 1.5)
        seen = []
        refine.finer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        refine(prediction, refine.view(condition))
    assert torch.allclose(seen[0], prediction + 1)


def test_the_smoothed_view_is_what_the_mask_is_made_of():
    """With the raw view silenced, the encoder sees log(smooth(magnitude)) and nothing else."""
    model = make_model(refine=())
    magnitude = noise(1, 33, 24, scale=1.0).abs() + 0.01
    seen = []
    handle = model.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model.encode(model.normalise(magnitude))
    handle.remove()
    raw, smoothed = seen[0].split(32, dim=1)
    assert torch.allclose(model.unfold(raw, frames=24), model.normalise(magnitude), atol=1e-6)
    expected = (smooth(magnitude).log() + 4) / 3
    assert torch.allclose(model.unfold(smoothed, frames=24), expected, atol=1e-5)


def test_another_number_of_bins_is_refused():
    model = make_model()
    for condition in (noise(1, 32, 10), noise(33, 10), noise(1, 1, 33, 10)):
        with pytest.raises(ShapeError, match=r"\(b, 33, t\)"):
            model.encode(condition)


@pytest.mark.parametrize(
    "fields",
    [
        {"rrdb_blocks": 0},
        {"draws": True},
        {"steps": 101},
        {"rms": 0.0},
        {"log_scale": float("nan")},
        {"patch": (8,)},
        {"patch": 8},
        {"patch": (0, 4)},
        {"patch": (8, 1), "refine": (8,)},
        {"patch": (4, 2), "refine": (8, 8)},
        {"refine": 64},
        {"refine": (0,)},
        {"refine": (True,)},
        {"rms": math.inf},
        {"mask_scale": 1e300},
        {"log_scale": 1e-300},
        {"log_mean": -1e9},
        {"train_steps": 20, "steps": 1},
        {"log_mean": math.nan},
        {"rrdb_blocks": 10**9},
        {"prediction": "velocity"},
        {"schedule": "cosine"},
        {"sampler": "euler"},
    ],
)
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        SegDiffConfig(**fields)


def test_presets_are_named_in_the_error():
    with pytest.raises(ConfigError, match=r"paper.*small.*tiny"):
        SpecSegDiff.from_preset("large")


# ------------------------------------------------------------------ how far a frame looks


def heat_of_one_pass(model, condition):
    x = model.fold(noise(1, 33, condition.shape[-1], seed=8, scale=1.0))
    with torch.no_grad():
        # not the last step, which sees no x
        grid = model.denoise(x, torch.tensor([50]), model.encode(condition))
    return model.unfold(grid, frames=condition.shape[-1])


def test_a_map_moves_with_its_recording():
    """With position norm and frequency attention: a shift by whole columns, away from the ends."""
    model, shift = make_model(), 3 * 8
    # more than the convolutions of one pass can carry
    reach = 208
    frames = 2 * reach + 80
    long = noise(1, 33, frames + shift, scale=1.0)
    noised = noise(1, 33, frames + shift, seed=8, scale=1.0)
    with torch.no_grad():
        early, late = (
            model.unfold(
                model.denoise(
                    model.fold(noised[..., part]),
                    torch.tensor([50]),
                    model.encode(long[..., part]),
                ),
                frames=frames,
            )
            for part in (slice(frames), slice(shift, shift + frames))
        )
    inside = slice(reach, frames - reach - shift)
    moved = early[..., shift + reach : frames - reach]
    assert moved.shape[-1] == 56
    # the same sums in the same order, of which kernels may split some differently
    assert torch.allclose(late[..., inside], moved, atol=1e-5)
    assert not torch.allclose(early[..., inside], moved, atol=1e-3)


# ------------------------------------------------------------------ the prior


def test_a_prior_is_the_mean_mask_of_each_bin():
    model = SpecSegDiff(TINY).eval()
    share = torch.linspace(0.01, 0.6, 33)
    model.set_prior(share)
    heat = sample(model, noise(1, 33, 10), draws=1, steps=1).mean
    # an untrained network adds nothing to it
    assert torch.allclose(heat[0], share[:, None].expand(33, 10), atol=1e-5)
    with pytest.raises(ConfigError, match="prior"):
        make_model(TINY_PAPER).set_prior(share)

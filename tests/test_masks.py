"""The ground truth against its published numbers, SciPy, a slow replica, and its laws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import STFT, noise
from scipy.ndimage import gaussian_filter1d

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.frontend import Stft
from specsegdiff.masks import (
    MaskConfig,
    difference,
    gaussian_taps,
    ground_truth,
    margin_map,
    shared_band,
    smooth,
    top_share,
)

LOG = MaskConfig(domain="log")


def magnitudes(*shape, seed=0):
    return noise(*shape, seed=seed, scale=1.0).abs()


# ------------------------------------------------------------------ smoothing


def test_taps_are_the_published_ones():
    # computed with SciPy for the paper's kernel, four digits
    assert gaussian_taps(3, 3.0).tolist() == pytest.approx([0.3143, 0.3713, 0.3143], abs=5e-5)
    long = gaussian_taps(11, 5.0)
    assert (float(long[0]), float(long[5])) == pytest.approx((0.0148, 0.1808), abs=5e-5)
    assert torch.equal(long, long.flip(0))
    assert float(long.double().sum()) == pytest.approx(1, abs=1e-7)


def test_a_width_may_be_a_variance_or_a_deviation():
    deviation = gaussian_taps(11, 3.0, spread_is="deviation")
    assert torch.equal(deviation, gaussian_taps(11, 9.0))
    assert not torch.allclose(deviation, gaussian_taps(11, 3.0))
    value, wide = magnitudes(1, 33, 20), MaskConfig(spread_is="deviation")
    assert torch.equal(
        smooth(value, wide), smooth(value, MaskConfig(time_spread=9, freq_spread=25))
    )


@pytest.mark.parametrize(
    "config", [MaskConfig(), MaskConfig(frames=11, bins=3, time_spread=5, freq_spread=3)]
)
@pytest.mark.parametrize("shape", [(33, 20), (2, 33, 20), (513, 2), (1, 1)])
def test_smoothing_is_scipys(config, shape):
    value = magnitudes(*shape)
    expected = value.double().numpy()
    for axis, size, variance in (
        (-2, config.bins, config.freq_spread),
        (-1, config.frames, config.time_spread),
    ):
        # truncate = radius / sigma gives exactly `size` taps; 'nearest' repeats the edge
        sigma = variance**0.5
        expected = gaussian_filter1d(
            expected, sigma, axis=axis, mode="nearest", truncate=size // 2 / sigma
        )
    # rounding of float32 sums of 33 values below 5
    assert np.allclose(smooth(value, config).numpy(), expected, atol=2e-6)


def test_axis_orders_of_3_x_11_are_mirror_images():
    value = magnitudes(40, 40)
    swapped = MaskConfig(frames=11, bins=3, time_spread=5.0, freq_spread=3.0)
    assert torch.allclose(smooth(value, swapped), smooth(value.T).T, atol=1e-6)
    assert not torch.allclose(smooth(value, swapped), smooth(value), atol=1e-3)


def test_one_tap_switches_smoothing_off():
    value = magnitudes(7, 9)
    assert torch.equal(smooth(value, MaskConfig(frames=1, bins=1)), value)


# ------------------------------------------------------------------ difference


def slow_difference(real, fake, config):
    """Eq. 2 of the paper, bin by bin in float64."""

    def smoothed(value, f, t):
        bins, frames = value.shape
        total, weights = 0.0, 0.0
        for df in range(-(config.bins // 2), config.bins // 2 + 1):
            for dt in range(-(config.frames // 2), config.frames // 2 + 1):
                weight = np.exp(
                    -(df**2) / (2 * config.freq_spread) - dt**2 / (2 * config.time_spread)
                )
                row, column = min(max(f + df, 0), bins - 1), min(max(t + dt, 0), frames - 1)
                total += weight * float(value[row, column])
                weights += weight
        return total / weights

    result = np.empty(real.shape)
    for f in range(real.shape[0]):
        for t in range(real.shape[1]):
            r, k = smoothed(real, f, t), smoothed(fake, f, t)
            if config.domain == "log":
                result[f, t] = abs(np.log(k + config.floor) - np.log(r + config.floor))
            else:
                result[f, t] = abs(k - r) / (r + config.floor)
    return result


@pytest.mark.parametrize("config", [MaskConfig(), LOG, MaskConfig(floor=0.1), MaskConfig(bins=3)])
def test_difference_is_its_slow_replica(config):
    real, fake = magnitudes(14, 6, seed=1), magnitudes(14, 6, seed=2)
    expected = slow_difference(real, fake, config)
    assert np.allclose(difference(real, fake, config).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_only_the_log_difference_is_symmetric():
    real, fake = magnitudes(1, 33, 20, seed=1), magnitudes(1, 33, 20, seed=2)
    forth, back = difference(real, fake, LOG), difference(fake, real, LOG)
    assert torch.allclose(forth, back, atol=1e-5)
    assert not torch.allclose(difference(real, fake), difference(fake, real), atol=0.1)
    # what loses all energy differs by 1 in Eq. 2, and what gains it by more
    assert float(difference(real, torch.zeros_like(real)).max()) <= 1
    assert float(difference(real, 5 * real).min()) > 3.9


def test_the_mask_knows_no_level_of_both_and_no_equaliser_of_both():
    real, fake = magnitudes(1, 200, 30, seed=1), magnitudes(1, 200, 30, seed=2)
    mask = ground_truth(real, fake)
    assert torch.equal(ground_truth(8 * real, 8 * fake), mask)
    # it changes slowly over frequency, so that it nearly commutes with smoothing
    tilt = torch.logspace(-1, 1, 200)[:, None]
    assert float((ground_truth(tilt * real, tilt * fake) ^ mask).double().mean()) < 0.005
    assert float((ground_truth(real, tilt * fake) ^ mask).double().mean()) > 0.02


def test_matching_levels_undoes_a_gain():
    stft, real = Stft(STFT), noise(3000, seed=3)
    fake = real + noise(3000, seed=4, scale=0.05)
    louder = 0.25 * fake  # a power of two: the match is exact
    magnitude = stft.magnitude
    mask = ground_truth(magnitude(real), magnitude(fake))
    assert torch.equal(ground_truth(magnitude(real), magnitude(louder * 4)), mask)
    assert not torch.equal(ground_truth(magnitude(real), magnitude(louder)), mask)


def test_equal_recordings_do_not_differ():
    value = magnitudes(1, 33, 20)
    for config in (MaskConfig(), LOG):
        assert float(difference(value, value, config).max()) == 0
    silence = torch.zeros(1, 33, 20)
    assert float(difference(silence, silence).max()) == 0


def test_a_changed_patch_is_found():
    real = magnitudes(1, 100, 50) + 0.5
    fake = real.clone()
    fake[:, 40:60, 20:32] *= 4
    # 20 x 12 of 5000 bins changed, 250 are asked for; smoothing widens the edge
    mask = ground_truth(real, fake)
    assert int(mask[:, 40:60, 20:32].sum()) > 200
    assert int(mask[:, 34:66, 18:34].sum()) == 250


# ------------------------------------------------------------------ shares


def slow_top(value, share, valid=None):
    """Sort (value descending, index ascending), as the docstring says."""
    rows = []
    keep = np.ones(value.shape, bool) if valid is None else valid
    for item, inside in zip(value, keep, strict=True):
        places = [i for i in range(item.size) if inside.flat[i]]
        places.sort(key=lambda i: (-item.flat[i], i))
        mask = np.zeros(item.size, bool)
        mask[places[: round(share * len(places))]] = True
        rows.append(mask.reshape(item.shape))
    return np.stack(rows)


@settings(max_examples=40, deadline=None, database=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 7)),
    levels=st.integers(1, 6),
    share=st.floats(0, 1),
    seed=st.integers(0, 999),
    restrict=st.booleans(),
)
def test_top_share_is_a_stable_sort(shape, levels, share, seed, restrict):
    rng = np.random.default_rng(seed)
    value = rng.integers(0, levels, shape).astype(np.float32)
    valid = rng.random(shape) < 0.6 if restrict else None
    mask = top_share(
        torch.from_numpy(value),
        share=share,
        valid=None if valid is None else torch.from_numpy(valid),
    )
    assert np.array_equal(mask.numpy(), slow_top(value, share, valid))


def test_an_item_does_not_influence_its_neighbours():
    value = magnitudes(4, 33, 20)
    value[1] *= 1000
    alone = torch.cat([top_share(item[None]) for item in value])
    assert torch.equal(top_share(value), alone)
    assert top_share(value).sum(dim=(1, 2)).tolist() == [round(0.05 * 33 * 20)] * 4


def test_the_quantile_and_the_share_count_alike():
    # 513 x 10 bins: 256.5 is a tie that 1 - 0.95 = 0.05000000000000004 would decide otherwise
    value = magnitudes(1, 513, 10)
    assert torch.equal(
        ground_truth(torch.ones_like(value), value, MaskConfig(frames=1, bins=1)),
        top_share((value - 1).abs(), share=0.05),
    )


def test_infinity_ranks_first_and_nan_is_refused():
    value = magnitudes(1, 10, 10)
    value[0, 3, 4] = torch.inf
    assert top_share(value, share=0.01).nonzero().tolist() == [[0, 3, 4]]
    value[0, 0, 0] = torch.nan
    with pytest.raises(ShapeError, match="NaN"):
        top_share(value)


def test_shared_band_ends_at_its_frequency():
    band = shared_band(torch.zeros(2, 513, 4), band_hz=4000, hertz_per_bin=15.625)
    assert band.shape == (2, 513, 4)
    assert band.any(dim=2).sum(dim=1).tolist() == [257, 257]  # bin 256 is 4000 Hz
    real, fake = magnitudes(1, 513, 9, seed=1), magnitudes(1, 513, 9, seed=2)
    fake[:, 257:] = 0
    mask = ground_truth(real, fake, valid=band[:1, :, :1].expand(1, 513, 9))
    assert int(mask.sum()) == round(0.05 * 257 * 9)
    assert not mask[:, 257:].any()


# ------------------------------------------------------------------ margins


@pytest.mark.parametrize("restrict", [False, True])
def test_margins_are_the_mask_with_its_confidence(restrict):
    value = magnitudes(33, 40)
    valid = shared_band(value, band_hz=20, hertz_per_bin=1) if restrict else None
    margin = margin_map(value, valid=valid)
    assert torch.equal(margin >= 0, top_share(value, valid=valid))
    inside = torch.ones_like(value, dtype=torch.bool) if valid is None else valid
    assert torch.equal(margin.isnan(), ~inside)
    # a log ratio: as much as the value, up to one constant
    constant = margin[inside] - value[inside].log()
    assert float(constant.max() - constant.min()) < 1e-5


def test_no_difference_is_no_foreground():
    nothing = margin_map(torch.zeros(33, 40))
    assert not (nothing >= 0).any()
    little = torch.zeros(33, 40)
    little[3, 4] = 1.0  # fewer bins differ than the share asks for
    assert (margin_map(little) >= 0).nonzero().tolist() == [[3, 4]]
    assert not margin_map(little).isnan().any()


# ------------------------------------------------------------------ bad input


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("real", "fake"),
    [
        (torch.ones(1, 33, 20), torch.ones(1, 33, 21)),
        (torch.ones(1, 33, 20), torch.ones(33, 20)),
        (torch.ones(5), torch.ones(5)),
        (torch.ones(1, 0, 4), torch.ones(1, 0, 4)),
        (-torch.ones(3, 4), torch.ones(3, 4)),
        (torch.ones(3, 4), torch.full((3, 4), torch.inf)),
        (torch.full((3, 4), torch.nan), torch.ones(3, 4)),
        (torch.ones(3, 4, dtype=torch.complex64), torch.ones(3, 4)),
        (np.ones((3, 4)), torch.ones(3, 4)),
    ],
)
def test_what_are_no_two_magnitudes_is_refused(real, fake):
    with pytest.raises(ShapeError):
        ground_truth(real, fake)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "fields",
    [
        {"frames": 2},
        {"bins": 0},
        {"bins": 3.0},
        {"frames": True},
        {"time_spread": 0.0},
        {"freq_spread": float("nan")},
        {"floor": -1e-8},
        {"spread_is": "sigma"},
        {"domain": "db"},
        {"quantile": 1.0},
        {"quantile": float("nan")},
    ],
)
def test_settings_outside_their_domain_are_refused(fields):
    with pytest.raises(ConfigError, match=f"MaskConfig.{next(iter(fields))}"):
        MaskConfig(**fields)


@pytest.mark.usefixtures("unchecked")
def test_other_shares_and_bands_are_refused():
    value = magnitudes(3, 4)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="share"):
            top_share(value, share=share)
    with pytest.raises(ConfigError, match="band_hz"):
        shared_band(value, band_hz=0.0, hertz_per_bin=1.0)
    with pytest.raises(ShapeError, match="valid"):
        top_share(value, valid=torch.ones(4, 3, dtype=torch.bool))

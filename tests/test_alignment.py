import numpy as np
import pytest
import torch
from speech import speech
from torch import Tensor

from specsegdiff.data.alignment import align, dtw_align, dtw_path
from specsegdiff.data.vocoders import GriffinLim
from specsegdiff.errors import ConfigError, ShapeError

STEPS = ((1, 1), (0, 1), (1, 0))


@pytest.fixture(scope="module")
def wave() -> Tensor:
    return speech()


# --- one shift


@pytest.mark.parametrize("lag", [-1024, -300, -1, 0, 7, 800])
@pytest.mark.parametrize("gain", [0.1, 3.0])
def test_the_lag_of_a_waveform_is_found_to_the_sample(lag, gain, wave):
    late = torch.nn.functional.pad(wave, (lag, 50)) * gain
    aligned, found = align(wave, late)
    assert found == lag
    assert aligned.shape == wave.shape
    kept = slice(max(0, -lag), None)
    torch.testing.assert_close(aligned[kept], gain * wave[kept])


@pytest.mark.parametrize("lag", [-600, 0, 333])
def test_the_lag_of_a_phase_free_copy_is_found_to_a_few_samples(lag, wave):
    fake = GriffinLim()(wave)
    assert abs(torch.corrcoef(torch.stack((wave, fake)))[0, 1]) < 0.5
    found = align(wave, torch.nn.functional.pad(fake, (lag, 0)))[1]
    # Griffin-Lim itself is off by up to 30 samples: it smears onsets forward.
    assert abs(found - lag) <= 32


def test_lags_beyond_the_limit_are_not_returned(wave):
    late = torch.nn.functional.pad(wave, (500, 0))
    assert abs(align(wave, late, max_lag=100)[1]) <= 100
    assert align(wave, late, max_lag=0)[1] == 0


# --- frame by frame


def random_map(frames, *, seed=0, bins=12):
    return torch.rand(bins, frames, generator=torch.Generator().manual_seed(seed)) ** 3


def slow_cost(real, fake):
    """Cosine distances, cell by cell."""
    real, fake = real.double(), fake.double()
    return np.array(
        [[float(1 - torch.dot(a, b) / a.norm() / b.norm()) for b in fake.T] for a in real.T]
    )


def slow_total(cost, band):
    """Cost of the cheapest path, by the recursion as it is written in textbooks."""
    total = np.full(cost.shape, np.inf)
    for i, j in np.ndindex(*cost.shape):
        if abs(i - j) <= band:
            before = [total[i - a, j - b] for a, b in STEPS if i >= a and j >= b]
            total[i, j] = cost[i, j] + (min(before) if before else 0)
    return total[-1, -1]


@pytest.mark.parametrize(("t1", "t2"), [(1, 1), (1, 7), (7, 1), (9, 9), (70, 65), (40, 133)])
@pytest.mark.parametrize("spare", [None, 0, 3])
def test_path_is_legal_and_as_cheap_as_the_textbook_recursion(t1, t2, spare):
    real, fake = random_map(t1), random_map(t2, seed=1)
    band = None if spare is None else abs(t1 - t2) + spare
    path = dtw_path(real, fake, band=band).numpy()
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [t1 - 1, t2 - 1]
    assert {tuple(step) for step in np.diff(path, axis=0)} <= set(STEPS)
    reach = max(t1, t2) if band is None else band
    assert np.abs(path[:, 0] - path[:, 1]).max() <= reach
    cost = slow_cost(real, fake)
    # costs are rounded to 2**-30, at most 173 of them are added
    assert cost[path[:, 0], path[:, 1]].sum() == pytest.approx(slow_total(cost, reach), abs=1e-6)


def test_path_equals_librosa():
    sequence = pytest.importorskip("librosa.sequence", reason="librosa is not installed")
    for seed, (t1, t2) in enumerate([(50, 63), (63, 50), (5, 200)]):
        real, fake = random_map(t1, seed=seed), random_map(t2, seed=seed + 10)
        _, path = sequence.dtw(real.numpy(), fake.numpy(), metric="cosine")
        assert np.array_equal(dtw_path(real, fake).numpy(), path[::-1])


@pytest.mark.parametrize("domain", ["linear", "log"])
@pytest.mark.parametrize("band", [None, 0, 5])
def test_a_map_aligned_with_itself_is_itself(domain, band):
    real = random_map(200)
    real[:, 50:60] = 0
    assert torch.equal(dtw_align(real, real, domain=domain, band=band), real)


def test_a_fading_tone_stays_on_the_diagonal():
    # all frames are at distance zero, so only the preferred step decides
    tone = random_map(1) * torch.linspace(1, 1e-4, 80)
    assert torch.equal(dtw_align(tone, tone), tone)


def test_silence_inserted_into_the_fake_is_stepped_over():
    real = random_map(90)
    fake = torch.cat([real[:, :40], torch.zeros(12, 25), real[:, 40:]], dim=1)
    aligned = dtw_align(real, fake)
    assert aligned.shape == fake.shape
    spoken = [*range(40), *range(65, 115)]
    assert torch.equal(aligned[:, spoken], real)


def test_silence_that_the_fake_lacks_leaves_no_trace():
    fake = random_map(90)
    real = torch.cat([fake[:, :40], torch.zeros(12, 25), fake[:, 40:]], dim=1)
    assert torch.equal(dtw_align(real, fake), fake)


def test_levels_of_frames_do_not_matter():
    real, fake = random_map(40), random_map(47, seed=1)
    gain = torch.logspace(-6, 3, 47)
    assert torch.equal(dtw_path(real, fake), dtw_path(real * 100, fake * gain))


def test_the_domain_decides_whether_loud_or_quiet_bins_count():
    # the middle frame has the loud bins of the first real one and the quiet bins of the second
    first = torch.tensor([1.0, 0.5, 0.01, 0.0])
    second = torch.tensor([0.5, 1.0, 0.0, 0.01])
    middle = torch.tensor([1.0, 0.5, 0.0, 0.01])
    real, fake = torch.stack([first, second], 1), torch.stack([first, middle, second], 1)
    assert dtw_path(real, fake, domain="linear").tolist() == [[0, 0], [0, 1], [1, 2]]
    assert dtw_path(real, fake, domain="log").tolist() == [[0, 0], [1, 1], [1, 2]]


def test_dtype_and_values_are_those_of_the_real_map():
    real = random_map(30).half()
    aligned = dtw_align(real, random_map(33, seed=1))
    assert aligned.dtype == torch.float16
    columns = {tuple(column) for column in real.T.tolist()}
    assert {tuple(column) for column in aligned.T.tolist()} <= columns


@pytest.mark.parametrize(
    ("real", "fake", "match"),
    [
        (torch.rand(1, 4, 5), torch.rand(4, 5), "item by item"),
        (torch.rand(4, 5), -torch.rand(4, 5), "negative"),
        (torch.rand(4, 5), torch.full((4, 5), torch.nan), "finite"),
        (torch.rand(4, 5), torch.rand(3, 5), "4 bins and fake 3"),
        (torch.rand(4, 0), torch.rand(4, 5), "non-empty"),
    ],
)
def test_other_shapes_and_values_are_refused(real, fake, match):
    with pytest.raises(ShapeError, match=match):
        dtw_align(real, fake)


def test_settings_outside_their_domain_are_refused():
    with pytest.raises(ConfigError, match="differ by 4"):
        dtw_path(random_map(5), random_map(9), band=3)
    with pytest.raises(ConfigError, match="'decibel'"):
        dtw_path(random_map(5), random_map(5), domain="decibel")

"""Laws of loading: windows are slices, kinds of source agree, damage is an AudioError."""

import inspect
import io
import os
import resource
import shutil
import struct
import subprocess
import sys
import types
from fractions import Fraction
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.signal import firwin, resample_poly

from specsegdiff.data import audio as audio_module
from specsegdiff.data import decoding, samples
from specsegdiff.data.audio import load_audio, open_audio, write_audio
from specsegdiff.errors import AudioError, OutputError, ShapeError

EXACT = 2e-7  # float32 rounding of values below 1
AGREED = 1e-5  # the contract between windows and whole files

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape)


def tone(rate: int, hertz: float, seconds: float = 0.5) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def written(folder: Path, suffix: str = ".wav", *, n: int = 6_000, rate: int = 16_000, **kwargs):
    path = folder / f"take{suffix}"
    sf.write(path, noise(n), rate, **kwargs)
    return path


def rms(wave: torch.Tensor) -> float:
    return float(wave[len(wave) // 4 : -len(wave) // 4].square().mean().sqrt())


# Resampling


@pytest.mark.parametrize("rate", [44_100, 48_000, 22_050, 8_000, 11_025, 12_347, 1_000, 384_000])
def test_blocks_of_a_file_resample_like_the_whole_signal_at_once(tmp_path, monkeypatch, rate):
    """Oracle: scipy's resample_poly over the whole signal, with the documented filter."""
    monkeypatch.setattr(audio_module, "_BLOCK", 700)
    n = 3 * rate // 10 + 7
    path = tmp_path / "take.wav"
    sf.write(path, noise(n), rate, subtype="DOUBLE")
    ratio = Fraction(16_000, rate)
    longest = max(ratio.numerator, ratio.denominator)
    reach = max(10, min(64, 2**20 // longest)) * longest
    taps = firwin(2 * reach + 1, 0.961 / longest, window=("kaiser", 7.86))
    expected = resample_poly(noise(n), ratio.numerator, ratio.denominator, window=taps)
    wave = load_audio(path)
    assert wave.dtype == torch.float32
    assert wave.shape == (ceil(n * ratio),)
    np.testing.assert_allclose(wave.numpy(), expected, atol=EXACT)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000, 22_050, 8_000, 11_025, 12_345])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_any_window_is_a_slice_of_the_whole(tmp_path, rate, suffix):
    path = written(tmp_path, suffix, n=rate // 2, rate=rate)
    whole = load_audio(path)
    with open_audio(path) as stream:
        n = stream.n_samples
        assert n == len(whole)
        assert stream.source_rate == rate
        for start, stop in [(n - 3, n), (0, 1), (n // 3, 2 * n // 3), (0, n), (17, 17), (1, 2_222)]:
            window = stream.read(start, stop)
            assert window.shape == (stop - start,)
            torch.testing.assert_close(window, whole[start:stop], atol=AGREED, rtol=0)


@pytest.mark.parametrize("rate", [44_100, 48_000, 22_050])
def test_tones_below_the_band_edge_stay_and_those_above_vanish(rate):
    """From the filter's design: flat to 0.92 of 8 kHz, 80 dB down beyond 8 kHz."""
    assert rms(load_audio(tone(rate, 7_000), rate)) == pytest.approx(2**-0.5, rel=1e-3)
    assert rms(load_audio(tone(rate, 9_000), rate)) < 1e-4


def test_a_tone_keeps_its_time_and_phase():
    wave = load_audio(tone(44_100, 1_000), 44_100).numpy()
    np.testing.assert_allclose(wave[800:-800], tone(16_000, 1_000)[800:-800], atol=1e-3)


def test_upsampling_makes_no_images():
    wave = load_audio(tone(8_000, 3_000), 8_000).numpy()
    spectrum = np.abs(np.fft.rfft(wave[1_000:-1_000] * np.hanning(6_000)))
    assert spectrum[2_250:].max() < 1e-4 * spectrum.max()  # from 6 kHz up, beyond every side lobe


# Kinds of source


def test_every_kind_of_source_gives_the_same_wave(tmp_path):
    path = written(tmp_path, rate=44_100)
    pcm, rate = sf.read(path, dtype="int16")
    floats = (pcm / 32768).astype(np.float32)
    content = path.read_bytes()
    expected = load_audio(path)
    with path.open("rb") as file:
        from_object = load_audio(file)
    others = {
        "str": load_audio(str(path)),
        "given rate": load_audio(path, 44_100),
        "file object": from_object,
        "BytesIO": load_audio(io.BytesIO(content)),
        "bytes": load_audio(content),
        "int16": load_audio(pcm, rate),
        "big endian": load_audio(pcm.astype(">i2"), rate),
        "float32": load_audio(floats, np.int64(rate)),
        "list": load_audio(floats.tolist(), float(rate)),
        "tensor": load_audio(torch.tensor(floats, requires_grad=True), rate),
        "int16 tensor": load_audio(torch.tensor(pcm), rate),
        "dict": load_audio({"array": floats, "sampling_rate": rate, "path": None}),
        "dict of bytes": load_audio({"bytes": content, "path": "gone.wav"}),
        "dict of path": load_audio({"bytes": None, "path": str(path)}),
    }
    for kind, wave in others.items():
        assert torch.equal(wave, expected), kind


def test_a_stream_names_its_source(tmp_path):
    path = written(tmp_path)
    with open_audio(path) as stream:
        assert stream.name == str(path)
    with open_audio({"bytes": path.read_bytes(), "path": "a/b.wav"}) as stream:
        assert stream.name == "a/b.wav"


@pytest.mark.parametrize(
    ("dtype", "low", "middle", "high"),
    [
        (np.int8, -128, 0, 127),
        (np.int16, -32768, 0, 32767),
        (np.int32, -(2**31), 0, 2**31 - 1),
        (np.uint8, 0, 128, 255),
        (np.uint16, 0, 2**15, 2**16 - 1),
        (np.uint32, 0, 2**31, 2**32 - 1),
    ],
)
def test_integers_are_scaled_by_their_range(dtype, low, middle, high):
    wave = load_audio(np.array([low, middle, high], dtype), 16_000)
    assert wave[:2].tolist() == [-1.0, 0.0]
    assert 1 - 2.0 ** -(8 * np.dtype(dtype).itemsize - 1) == pytest.approx(float(wave[2]), abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_beyond_full_scale_are_kept(dtype):
    assert load_audio(torch.tensor([1.5, -4.0, 0.25], dtype=dtype), 16_000).tolist() == [
        1.5,
        -4,
        0.25,
    ]


@pytest.mark.parametrize("channels", [1, 2, 12])
def test_channels_are_averaged_whichever_axis_is_shorter(tmp_path, channels):
    takes = noise(channels, 900)
    path = tmp_path / "take.wav"
    sf.write(path, takes.T, 16_000, subtype="DOUBLE")
    for wave in (load_audio(takes, 16_000), load_audio(takes.T, 16_000), load_audio(path)):
        np.testing.assert_allclose(wave.numpy(), takes.mean(axis=0), atol=EXACT)


def test_silence_and_a_single_sample_are_audio():
    assert torch.equal(load_audio(np.zeros(9), 16_000), torch.zeros(9))
    assert load_audio([[0.5]], 16_000).tolist() == [0.5]
    assert load_audio([0.5], 48_000).shape == (1,)


def test_the_result_shares_no_memory_with_the_source():
    source = np.ones(5, np.float32)
    with open_audio(source, 16_000) as stream:
        source[:] = 0
        stream.read(0, 5).zero_()
        assert stream.read(0, 5).tolist() == [1] * 5


def test_a_decoder_object_is_read_channels_first():
    result = types.SimpleNamespace(data=torch.tensor([[0.25], [0.75]]), sample_rate=16_000)
    decoder = types.SimpleNamespace(get_all_samples=lambda: result)
    assert load_audio(decoder).tolist() == [0.5]


# Decoders


@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        *(("AIFF", "PCM_24"), ("AU", "ULAW"), ("CAF", "ALAC_16"), ("RF64", "FLOAT")),
        *(("W64", "PCM_32"), ("NIST", "PCM_16"), ("SDS", "PCM_16"), ("WAV", "IMA_ADPCM")),
        *(("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS")),
    ],
)
def test_other_formats_equal_their_decoding_by_soundfile(tmp_path, format, subtype):
    path = written(tmp_path, ".bin", rate=48_000, format=format, subtype=subtype)
    whole, rate = sf.read(path)
    with open_audio(path, target_rate=rate) as stream:
        np.testing.assert_allclose(stream.read(0, len(whole)).numpy(), whole, atol=EXACT)


@needs_ffmpeg
def test_a_format_foreign_to_soundfile_comes_through_ffmpeg(tmp_path):
    source, path = tmp_path / "tone.wav", tmp_path / "tone.m4a"
    sf.write(source, np.stack([tone(44_100, 440), tone(44_100, 440)], axis=1) / 2, 44_100)
    command = ["ffmpeg", "-v", "error", "-i", source, "-movflags", "faststart", path]
    subprocess.run(command, check=True)
    wave = load_audio(path)
    assert len(wave) == pytest.approx(8_000, abs=1_024)  # AAC works in frames of 1024 samples
    assert rms(wave[:8_000]) == pytest.approx(8**-0.5, rel=0.02)  # AAC at 128 kbit/s, one tone
    assert torch.equal(load_audio(path.read_bytes()), wave)
    path.write_bytes(path.read_bytes()[:-2_000])
    with pytest.raises(AudioError, match="ffmpeg"):
        load_audio(path)


@needs_ffmpeg
def test_streamed_headers_without_a_length_are_read_to_the_end(tmp_path):
    source = written(tmp_path)
    for kind in ("wav", "flac"):
        command = ["ffmpeg", "-v", "error", "-i", source, "-bitexact", "-f", kind, "-"]
        piped = subprocess.run(command, capture_output=True, check=True).stdout
        assert torch.equal(load_audio(piped), load_audio(source)), kind


@needs_ffmpeg
def test_extensible_float_w64_is_not_taken_for_integers(tmp_path):
    """libsndfile 1.2.2 reads the floats of such a file as 32-bit integers."""
    source, path = written(tmp_path), tmp_path / "take.w64"
    command = ["ffmpeg", "-v", "error", "-i", source, "-c:a", "pcm_f32le", path]
    subprocess.run(command, check=True)
    assert torch.equal(load_audio(path), load_audio(source))


def test_torchcodec_comes_before_ffmpeg(tmp_path, monkeypatch):
    path = tmp_path / "take.xyz"
    path.write_text("no audio")
    result = types.SimpleNamespace(data=torch.full((2, 3), 0.5), sample_rate=16_000)
    decoder = types.SimpleNamespace(get_all_samples=lambda: result)
    module = types.SimpleNamespace(AudioDecoder=lambda source: decoder)
    monkeypatch.setitem(sys.modules, "torchcodec", types.SimpleNamespace(decoders=module))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    assert load_audio(path).tolist() == [0.5] * 3


def test_the_last_error_names_the_three_decoders(tmp_path, monkeypatch):
    path = tmp_path / "notes.wav"
    path.write_text("these are words, not samples\n" * 200)
    with pytest.raises(AudioError, match=r"soundfile.*torchcodec.*ffmpeg"):
        load_audio(path)
    monkeypatch.setattr(decoding.shutil, "which", lambda program: None)
    with pytest.raises(AudioError, match=r"soundfile.*torchcodec.*ffmpeg: not installed"):
        load_audio(path)


def test_temporary_files_go_when_the_stream_is_closed(tmp_path, monkeypatch):
    path = written(tmp_path, ".ogg")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with open_audio(path.read_bytes()) as stream:
        assert len(list(scratch.iterdir())) == 2
    assert not list(scratch.iterdir())
    with pytest.raises(AudioError, match="open it again"):
        stream.read(0, 1)
    with pytest.raises(AudioError):
        load_audio(b"RIFF, but no more than that")
    assert not list(scratch.iterdir())


def test_a_full_temporary_folder_is_an_audio_error(tmp_path):
    path = written(tmp_path, ".ogg", n=400_000)
    with file_size_limit(2**20), pytest.raises(AudioError, match="free some space"):
        load_audio(path)


class file_size_limit:
    """A stand-in for a full disk: no file may grow beyond ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_reading_a_window_of_a_long_file_takes_no_memory(tmp_path):
    """400 s at 44.1 kHz are 141 MB of float64; a window may take the filter and one block."""
    path = tmp_path / "long.flac"
    with sf.SoundFile(path, "w", 44_100, 1, "PCM_16") as file:
        for _ in range(20):
            file.write(np.zeros(20 * 44_100, np.int16))
    import tracemalloc

    tracemalloc.start()
    try:
        with open_audio(path) as stream:
            assert stream.n_samples == 400 * 16_000
            for start in range(0, stream.n_samples - 4_000, 1_500_000):
                stream.read(start, start + 4_000)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


# Bad arrays


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (np.zeros(0), "shape"),
        ([], "shape"),
        (np.zeros((2, 0)), "shape"),
        (np.float32(0.5), "shape"),
        (np.zeros((1, 2, 30)), "shape"),
        (np.zeros((7, 7)), "channel axis"),
        (np.zeros(5, complex), "complex"),
        (torch.zeros(5, dtype=torch.complex64), "complex"),
        (np.zeros(5, bool), "bool"),
        ([True, False], "bool"),
        (np.zeros(5, object), "object"),
        (["a", "b"], "expected real"),
        ([[0.0], [0.0, 1.0]], "rectangular"),
        (None, "object"),
        (torch.zeros(5, device="meta"), "dense"),
        (torch.zeros(5).to_sparse(), "dense"),
        (np.zeros(5, np.int64), "64-bit"),
        ([0, 1200, -800], "64-bit"),
        (np.array([0.0, 1200.0, -800.0]), "32768"),
        ({"array": np.zeros(5), "sampling_rate": 8_000}, "sampling_rate=8000"),
        ({"text": "hello"}, "text"),
        ({"array": None, "bytes": None, "path": None}, "expected an audio dict"),
    ],
)
def test_what_cannot_be_audio_is_refused(source, said):
    with pytest.raises(AudioError, match=said):
        load_audio(source, 16_000)


def test_bad_values_are_counted_and_placed(tmp_path):
    values = noise(1_000, 2)
    values[321, 1] = np.nan
    values[400:402, 0] = -np.inf
    path = tmp_path / "take.wav"
    sf.write(path, values, 16_000, subtype="FLOAT")
    for source, rate in ((values, 16_000), (values.T, 16_000), (path, None)):
        with pytest.raises(AudioError, match=r"holds 3 NaN.* first at sample 321 of 1000"):
            open_audio(source, rate)
    with pytest.raises(AudioError, match="holds 8 NaN"):
        load_audio(torch.full((8,), torch.nan), 16_000)
    blocks = [np.zeros(5), np.array([0.0, np.nan]), np.array([np.inf])]
    with pytest.raises(AudioError, match=r"holds 2 NaN.* first at sample 6 of 8"):
        samples.check_values(blocks, "blocks")
    with pytest.raises(AudioError, match="infinite"):
        load_audio(np.array([1e300], np.longdouble) ** 2, 16_000)


@pytest.mark.parametrize(
    "rate",
    [None, 0, -1, 999, 384_001, 10**30, 16_000.5, np.nan, np.inf, True, "16000", [16_000], 1j],
)
def test_bad_rates_are_refused(rate):
    with pytest.raises(AudioError, match="rate"):
        load_audio(np.zeros(5), rate)
    with pytest.raises(AudioError, match="target_rate"):
        load_audio(np.zeros(5), 16_000, target_rate=rate)


def test_a_rate_that_contradicts_the_file_is_refused(tmp_path):
    with pytest.raises(AudioError, match=r"16000 Hz.*8000"):
        load_audio(written(tmp_path), 8_000)


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (0, 11)])
def test_a_window_outside_the_recording_is_refused(start, stop):
    with open_audio(np.zeros(10), 16_000) as stream, pytest.raises(AudioError, match="of <array>"):
        stream.read(start, stop)


# Bad files


def refused(source, said: str) -> None:
    with pytest.raises(AudioError, match=said):
        load_audio(source)


@pytest.mark.parametrize(
    "kind",
    [
        *(".wav PCM_16", ".wav FLOAT", ".wav IMA_ADPCM", ".flac PCM_16", ".aiff PCM_16"),
        *(".au PCM_16", ".caf PCM_16", ".w64 PCM_16", ".rf64 PCM_16"),
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_cut_short_is_refused(tmp_path, kind, share):
    suffix, subtype = kind.split()
    path = written(tmp_path, suffix, n=20_000, subtype=subtype)
    content = path.read_bytes()
    load_audio(path)
    path.write_bytes(content[: int(len(content) * share)])
    refused(path, "cut short")


def test_an_mp3_cut_short_is_refused(tmp_path):
    path = written(tmp_path, ".mp3", n=40_000)
    path.write_bytes(path.read_bytes()[:3_000])
    refused(path, "cut short")


def test_headers_that_lie_about_the_length_are_refused_without_reserving_it(tmp_path):
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", 2_000_000_000)
    refused(bytes(content), "2000000000 bytes, 12000 are there")
    flac = bytearray(written(tmp_path, ".flac").read_bytes())
    flac[21] |= 0x0F
    flac[22:26] = b"\xff" * 4
    refused(bytes(flac), "cut short")


def test_damage_inside_a_flac_is_refused_and_the_rest_is_readable(tmp_path):
    path = written(tmp_path, ".flac", n=40_000)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    refused(path, "unreadable within")
    with open_audio(path) as stream:
        assert stream.read(0, 100).shape == (100,)


def test_a_file_that_shrinks_while_open_is_refused(tmp_path):
    path = written(tmp_path)
    with open_audio(path) as stream:
        path.write_bytes(path.read_bytes()[:1_044])
        with pytest.raises(AudioError, match="no samples from 500 on"):
            stream.read(0, 6_000)


def test_files_that_are_none_are_refused(tmp_path):
    refused(tmp_path / "missing.wav", "No such file")
    refused("https://example.org/take.wav", "No such file")
    refused("take\0.wav", "cannot open")
    refused(tmp_path, "is a directory, expected")
    (tmp_path / "empty.wav").touch()
    refused(tmp_path / "empty.wav", "0 bytes")
    refused(b"", "0 bytes")
    sf.write(tmp_path / "header.wav", np.zeros(0), 16_000)
    refused(tmp_path / "header.wav", "no samples")
    (tmp_path / "take.raw").write_bytes(b"\0" * 999)
    refused(tmp_path / "take.raw", "soundfile")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.wav")
        refused(tmp_path / "pipe.wav", "device or pipe")


def test_a_file_object_must_give_bytes(tmp_path):
    refused(io.StringIO("text"), "mode 'rb'")
    with written(tmp_path).open("rb") as file:
        pass
    refused(file, "closed file")


def test_an_unreadable_file_is_refused(tmp_path):
    path = written(tmp_path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    refused(path, "permissions")


def test_an_integer_valued_float_file_is_refused(tmp_path):
    path = tmp_path / "take.wav"
    sf.write(path, noise(50) * 30_000, 16_000, subtype="FLOAT")
    refused(path, "32768")


# Any array whatever

# Good values stand several times, so that about a third of the draws is audio.
LENGTHS = st.integers(1, 60)
SHAPES = st.one_of(
    st.tuples(LENGTHS),
    st.tuples(LENGTHS, LENGTHS),
    st.lists(st.integers(0, 9), max_size=4).map(tuple),
)
DTYPES = "bhiBHIefdg" * 3 + "?lLFDO"
RATES = [8_000, 11_025, 16_000, 44_100, 48_000, 96_000] * 3 + [0, -5, 16_000.5, None]
FILLS = ["noise", "zeros"] * 3 + ["nan", "large"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=SHAPES,
    dtype=st.sampled_from(DTYPES),
    rate=st.sampled_from(RATES),
    fill=st.sampled_from(FILLS),
    as_tensor=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_array_gives_a_wave_of_the_right_length_or_an_audio_error(
    shape, dtype, rate, fill, as_tensor, seed
):
    scale = {"noise": 1.0, "zeros": 0.0, "nan": np.nan, "large": 1e4}[fill]
    with np.errstate(invalid="ignore"):
        values = (noise(*shape, seed=seed) * np.float64(scale)).astype(dtype)
    source = values
    if as_tensor and dtype not in "gO":
        source = torch.from_numpy(np.ascontiguousarray(values).reshape(shape))
    valid = (
        len(shape) in (1, 2)
        and values.size > 0
        and not (len(shape) == 2 and shape[0] == shape[1] > 1)
    )
    valid = valid and values.dtype.kind in "iuf" and dtype not in "lLqQ"
    valid = valid and rate not in (0, -5, 16_000.5, None)
    if valid and values.dtype.kind == "f":
        valid = bool(np.isfinite(values).all() and np.abs(values).max() <= samples.PEAK_LIMIT)
    if not valid:
        with pytest.raises(AudioError):
            load_audio(source, rate)
        return
    wave = load_audio(source, rate)
    assert wave.dtype == torch.float32
    assert wave.shape == (ceil(max(shape) * Fraction(16_000, rate)),)
    assert bool(wave.isfinite().all())


# Writing


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".FLAC"])
def test_what_is_written_is_read_to_half_a_step_and_then_bit_for_bit(tmp_path, suffix):
    wave = torch.from_numpy(noise(3_000)).float()
    path = tmp_path / f"take{suffix}"
    write_audio(path, wave, sample_rate=22_050)
    assert sf.info(path).subtype == "PCM_16"
    assert sf.info(path).samplerate == 22_050
    once = load_audio(path, target_rate=22_050)
    assert float((once - wave).abs().max()) <= 0.5 / 32768
    write_audio(path, once, sample_rate=22_050)
    assert torch.equal(load_audio(path, target_rate=22_050), once)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_writing_clips_and_does_not_wrap(tmp_path):
    path = tmp_path / "take.wav"
    write_audio(path, torch.tensor([1.5, 1.0, -1.0, -3.0]), sample_rate=16_000)
    assert load_audio(path).tolist() == [32767 / 32768, 32767 / 32768, -1.0, -1.0]


@pytest.mark.parametrize(
    "name", ["take.mp3", "take", "no/such/folder/take.wav", "x" * 300 + ".wav"]
)
def test_an_impossible_place_is_an_output_error(tmp_path, name):
    with pytest.raises(OutputError, match="cannot write"):
        write_audio(tmp_path / name, torch.zeros(5), sample_rate=16_000)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_permission_is_an_output_error(tmp_path):
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(OutputError, match="Permission"):
            write_audio(tmp_path / "take.wav", torch.zeros(5), sample_rate=16_000)
        assert not list(tmp_path.iterdir())
    finally:
        tmp_path.chmod(0o700)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "take.wav"
    write_audio(path, torch.zeros(5), sample_rate=16_000)
    before = path.read_bytes()
    with file_size_limit(1_000), pytest.raises(OutputError, match="large"):
        write_audio(path, torch.zeros(5_000), sample_rate=16_000)
    assert path.read_bytes() == before
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(OutputError):
        write_audio(tmp_path / "folder.wav", torch.zeros(5), sample_rate=16_000)
    assert {item.name for item in tmp_path.iterdir()} == {"take.wav", "folder.wav"}


@pytest.mark.parametrize(
    ("wave", "rate", "error"),
    [
        (torch.zeros(0), 16_000, ShapeError),
        (torch.zeros(2, 5), 16_000, ShapeError),
        (torch.zeros(5, dtype=torch.int16), 16_000, ShapeError),
        (torch.tensor([0.0, torch.nan]), 16_000, AudioError),
        (torch.tensor([0.0, 3e4]), 16_000, AudioError),
        (torch.zeros(5), 0, AudioError),
    ],
)
def test_a_wave_that_cannot_be_written_is_refused(tmp_path, wave, rate, error):
    with pytest.raises(error):
        write_audio(tmp_path / "take.wav", wave, sample_rate=rate)
    assert not list(tmp_path.iterdir())


# House rules


def test_the_documented_peak_is_the_one_in_force():
    assert f"peak over {samples.PEAK_LIMIT:g}" in inspect.getdoc(open_audio)
    assert load_audio([16.0], 16_000).tolist() == [16.0]


def test_loading_imports_scipy_only_to_resample():
    code = (
        "import sys; from specsegdiff.data.audio import load_audio as a; a([0.0], 16000);"
        "assert 'scipy' not in sys.modules; a([0.0], 8000)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])

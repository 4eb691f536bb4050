"""Every method on every pair: laws of the numbers, and runs that are killed and go on."""

import ctypes
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baselines.controls import Random
from specsegdiff.benchmark import (
    FAITHFULNESS,
    MEASURES,
    SIMILARITIES,
    TRUTH,
    Row,
    entries,
    measure,
    rank,
    score_maps,
    similarities,
)
from specsegdiff.benchmark import cost as cost_module
from specsegdiff.benchmark.cost import measured
from specsegdiff.benchmark.fingerprints import fingerprint
from specsegdiff.benchmark.journal import note_rows, open_journal, pack, unpack
from specsegdiff.data.audio import write_audio
from specsegdiff.data.pairs import Pair
from specsegdiff.errors import ConfigError, OutputError, ShapeError
from specsegdiff.frontend import Stft, StftConfig
from specsegdiff.masks import top_share
from specsegdiff.metrics.faithfulness import faithfulness
from specsegdiff.models.aasist import AASIST

RATE = 16_000
STFT = Stft()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """Two recordings, of 0.4 s, the first under three vocoders; one fake is shorter."""
    folder = tmp_path_factory.mktemp("pairs")
    made = []
    for i in range(4):
        generator = torch.Generator().manual_seed(i)
        source, n = i // 3, 6_400 - 512 * (i == 1)
        real = 0.1 * torch.randn(6_400, generator=torch.Generator().manual_seed(50 + source))
        # a noise in a band of its own for each vocoder
        tone = torch.sin(torch.arange(6_400) * (0.3 + 0.6 * i))
        fake = real + 0.05 * tone * torch.rand(6_400, generator=generator)
        write_audio(folder / f"real{source}.flac", real, sample_rate=RATE)
        write_audio(folder / f"fake{i}.flac", fake[:n], sample_rate=RATE)
        files = folder / f"real{source}.flac", folder / f"fake{i}.flac"
        extra = {"source_group": f"g{source}", "vocoder_seen": i > 0, "n_samples": n}
        made.append(Pair(f"p{i}", *files, vocoder=f"v{i}", **extra))
    return made


def detector(wave: Tensor) -> Tensor:
    """Hears how much of the power lies above 4 kHz."""
    power = STFT.magnitude(wave).square().mean(-1)
    share = power[:, 256:].sum(1) / (power.sum(1) + 1e-9)
    return torch.stack([8 * share, 4 - 8 * share], dim=1)


def signed(wave: Tensor) -> Tensor:
    """An attribution: loud bins for, and a few louder ones against."""
    value = STFT.magnitude(wave)
    return torch.where(torch.arange(513)[:, None] % 3 > 0, value, -2 * value)


class Counted:
    """A method that counts its calls, and fails at one of them; neither is a setting."""

    def __init__(self, method: Callable[[Tensor], Tensor], fails_at: int = 0) -> None:
        self.method, self._calls, self._fails_at = method, 0, fails_at

    @property
    def calls(self) -> int:
        return self._calls

    def __call__(self, wave: Tensor) -> Tensor:
        self._calls += 1
        if self._calls == self._fails_at:
            raise KeyboardInterrupt
        return self.method(wave)


def timeless(rows: list[Row]) -> list[Row]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "peak_mb")} for row in rows]


# ---------------------------------------------------------------- numbers


def test_every_row_holds_every_measure(pairs: list[Pair]) -> None:
    done = []
    methods = {"energy": STFT.magnitude, "signed": signed}
    rows = measure(methods, pairs, detector=detector, progress=lambda *d: done.append(d))
    assert done == [(i, 4) for i in range(1, 5)]
    assert [(r["id"], r["method"]) for r in rows] == [
        (f"p{i}", name) for i in range(4) for name in (TRUTH, "energy", "signed")
    ]
    for row in rows:
        assert row.keys() >= set(MEASURES)
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        if row["method"] == TRUTH:
            assert [row[name] for name in ("gdice", "foreground_dice", "iou")] == [100] * 3
            assert row["average_precision"] == pytest.approx(100)
            assert row["seconds"] is row["peak_mb"] is None
        else:
            assert row["gdice"] < 100
            assert row["seconds"] > 0
        assert unpack(row["marked"]).sum() == round(0.05 * unpack(row["marked"]).numel())


def test_the_detector_is_asked_about_the_mask_that_is_scored(pairs: list[Pair]) -> None:
    (_, row) = measure({"signed": signed}, pairs[:1], detector=detector)
    from specsegdiff.data.pairs import load_pair

    fake = load_pair(pairs[0])[1][None]
    own = top_share(signed(fake).abs())
    assert torch.equal(unpack(row["marked"])[None], own)
    expected = faithfulness(detector, fake, own)
    assert [row[name] for name in FAITHFULNESS] == [float(expected[n]) for n in FAITHFULNESS]
    (_, alone) = measure({"signed": signed}, pairs[:1])
    assert [alone[name] for name in FAITHFULNESS] == [None] * 5
    assert alone["gdice"] == row["gdice"]


def test_a_sign_counts_or_does_not(pairs: list[Pair]) -> None:
    methods = {
        "signed": signed,
        "for": lambda wave: signed(wave).clamp_min(0),
        "size": lambda wave: signed(wave).abs(),
        "quiet": lambda wave: -STFT.magnitude(wave),
    }
    rows = {}
    for ranking in ("absolute", "value"):
        found = measure(methods, pairs[:1], ranking=ranking)
        rows[ranking] = {row["method"]: row for row in found}
    absolute, value = rows["absolute"], rows["value"]
    assert absolute["signed"]["marked"] == absolute["size"]["marked"]
    assert value["signed"]["marked"] == value["for"]["marked"] != value["size"]["marked"]
    assert absolute["signed"]["gdice_by_value"] == value["signed"]["gdice"]
    # a map of one sign has none to drop: the quiet bins stay the quiet ones
    assert absolute["quiet"]["marked"] == value["quiet"]["marked"]
    assert absolute["quiet"]["marked"] != absolute["size"]["marked"]
    zeros = torch.zeros(2, 2)
    assert rank(zeros, "absolute") is zeros


class Against:
    """An attribution all of whose bins speak against; says so, or does not."""

    def __init__(self, **says: bool) -> None:
        vars(self).update(says)

    def __call__(self, wave: Tensor) -> Tensor:
        return -1 - STFT.magnitude(wave)


def test_a_method_says_whether_its_maps_are_signed(pairs: list[Pair]) -> None:
    methods = {"silent": Against(), "signed": Against(signed=True), "loud": STFT.magnitude}
    methods |= {"mixed": signed, "unsigned": Unsigned()}
    _, silent, says, loud, mixed, unsigned = measure(methods, pairs[:1])
    assert says["marked"] == loud["marked"] != silent["marked"]
    assert unsigned["marked"] != mixed["marked"]
    assert unsigned["gdice"] == unsigned["gdice_by_value"] == mixed["gdice_by_value"]
    heat = torch.tensor([[-2.0, -1.0]])
    assert rank(heat, "value", signed=True) is rank(heat, "absolute", signed=False) is heat


class Unsigned:
    """Such as a logarithm: both signs, and the highest counts."""

    signed = False

    def __call__(self, wave: Tensor) -> Tensor:
        return signed(wave)


def test_a_transform_is_taken_like_its_settings(pairs: list[Pair]) -> None:
    config = StftConfig(n_fft=512, hop=128)
    methods = {"loud": Stft(config).magnitude}
    one, other = (measure(methods, pairs[:1], stft=stft) for stft in (config, Stft(config)))
    assert timeless(one) == timeless(other)
    maps = [
        score_maps(lambda pair, wave: Stft(config).magnitude(wave), pairs[:1], stft=stft)
        for stft in (config, Stft(config))
    ]
    assert maps[0] == maps[1]
    for wrong in (512, "stft"):
        with pytest.raises(ConfigError, match="StftConfig"):
            measure(methods, pairs[:1], stft=wrong)  # type: ignore[arg-type]


def test_only_the_shared_band_counts(pairs: list[Pair]) -> None:
    narrow = replace(pairs[0], band_hz=4_000.0)
    loud_above = {
        "above": lambda wave: torch.arange(513.0)[:, None].expand_as(signed(wave)[0])[None]
    }
    (truth, row) = measure(loud_above, [narrow])
    assert row["bins"] == 257
    assert unpack(row["marked"])[257:].sum() == unpack(truth["marked"])[257:].sum() == 0
    assert unpack(row["marked"])[256].all()


def test_a_real_detector_is_left_as_it_was(pairs: list[Pair]) -> None:
    model = AASIST.from_preset("tiny")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = measure({"energy": STFT.magnitude}, pairs[:1], detector=model)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(math.isfinite(rows[1][name]) for name in FAITHFULNESS)


def test_a_method_on_other_axes_is_named(pairs: list[Pair]) -> None:
    for wrong in (lambda wave: STFT.magnitude(wave)[0], lambda wave: STFT.magnitude(wave)[..., 1:]):
        with pytest.raises(ShapeError, match="mine"):
            measure({"mine": wrong}, pairs[:1])
    with pytest.raises(ShapeError, match="p0: expected a finite map by mine"):
        measure({"mine": lambda wave: STFT.magnitude(wave).log() * math.nan}, pairs[:1])
    with pytest.raises(ConfigError, match="ranking"):
        measure({"mine": signed}, pairs[:1], ranking="size")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=TRUTH):
        measure({TRUTH: signed}, pairs[:1])


# ---------------------------------------------------------------- content or artifact


def test_a_map_that_ignores_the_vocoder_is_found_out(pairs: list[Pair]) -> None:
    def content(wave: Tensor) -> Tensor:
        heat = torch.rand(513, 100, generator=torch.Generator().manual_seed(0))
        # the top of the frames that the shorter fake has, too
        heat[:, 24:] = 0
        return heat[None, :, : STFT.config.n_frames(wave.shape[1])]

    rows = measure({"content": content}, pairs)
    alike = {row["method"]: row for row in similarities(rows)}
    # the second recording has one vocoder, so nothing to compare
    assert [row["recording"] for row in similarities(rows)] == ["real0.flac"] * 2
    assert alike[TRUTH]["vocoders"] == 3
    assert alike[TRUTH]["gap"] == 0
    assert alike[TRUTH]["specificity"] == pytest.approx(1 - alike[TRUTH]["truths"])
    # 5 % of the shorter fake's bins are 2 frames' worth fewer than of the others'
    assert alike["content"]["maps"] == pytest.approx(1, abs=0.05)
    assert alike["content"]["specificity"] == pytest.approx(0, abs=0.05)
    assert alike["content"]["gap"] > 0.5


def test_entries_keep_seen_and_unseen_apart(pairs: list[Pair]) -> None:
    rows = measure({"energy": STFT.magnitude}, pairs, detector=detector)
    truth, energy = entries(rows, resamples=20)
    assert (truth["method"], energy["method"]) == (TRUTH, "energy")
    assert [energy[part]["pairs"] for part in ("overall", "seen", "unseen")] == [4, 3, 1]
    own = [row["ad"] for row in rows if row["method"] == "energy" and row["vocoder_seen"]]
    mean, low, high = energy["seen"]["ad"]
    assert mean == pytest.approx(sum(own) / 3)
    assert low <= mean <= high
    assert "seconds" not in truth["overall"]
    assert set(energy["similarity"]) == {"pairs", "groups", *SIMILARITIES}
    # one pair a recording is no comparison
    assert "similarity" not in entries([row for row in rows if row["id"] == "p3"], resamples=20)[0]


# ---------------------------------------------------------------- the journal


def test_a_killed_run_goes_on_where_it_was(pairs: list[Pair], tmp_path: Path) -> None:
    journal = tmp_path / "new" / "rows.jsonl"
    # one call warms up, the third is the second pair's
    with pytest.raises(KeyboardInterrupt):
        measure({"mine": Counted(signed, fails_at=3)}, pairs, journal=journal)
    # and a line was cut in the middle
    journal.write_bytes(journal.read_bytes() + b'{"rows": [{"id": "p')
    again = Counted(signed)
    rows = measure({"mine": again}, pairs, journal=journal)
    assert again.calls == 1 + 3
    assert timeless(rows) == timeless(measure({"mine": signed}, pairs))
    idle = Counted(signed)
    assert measure({"mine": idle}, pairs, journal=journal) == rows
    assert idle.calls == 0


def test_a_method_or_pair_can_be_added(pairs: list[Pair], tmp_path: Path) -> None:
    journal = tmp_path / "rows.jsonl"
    measure({"a": Counted(signed)}, pairs[:2], journal=journal)
    first, second = Counted(signed), Counted(STFT.magnitude)
    rows = measure({"b": second, "a": first}, pairs[:3], journal=journal)
    assert (first.calls, second.calls) == (1 + 1, 1 + 3)
    assert [row["method"] for row in rows] == [TRUTH, "b", "a"] * 3


def test_rows_of_another_run_are_not_taken(pairs: list[Pair], tmp_path: Path) -> None:
    journal = tmp_path / "rows.jsonl"
    models = [AASIST.from_preset("tiny", temperature=t).eval() for t in (1.0, 2.0)]
    measure({"energy": STFT.magnitude}, pairs[:1], detector=models[0], journal=journal)
    for changed, says in (
        ({"detector": models[1]}, "another detector"),
        ({"detector": models[0], "ranking": "value"}, "another ranking"),
    ):
        with pytest.raises(ConfigError, match=says):
            measure({"energy": STFT.magnitude}, pairs[:1], journal=journal, **changed)
    with pytest.raises(ConfigError, match="another energy"):
        measure({"energy": signed}, pairs[:1], detector=models[0], journal=journal)
    other = replace(pairs[1], id="p0")
    with pytest.raises(ConfigError, match="another pair 'p0'"):
        measure({"energy": STFT.magnitude}, [other], detector=models[0], journal=journal)


@dataclass
class Settings:
    """Settings of a method; the last is no part of what it is."""

    width: int = 1
    _private: int = 1
    note: str = field(default="", compare=False)


class Configured(torch.nn.Module):
    """A method with a weight, a configuration, and a part that has a setting of its own."""

    def __init__(self, width: int = 1, part: float = 0.5) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.config = Settings(width)
        self.drop = torch.nn.Dropout(part)

    def forward(self, wave: Tensor) -> Tensor:
        return STFT.magnitude(wave)


class Method:
    """A method with any settings."""

    def __init__(self, **settings: object) -> None:
        vars(self).update(settings)

    def __call__(self, wave: Tensor) -> Tensor:
        return STFT.magnitude(wave)


def around(value: object) -> Callable[[], object]:
    return lambda: value


@pytest.mark.parametrize(
    ("make", "first", "second"),
    [
        (lambda s: Method(seed=s), 0, 1),
        (lambda s: Method(stft=Stft(s)), StftConfig(), StftConfig(hop=128)),
        (lambda s: Method(options={"a": [s, (1,)]}), 1, 2),
        (lambda s: Method(inner=Method(seed=s)), 0, 1),
        (lambda s: Method(profile=torch.tensor(s)), [0.0, 1.0], [0.0, 2.0]),
        (lambda s: Method(profile=torch.tensor(s).numpy()), [0.0, 1.0], [1.0, 0.0]),
        (lambda s: Settings(_private=s), 1, 2),
        (lambda s: Configured(width=s), 1, 2),
        (lambda s: Configured(part=s), 0.5, 0.25),
        (lambda s: Method(model=Configured(width=s)), 1, 2),
        (lambda s: Stft(s).magnitude, StftConfig(), StftConfig(hop=128)),
        (lambda s: partial(max, key=s), abs, len),
        (around, 1, 2),
        (lambda s: Method(waves=[torch.full((4,), float(s))] * 20), 1, 2),
    ],
)
def test_a_setting_makes_another_fingerprint(
    make: Callable[[object], object], first: object, second: object
) -> None:
    one, again, other = (fingerprint(make(value)) for value in (first, first, second))
    assert one == again != other
    assert len(one) <= 400


def test_what_is_no_setting_makes_no_other_fingerprint() -> None:
    assert fingerprint(Settings(note="a")) == fingerprint(Settings(note="b"))
    assert fingerprint(Method(seed=1, _calls=1)) == fingerprint(Method(_calls=2, seed=1))
    assert fingerprint(Method(names={"a", "b", "c"})) == fingerprint(Method(names={"c", "b", "a"}))
    model = Configured()
    assert fingerprint(model.train()) == fingerprint(Configured().eval())
    # an object without a fixed text has none, rather than its address
    assert fingerprint(Method(lock=object())) == fingerprint(Method(lock=object()))
    knot = Method()
    knot.self = knot  # type: ignore[attr-defined]
    assert fingerprint(knot) == "test_benchmark_measurement.Method(self=...)"
    assert fingerprint(None) == "None"


def test_rows_of_other_settings_are_not_taken(pairs: list[Pair], tmp_path: Path) -> None:
    for name, one, other in (
        ("control", Random(seed=0), Random(seed=1)),
        ("model", Configured(width=1), Configured(width=2)),
    ):
        journal = tmp_path / f"{name}.jsonl"
        rows = measure({name: one}, pairs[:1], journal=journal)
        assert measure({name: one}, pairs[:1], journal=journal) == rows
        with pytest.raises(ConfigError, match=f"another {name}"):
            measure({name: other}, pairs[:1], journal=journal)


def test_what_is_no_journal_is_refused_and_kept(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("mine\n")
    with pytest.raises(ConfigError, match="line 1"):
        open_journal(thesis, {})
    assert thesis.read_text() == "mine\n"
    with pytest.raises(OutputError, match="choose a file"):
        open_journal(thesis / "rows.jsonl", {})
    with pytest.raises(OutputError, match="run again"):
        note_rows(tmp_path, [])


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (513, 101)])
def test_masks_are_packed_exactly(shape: tuple[int, int]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.05
    assert torch.equal(unpack(pack(mask)), mask)


# ---------------------------------------------------------------- cost


def test_the_peak_is_that_of_the_call() -> None:
    if measured(lambda: None)[1].peak_mb is None:
        pytest.skip("this system does not tell the peak of its memory")
    kept = torch.ones(8, 2**20)
    result, cost = measured(lambda: torch.ones(16, 2**20).sum())
    assert float(result) == 2**24
    # 64 MB, freed before the call ends, and nothing of what was there before; pages come in kB,
    # and a thread of the test run may take some of its own
    assert cost.peak_mb == pytest.approx(64, abs=8)
    assert 0 < cost.seconds < 10
    del kept


def test_memory_that_was_freed_before_counts_again() -> None:
    if measured(lambda: None)[1].peak_mb is None or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this system's allocator cannot be asked to return memory")

    def work() -> Tensor:
        # 32 MB in small pieces, which glibc keeps: the last of them holds the top of the heap
        return [torch.ones(16_384) for _ in range(512)][-1]

    kept = [work()]
    result, cost = measured(work)
    assert cost.peak_mb == pytest.approx(32, abs=8)
    del kept, result


def test_without_a_measure_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cost_module, "PROCESS", tmp_path / "none")
    result, cost = measured(lambda: 7)
    assert (result, cost.peak_mb) == (7, None)

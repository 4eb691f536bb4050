"""Corpora: rows that depend on nothing but the recordings, and every way a run can be disturbed."""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpora import Tiny, write_corpus

from specsegdiff.bulk import explain_corpus, mask_of, parts, plan, read_parts
from specsegdiff.bulk.place import Place, cores, find_place, local_rank
from specsegdiff.bulk.stopping import Stop, stop_on_signals
from specsegdiff.errors import CheckpointError, ConfigError, CorpusError, OutputError, WorkerError


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("undisturbed")
    run(manifest, out)
    return rows_of(out)


def run(source, out, *, tiny=None, **options):
    options = {"workers": 0, "shard_seconds": 8.0, "progress": False} | options
    return explain_corpus(source, out, settings=tiny or Tiny(), **options)


def rows_of(out, **options):
    """All rows by id; a doubled one would show in their number."""
    return sorted(read_parts(out, **options), key=lambda row: row["id"])


def stamps(out):
    return {file.name: file.stat().st_mtime_ns for file in out.glob("*/part-*")}


def test_every_recording_has_one_row(manifest, undisturbed, tmp_path):
    assert [row["id"] for row in undisturbed] == sorted(f"id{i}" for i in range(24))
    assert {row["path"] for row in undisturbed} == {f"f{i:02d}.wav" for i in range(24)}
    summary = run(manifest, tmp_path)
    assert summary.complete
    assert (summary.files, summary.errors, summary.shards) == (24, 1, 4)
    assert not list(tmp_path.glob("*/.*"))


def test_a_bad_file_is_a_row_with_its_error(undisturbed):
    bad = {row["id"]: row for row in undisturbed if row["error"]}
    assert list(bad) == ["id7"]
    assert bad["id7"]["error_type"] == "AudioError"
    assert "cannot read f07.wav" in bad["id7"]["error"]
    with pytest.raises(ConfigError, match="'id7' has no mask: cannot read"):
        mask_of(bad["id7"])


def test_rows_do_not_depend_on_shards_or_order(manifest, undisturbed, tmp_path):
    lines = manifest.read_text().splitlines()
    turned = manifest.parent / "turned.csv"
    turned.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    assert run(turned, tmp_path, shard_seconds=0.9).shards > 10
    assert rows_of(tmp_path) == undisturbed


def test_shards_hold_recordings_of_one_length_the_longest_first(manifest, tmp_path):
    run(manifest, tmp_path)
    durations = [row["duration"] for row in read_parts(tmp_path)]
    # the broken one has no length in its header: it may be the longest
    assert durations[0] is None
    assert durations[1:] == sorted(durations[1:], reverse=True)


def test_worker_processes_give_the_same_rows(manifest, undisturbed, tmp_path):
    seen = []
    summary = run(manifest, tmp_path, workers=2, progress=lambda *now: seen.append(now))
    assert summary.complete
    assert rows_of(tmp_path) == undisturbed
    assert seen[-1] == (24, 24)
    assert len(seen) == 4


@pytest.mark.slow
def test_files_that_kill_or_break_a_worker_become_rows(manifest, undisturbed, tmp_path):
    assert run(manifest, tmp_path, tiny=Tiny(traps=True), workers=2).errors == 3
    found = {row["id"]: row for row in rows_of(tmp_path)}
    assert found["id2"]["error_type"] == "WorkerError"
    assert "died twice" in found["id2"]["error"]
    assert found["id5"]["error_type"] == "ZeroDivisionError"
    others = [row for row in undisturbed if row["id"] not in ("id2", "id5")]
    assert [found[row["id"]] for row in others] == others


@pytest.mark.slow
def test_workers_that_fail_at_everything_end_the_run(tmp_path):
    write_corpus(tmp_path, count=3, broken=())
    lines = []
    for i in range(3):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"f{i:02d}.wav").rename(tmp_path / f"{i}" / "worse.wav")
        lines.append(f"{i}/worse.wav")
    (tmp_path / "manifest.csv").write_text("\n".join(["path", *lines]))
    with pytest.raises(WorkerError, match=r"all 3 files of a shard failed.*the device is gone"):
        run(tmp_path / "manifest.csv", tmp_path / "out", workers=1)


def test_in_one_process_an_unforeseen_error_is_a_row(manifest, tmp_path):
    write_corpus(tmp_path, count=2, broken=())
    (tmp_path / "f00.wav").rename(tmp_path / "worse.wav")
    (tmp_path / "manifest.csv").write_text("path\nworse.wav\nf01.wav\n")
    assert run(tmp_path / "manifest.csv", tmp_path / "out").errors == 1
    assert rows_of(tmp_path / "out")[1]["error"] == "the device is gone"


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_wrong_setting_ends_the_run(tmp_path, workers):
    write_corpus(tmp_path, count=1, broken=())
    (tmp_path / "f00.wav").rename(tmp_path / "config.wav")
    (tmp_path / "manifest.csv").write_text("path\nconfig.wav\n")
    with pytest.raises(ConfigError, match="a setting is wrong"):
        run(tmp_path / "manifest.csv", tmp_path / "out", workers=workers)


# going on


def test_a_finished_run_is_not_done_again(manifest, tmp_path):
    run(manifest, tmp_path)
    before = stamps(tmp_path)
    assert run(manifest, tmp_path).complete
    assert stamps(tmp_path) == before


def damage_part(out):
    part = out / "parts" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-9])


def flip_part(out):
    part = out / "parts" / "part-00001.parquet"
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(content)


def lose_part(out):
    (out / "parts" / "part-00001.parquet").unlink()


def lose_marker(out):
    (out / "done" / "part-00001.json").unlink()


def cut_marker(out):
    (out / "done" / "part-00001.json").write_text('{"shard": 1, "rows"')


def strange_marker(out):
    (out / "done" / "part-00001.json").write_text("[1]")


def foreign_marker(out):
    path = out / "done" / "part-00001.json"
    path.write_text(path.read_text().replace('"settings": "', '"settings": "0'))


def leave_temporaries(out):
    lose_marker(out)
    (out / "parts" / ".part-00001.parquet.x3f").write_bytes(b"PAR1")
    (out / "done" / ".part-00001.json.9a").write_bytes(b"")


@pytest.mark.parametrize(
    "harm",
    [
        damage_part,
        flip_part,
        lose_part,
        lose_marker,
        cut_marker,
        strange_marker,
        foreign_marker,
        leave_temporaries,
    ],
)
def test_a_damaged_shard_is_done_again_and_no_other(manifest, undisturbed, tmp_path, harm):
    run(manifest, tmp_path)
    before = stamps(tmp_path)
    harm(tmp_path)
    assert run(manifest, tmp_path).complete
    assert rows_of(tmp_path) == undisturbed
    after = stamps(tmp_path)
    again = {name for name in after if after[name] != before[name]}
    assert again == {"part-00001.parquet", "part-00001.json"}
    assert not list(tmp_path.glob("*/.*"))


def test_temporaries_of_other_ranks_are_left_alone(manifest, tmp_path):
    run(manifest, tmp_path, rank=0, world=2)
    theirs = tmp_path / "parts" / ".part-00001.parquet.x3f"
    theirs.write_bytes(b"PAR1")
    lose = tmp_path / "done" / "part-00000.json"
    lose.unlink()
    run(manifest, tmp_path, rank=0, world=2)
    assert theirs.exists()


class Killed(BaseException):
    """Stands for SIGKILL: nothing is cleaned up after it."""


def kill_at(point, monkeypatch):
    """Let no call that touches the disk through from the n-th on."""
    calls = 0

    def counted(function):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls > point:
                raise Killed
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    for name in ("chmod", "replace", "unlink"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))


def test_a_kill_at_every_single_step_loses_and_doubles_nothing(
    manifest, undisturbed, tmp_path, monkeypatch
):
    # two shards: that of the file of unknown length, and the others
    for point in range(1000):
        out = tmp_path / f"{point}"
        with monkeypatch.context() as patch:
            kill_at(point, patch)
            with contextlib.suppress(Killed):
                run(manifest, out, shard_seconds=50.0)
                break
        assert run(manifest, out, shard_seconds=50.0).complete
        assert rows_of(out) == undisturbed
        assert not list(out.rglob(".*"))
    # flush, rights, rename, flush of the folder, and the look for leftovers, of six files
    assert point == 30


def changed(tiny=None, **options):
    return {"tiny": tiny or Tiny(), **options}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed(Tiny(weights="other")), "weights.model was 'tiny', is 'other'"),
        (changed(Tiny(traps=True)), "settings.traps was False, is True"),
        (changed(shard_seconds=4.0), "shard_seconds was 8.0, is 4.0"),
    ],
)
def test_a_changed_run_is_refused(manifest, tmp_path, change, said):
    run(manifest, tmp_path)
    before = stamps(tmp_path)
    with pytest.raises(ConfigError, match=f"{said}.*or choose another folder"):
        run(manifest, tmp_path, **change)
    assert stamps(tmp_path) == before


def test_a_setting_that_is_gone_is_a_change(manifest, tmp_path):
    run(manifest, tmp_path)
    card = json.loads((tmp_path / "run.json").read_text())
    card["settings"]["old"] = 1
    (tmp_path / "run.json").write_text(json.dumps(card))
    with pytest.raises(ConfigError, match=r"settings.old was 1, is None"):
        run(manifest, tmp_path)


def test_another_manifest_is_refused_and_a_moved_one_is_not(manifest, undisturbed, tmp_path):
    run(manifest, tmp_path / "out")
    less = tmp_path / "less.csv"
    less.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match=r"manifest.files was 24, is 23"):
        run(less, tmp_path / "out")
    (tmp_path / "moved.csv").write_text(manifest.read_text())
    assert run(tmp_path / "moved.csv", tmp_path / "out").complete


@pytest.mark.parametrize("name", ["run.json", "plan.parquet"])
def test_a_damaged_plan_is_an_error(manifest, tmp_path, name):
    run(manifest, tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=f"{name}.*choose another folder"):
        run(manifest, tmp_path)


def test_a_plan_without_its_run_is_made_anew(manifest, undisturbed, tmp_path):
    run(manifest, tmp_path, rank=0, world=2)
    (tmp_path / "run.json").rename(tmp_path / ".run.json.x3f")
    run(manifest, tmp_path)
    assert rows_of(tmp_path) == undisturbed
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "done",
        "parts",
        "plan.parquet",
        "run.json",
    ]


# reading


def test_an_unfinished_run_is_read_on_request_only(manifest, undisturbed, tmp_path):
    run(manifest, tmp_path, rank=0, world=2)
    with pytest.raises(CorpusError, match=r"2 of 4 shards in .* are unfinished"):
        read_parts(tmp_path)
    some = rows_of(tmp_path, partial=True)
    assert 0 < len(some) < 24
    assert all(row in undisturbed for row in some)


def test_columns_are_chosen(manifest, tmp_path):
    run(manifest, tmp_path)
    assert {tuple(row) for row in read_parts(tmp_path, columns=["id", "p_spoof"])} == {
        ("id", "p_spoof")
    }


@pytest.mark.parametrize("harm", [damage_part, lose_part])
def test_a_damaged_part_is_not_read(manifest, tmp_path, harm):
    run(manifest, tmp_path)
    harm(tmp_path)
    with pytest.raises(CheckpointError, match="part-00001"):
        list(read_parts(tmp_path))


def test_parts_of_another_run_are_not_read(manifest, tmp_path):
    run(manifest, tmp_path)
    foreign_marker(tmp_path)
    with pytest.raises(CorpusError, match="1 of 4 shards"):
        read_parts(tmp_path)


def test_a_folder_without_a_run_is_not_read(tmp_path):
    with pytest.raises(CorpusError, match=r"holds no run.json"):
        read_parts(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "other"}')
    with pytest.raises(CheckpointError, match="none of this version's"):
        read_parts(tmp_path)


# disks


def test_a_full_disk_is_an_error_and_what_stood_stays(manifest, undisturbed, tmp_path, monkeypatch):
    flush, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        # plan, run and the first part with its marker take two flushes each, file and folder
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"No space left.*run again to go on"):
            run(manifest, tmp_path)
    assert len(rows_of(tmp_path, partial=True)) > 0
    assert not list(tmp_path.glob("*/.*"))
    assert run(manifest, tmp_path).complete
    assert rows_of(tmp_path) == undisturbed


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full_indeed(manifest, small_disk):
    with pytest.raises(OutputError, match="No space left"):
        run(manifest, small_disk / "out")
    assert not list(small_disk.glob("out/*/.*"))
    for row in read_parts(small_disk / "out", partial=True):
        assert row["id"]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_for_a_worker(manifest, small_disk, workers):
    with pytest.raises(OutputError, match="No space left"):
        run(manifest, small_disk / "out", workers=workers)


def test_a_place_that_cannot_be_written(manifest, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another folder"):
        run(manifest, tmp_path / "file" / "out")


def test_a_folder_without_rights(manifest, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("nothing is forbidden to root")
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="choose another folder"):
        run(manifest, tmp_path / "out")


def test_missing_pyarrow_is_said(manifest, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'specsegdiff\[corpus\]'"):
        run(manifest, tmp_path)


# ending


@dataclasses.dataclass(frozen=True)
class Interrupted(Tiny):
    """Sends a signal to this process at one recording."""

    at: str = ""
    number: int = signal.SIGTERM

    def open(self):
        explain = super().open()

        def explain_and_interrupt(source):
            if source.endswith(self.at):
                os.kill(os.getpid(), self.number)
            return explain(source)

        return explain_and_interrupt


@pytest.fixture
def third(undisturbed) -> dict[str, Any]:
    """A recording in the middle of a shard that is neither the first nor the last."""
    good = [row for row in undisturbed if not row["error"]]
    return sorted(good, key=lambda row: -row["duration"])[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drops_the_shard_at_hand(manifest, undisturbed, third, tmp_path, number):
    tiny = Interrupted(at=third["path"], number=number)
    summary = run(manifest, tmp_path, tiny=tiny, grace=0.0)
    assert summary.finished == 1
    assert third not in list(read_parts(tmp_path, partial=True))
    assert run(manifest, tmp_path).complete
    assert rows_of(tmp_path) == undisturbed


def test_a_signal_lets_the_shard_at_hand_finish(manifest, third, tmp_path):
    summary = run(manifest, tmp_path, tiny=Interrupted(at=third["path"]), grace=100.0)
    assert summary.finished == 2
    assert third in list(read_parts(tmp_path, partial=True))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_given_back(number):
    def mine(*_):
        pytest.fail("a run lets no signal through")

    before = signal.signal(number, mine)
    try:
        with stop_on_signals(Stop(grace=0.0)):
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, before)


def test_a_second_signal_does_not_wait():
    stop = Stop(grace=1000.0)
    with stop_on_signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.requested, stop.due) == (True, False)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.due


@pytest.mark.parametrize(
    "options",
    [{"workers": -1}, {"grace": -1.0}, {"shard_seconds": 0.0}, {"shard_seconds": float("nan")}],
)
def test_impossible_options_are_refused(manifest, tmp_path, options):
    with pytest.raises(ConfigError, match="must be"):
        run(manifest, tmp_path, **options)


# many machines


def test_ranks_share_the_shards(manifest, undisturbed, tmp_path):
    parts = [run(manifest, tmp_path, rank=rank, world=3) for rank in range(3)]
    assert [part.shards for part in parts] == [2, 1, 1]
    assert sum(part.files for part in parts) == 24
    assert rows_of(tmp_path) == undisturbed


def test_another_number_of_ranks_goes_on(manifest, undisturbed, tmp_path):
    run(manifest, tmp_path, rank=0, world=3)
    before = stamps(tmp_path)
    assert run(manifest, tmp_path).complete
    assert rows_of(tmp_path) == undisturbed
    assert stamps(tmp_path).items() >= before.items()


def test_other_ranks_wait_for_the_plan_of_the_first(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "PATIENCE", 0.0)
    with pytest.raises(ConfigError, match=r"rank 0 left no run.json"):
        run(manifest, tmp_path, rank=1, world=2)
    card = tmp_path / "aside"
    run(manifest, card, rank=0, world=2)

    def arrive(seconds):
        card.rename(tmp_path / "out")

    monkeypatch.setattr(plan, "PATIENCE", 60.0)
    monkeypatch.setattr(plan.time, "sleep", arrive)
    assert run(manifest, tmp_path / "out", rank=1, world=2).complete


@pytest.fixture
def alone(monkeypatch):
    for name in list(os.environ):
        if name.startswith("SLURM_") or name.endswith(("RANK", "WORLD_SIZE")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, Place(0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, Place(3, 4)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}, Place(1, 2)),
        # a batch script without srun runs once, whatever the tasks of its job
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Place(0, 1)),
        # torchrun inside srun
        (
            {"RANK": "5", "WORLD_SIZE": "8", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
            Place(5, 8),
        ),
    ],
)
def test_places_of_schedulers(alone, monkeypatch, variables, place):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_place() == place
    assert find_place(1, 9) == Place(1, 9)


def test_impossible_places(alone, monkeypatch):
    with pytest.raises(ConfigError, match="0 <= rank < world"):
        find_place(2, 2)
    with pytest.raises(ConfigError, match="go together"):
        find_place(rank=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="RANK, got None"):
        find_place()


def test_cores_and_cards_are_shared_on_a_machine(alone, monkeypatch):
    every = cores()
    assert local_rank() == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(every))
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert cores() == 1
    assert local_rank() == 3


def test_a_folder_of_parts_is_plain_parquet(manifest, undisturbed, tmp_path):
    run(manifest, tmp_path)
    leave = tmp_path / "parts" / ".part-00001.parquet.x3f"
    leave.write_bytes(b"half")
    table = parts.parquet().read_table(tmp_path / "parts")
    assert sorted(table["id"].to_pylist()) == [row["id"] for row in undisturbed]

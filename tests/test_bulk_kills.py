"""Runs in processes of their own: killed fifty times, under torchrun, and on a local Ray."""

import contextlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpora import Tiny, write_corpus

from specsegdiff.bulk import explain_corpus, read_parts

SCRIPT = Path(__file__).parent / "corpora.py"
ROOT = Path(__file__).parents[1]
PARENTS, WORKERS = 40, 10

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(manifest, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    explain_corpus(manifest, out, settings=Tiny(), workers=0, shard_seconds=8.0, progress=False)
    return rows_of(out)


def rows_of(out):
    return sorted(read_parts(out), key=lambda row: row["id"])


def environment(**more):
    paths = [str(ROOT), str(SCRIPT.parent)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        # what a killed run leaves is the system's to clean, and Python warns of it
        "PYTHONWARNINGS": "ignore::UserWarning",
        **more,
    }


def start(manifest, out, *, workers, pause=0.02, prefix=(), **more):
    command = [sys.executable, *prefix, SCRIPT, manifest, out, workers, pause]
    return subprocess.Popen(
        list(map(str, command)), env=environment(**more), stdout=subprocess.PIPE, text=True
    )


def finish(process):
    """What a run said at last; an end that is not clean fails."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said.split()


def children(process):
    if not Path("/proc/self/task").exists():
        pytest.skip("this system does not list the children of a process")
    listed = []
    # each thread lists its own
    for file in Path(f"/proc/{process.pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            listed += file.read_text().split()
    return [int(pid) for pid in listed]


def workers_of(process):
    return [pid for pid in children(process) if "spawn_main" in command_of(pid)]


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def wait_for_work(process, out, *, workers):
    """Until a run has written something, or has worker processes, or is over."""
    before = set(out.rglob("*"))
    while process.poll() is None:
        if workers_of(process) if workers else set(out.rglob("*")) != before:
            return
        time.sleep(0.005)


def test_forty_kills_at_random_points_lose_and_double_nothing(manifest, undisturbed, tmp_path):
    chance, kills, runs, interrupted, orphaned = random.Random(0), 0, 0, 0, 0
    while kills < PARENTS:
        # each fourth run has worker processes, which must end with it
        workers = 2 if runs % 4 == 3 else 0
        out = tmp_path / f"run{runs}"
        while True:
            process = start(manifest, out, workers=workers, pause=0.03)
            if chance.random() < 0.8:
                wait_for_work(process, out, workers=workers)
            # recordings take 0.7 s in all, worker processes some more to begin with them
            time.sleep(chance.uniform(0.0, 2.0 if workers else 0.7))
            orphans = workers_of(process)
            if process.poll() is not None or kills == PARENTS:
                break
            process.kill()
            process.wait()
            process.stdout.close()
            kills += 1
            interrupted += 0 < len(list(out.glob("done/part-*"))) < 4
            orphaned += len(orphans)
            deadline = time.monotonic() + 30
            while any("spawn_main" in command_of(pid) for pid in orphans):
                assert time.monotonic() < deadline, "workers outlived their run"
                time.sleep(0.05)
        finish(process)
        assert rows_of(out) == undisturbed
        assert not list(out.rglob(".*"))
        runs += 1
    assert interrupted >= 5, "the kills came before or after the work"
    assert orphaned >= 2, "no kill met a run with workers"


def test_ten_killed_workers_are_replaced(manifest, undisturbed, tmp_path):
    chance, kills = random.Random(1), 0
    for number in range(4 * WORKERS):
        process = start(manifest, tmp_path / f"{number}", workers=1, pause=0.1)
        while process.poll() is None and not workers_of(process):
            time.sleep(0.02)
        time.sleep(chance.uniform(0.2, 3.0))
        for pid in workers_of(process)[:1]:
            os.kill(pid, signal.SIGKILL)
            kills += 1
        assert finish(process) == ["4", "4"]
        assert rows_of(tmp_path / f"{number}") == undisturbed
        if kills == WORKERS:
            return
    pytest.fail(f"only {kills} workers could be killed")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are not listed here")
def test_a_run_leaves_no_threads_behind(manifest, tmp_path):
    """Arrow's own abort an interpreter that ends beside them, after the last row is written."""
    script = f"""
import os
import pyarrow.parquet as pq
import soundfile
from corpora import Tiny
from pyarrow import csv
from specsegdiff.bulk import explain_corpus, read_parts

table = {str(manifest.with_suffix(".parquet"))!r}
pq.write_table(csv.read_csv({str(manifest)!r}, csv.ReadOptions(use_threads=False)), table)
before = os.listdir("/proc/self/task")
for turn in range(2):
    explain_corpus(table, {str(tmp_path)!r}, settings=Tiny(), workers=0, shard_seconds=8.0)
print(len(list(read_parts({str(tmp_path)!r}))), *set(os.listdir("/proc/self/task")) - set(before))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True
    )
    assert done.stdout.split() == ["24"], done.stdout + done.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_ends_cleanly_and_soon(manifest, undisturbed, tmp_path, workers):
    process = start(manifest, tmp_path, workers=workers, pause=0.5)
    while not list(tmp_path.glob("done/*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    finished, shards = finish(process)
    # 0.2 s of grace, the recording at hand, and the end of the interpreter
    assert time.monotonic() - begin < 10
    assert int(finished) < int(shards) == 4
    assert not list(tmp_path.rglob(".*"))
    assert finish(start(manifest, tmp_path, workers=0)) == ["4", "4"]
    assert rows_of(tmp_path) == undisturbed


def test_two_processes_under_torchrun(manifest, undisturbed, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    said = finish(start(manifest, tmp_path, workers=0, prefix=torchrun))
    assert said == ["2", "2", "2", "2"]
    assert rows_of(tmp_path) == undisturbed


def test_two_tasks_of_srun(manifest, undisturbed, tmp_path):
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}
    # the second comes first, and waits for the plan
    tasks = [
        start(manifest, tmp_path, workers=0, SLURM_PROCID=rank, **slurm) for rank in ("1", "0")
    ]
    assert [finish(task) for task in tasks] == [["2", "2"], ["2", "2"]]
    assert rows_of(tmp_path) == undisturbed


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_two_actors_of_a_local_ray(manifest, undisturbed, tmp_path):
    script = f"""
import ray
from corpora import Tiny
from specsegdiff.bulk import explain_on_ray

ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
for turn in range(2):
    print(explain_on_ray({str(manifest)!r}, {str(tmp_path)!r}, settings=Tiny(), workers=2,
                         shard_seconds=8.0))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        # by default Ray gives its workers a nice value of 15: on a busy machine they starve
        env=environment(RAY_worker_niceness="0"),
        capture_output=True,
        text=True,
        timeout=500,
    )
    summary = "Summary(files=24, errors=1, shards=4, finished=4)"
    assert done.stdout.count(summary) == 2, done.stdout[-2000:] + done.stderr[-4000:]
    assert rows_of(tmp_path) == undisturbed

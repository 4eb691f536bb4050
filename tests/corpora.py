"""A corpus of tiny recordings for tests of bulk runs, and an explainer that imports no torch.

As a script, it is a run to be killed: ``python corpora.py MANIFEST OUT WORKERS PAUSE``.
"""

import hashlib
import io
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specsegdiff.bulk import explain_corpus
from specsegdiff.bulk.rows import pack_mask
from specsegdiff.errors import AudioError, ConfigError

RATE = 8_000


class NoPandas:
    """Hides pandas: pyarrow imports it where it can, which takes longer than all else in a run
    this small."""

    def find_spec(self, name, path=None, target=None):
        if name == "pandas":
            raise ImportError(name)


if __name__ == "__main__" or multiprocessing.parent_process() is not None:
    sys.meta_path.insert(0, NoPandas())


@dataclass(frozen=True)
class Tiny:
    """Maps a recording to a row that its samples decide; some recordings are traps."""

    pause: float = 0.0
    weights: str = "tiny"
    traps: bool = False
    device: str = "cpu"

    def identity(self):
        return {"weights": {"model": self.weights}, "settings": {"seed": 0, "traps": self.traps}}

    def open(self):
        return self._explain

    def _explain(self, source):
        import soundfile

        time.sleep(self.pause)
        name = "" if isinstance(source, bytes) else Path(source).name
        if self.traps and name == "f02.wav":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.traps and name == "f05.wav":
            raise ZeroDivisionError("nobody thought of this file")
        if name == "config.wav":
            raise ConfigError("a setting is wrong")
        if name == "worse.wav":
            raise RuntimeError("the device is gone")
        try:
            wave, rate = soundfile.read(io.BytesIO(source) if name == "" else source)
        except Exception as error:
            raise AudioError(f"cannot read {name}: {error}") from error
        mask = (
            np.random.default_rng(int(1e4 * abs(wave).sum())).random((17, len(wave) // 100)) < 0.1
        )
        return {
            "duration": len(wave) / rate,
            "n_samples": len(wave),
            "samples_sha256": hashlib.sha256(wave.tobytes()).hexdigest(),
            "p_spoof": float(abs(wave).mean()),
            "regions": [{"id": "R1", "t0": 0.0, "t1": 0.1, "f0": 1.0, "f1": 2.0, "bins": 3}],
            "bins": 17,
            "frames": mask.shape[1],
            "mask": pack_mask(mask),
            "thumbnail": bytes(64 * 64),
        }


def write_corpus(folder, count=24, broken=(7,)):
    """Write recordings of 0.1 s to 0.5 s, some of them broken, and return the manifest's path."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    lines = ["id,path"]
    for i in range(count):
        path = folder / f"f{i:02d}.wav"
        random = np.random.default_rng(i)
        wave = 0.1 * random.standard_normal(800 + int(3200 * random.random()))
        soundfile.write(path, wave, RATE)
        if i in broken:
            path.write_bytes(path.read_bytes()[:30])
        lines.append(f"id{i},f{i:02d}.wav")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


if __name__ == "__main__":
    manifest, out, workers, pause = sys.argv[1:]
    summary = explain_corpus(
        manifest,
        out,
        settings=Tiny(float(pause)),
        workers=int(workers),
        shard_seconds=8.0,
        grace=0.2,
    )
    print(summary.finished, summary.shards)

"""The example recording of the package: a synthetic voice, its vocoded copy, and their true mask.

    python benchmarks/example.py

writes ``example-real.flac``, ``example.flac``, ``example-mask.npy`` and ``example.json`` into the
package's assets; running it again writes the same samples. The vocoder is one that needs nothing
installed, and of those the one whose changes spread over the whole picture: with 80 mel bands, 39 %
of the mask lie in the highest 500 Hz.
"""

import argparse
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from specsegdiff.data.audio import load_audio, write_audio
from specsegdiff.data.copies import make_pair
from specsegdiff.data.pairs import Pair, load_pair
from specsegdiff.data.samples import SAMPLE_RATE
from specsegdiff.data.vocoders import vocoder_bank
from specsegdiff.data.voice import UTTERANCE, synthesise_voice
from specsegdiff.frontend import Stft
from specsegdiff.hub import write_atomic
from specsegdiff.masks import ground_truth

ASSETS = Path(__file__).parents[1] / "specsegdiff" / "assets"
SEED = 0
VOCODER = "gl-mel40"


def make_example(folder: Path, *, seed: int = SEED, vocoder: str = VOCODER) -> dict[str, Any]:
    """Write the four files into ``folder`` and return the content of ``example.json``."""
    real_file, fake_file = folder / "example-real.flac", folder / "example.flac"
    write_audio(real_file, synthesise_voice(seed=seed), sample_rate=SAMPLE_RATE)
    # Vocoded as it was written, so that the copy can be made again from the file alone.
    real = load_audio(real_file)
    chosen = next(v for v in vocoder_bank() if v.name == vocoder)
    copy = make_pair(real, chosen)
    write_audio(fake_file, copy.fake, sample_rate=SAMPLE_RATE)

    pair = Pair("example", real_file, fake_file, n_samples=len(real), gain_db=copy.gain_db)
    stft = Stft()
    mask = ground_truth(*(stft.magnitude(wave) for wave in load_pair(pair)))
    bits = io.BytesIO()
    np.save(bits, np.packbits(mask.numpy(), axis=0))
    write_atomic(folder / "example-mask.npy", bits.getvalue())

    card = {
        "about": "A synthetic voice (specsegdiff.data.voice, seed and phones below), and its copy "
        "by a vocoder of specsegdiff.data.vocoders; no person speaks. Made by "
        "benchmarks/example.py. The mask is packed by numpy.packbits along frequency.",
        "phones": UTTERANCE,
        "seed": seed,
        "vocoder": chosen.name,
        "family": chosen.family,
        "n_samples": len(real),
        "gain_db": round(copy.gain_db, 6),
        "logmel_corr": round(copy.logmel_corr, 4),
        "lag_removed": copy.lag,
        "mask_share": round(float(mask.double().mean()), 6),
        # of the samples: libsndfile writes its version into a file
        "sha256_of_samples": {f.name: _samples_hash(f) for f in (real_file, fake_file)},
    }
    write_atomic(folder / "example.json", json.dumps(card, indent=2).encode() + b"\n")
    return card


def _samples_hash(file: Path) -> str:
    samples, _ = sf.read(file, dtype="int16")
    return hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--vocoder", default=VOCODER, choices=[v.name for v in vocoder_bank()])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(make_example(given.out, seed=given.seed, vocoder=given.vocoder), indent=2))

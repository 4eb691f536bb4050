"""Which parts of speech betray a vocoder? Region-indexed probes on the embedded detector's frames.

    python benchmarks/probes.py

writes ``benchmarks/results/probes.json`` and ``docs/images/probes.png``: for every region, the area
under the ROC curve on val and test, seen and unseen vocoders apart, with 95 % intervals by source
group; what it is above the probe of all frames; and above a probe of as many frames from random
places, which tells what the place adds. Probes are trained on train; layer and penalty, one for all
regions of a division, and how much each region counts in the joint score are chosen on val.

Three encoders: the detector's layers, whose frames have heard the whole recording; the frames that
enter its transformer, which have heard 0.15 s; and patches of a spectrogram. The detector was
trained on train too. Means of frames are kept in ``--cache``.
"""

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, provenance, write_results
from torch import Tensor

from specsegdiff.api import default_detector
from specsegdiff.data.audio import load_audio
from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import Pair
from specsegdiff.errors import CheckpointError
from specsegdiff.hub import weights_hash, write_atomic
from specsegdiff.metrics import roc_auc
from specsegdiff.models.detector import spoof_column
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST
from specsegdiff.probes.audio import (
    BANDS_HZ,
    DIVISIONS,
    LOCAL,
    PATCH_ROWS,
    by_band,
    frame_tokens,
    sound_labels,
    spectral_patches,
)
from specsegdiff.probes.core import ProbeConfig, RegionProbes
from specsegdiff.probes.measure import auc_interval
from specsegdiff.probes.plot import auc_figure
from specsegdiff.probes.pooling import Pooled, pool_all, pool_regions

ROOT = Path(__file__).parent.parent
BANDS = ("low", "mid", "high")
SOUNDS, VOICING = DIVISIONS["sound"], DIVISIONS["voicing"]
RANDOM = "sound at random"
REGIONS: dict[str, tuple[str, ...]] = {
    "sound": SOUNDS,
    "voicing": VOICING,
    RANDOM: SOUNDS,
    "all": ("all",),
    "band": tuple(f"{name} band" for name in BANDS),
    "band and sound": tuple(f"{s}, {band} band" for band in BANDS for s in SOUNDS),
}
SPOKEN = ("sound", "voicing")
"Divisions of every encoder's frames."
MINIMUM = 5
"Frames that a region needs, 0.1 s: the mean of fewer says little."
PENALTIES = (1e4, 1e3, 100.0, 10.0, 1.0)
"The strongest first: of equals on val, the first is chosen."
PARTS = ("val", "seen", "unseen")


@dataclass(frozen=True)
class Recording:
    """A file to judge."""

    id: str
    path: Path
    n_samples: int | None
    split: str
    group: str
    family: str | None
    seen: bool | None

    @property
    def parts(self) -> tuple[str, ...]:
        """Columns of the table that it counts in; real recordings count beside both kinds."""
        if self.split != "test":
            return (self.split,)
        return {None: ("seen", "unseen"), True: ("seen",), False: ("unseen",)}[self.seen]


def recordings(pairs: Sequence[Pair]) -> list[Recording]:
    """All fakes of the pairs, and each real recording once, cut as its longest pair is."""
    reals: dict[Path, Pair] = {}
    for pair in pairs:
        known = reals.get(pair.real)
        if known is None or (pair.n_samples or 0) > (known.n_samples or 0):
            reals[pair.real] = pair

    def entry(pair: Pair, path: Path) -> Recording:
        fake = path == pair.fake
        name = pair.id if fake else f"real of {pair.id}"
        group = pair.source_group or pair.id
        family, seen = (pair.family, pair.vocoder_seen) if fake else (None, None)
        return Recording(name, path, pair.n_samples, pair.split, group, family, seen)

    return [entry(p, p.real) for p in reals.values()] + [entry(p, p.fake) for p in pairs]


# ------------------------------------------------------------------ features, kept in a file


def layer_name(layer: int) -> str:
    """Name of the frames of a layer."""
    return "local frames" if layer == LOCAL else f"layer {layer}"


def shuffled(labels: Tensor, name: str) -> Tensor:
    """The same labels at random places of the recording."""
    seed = int.from_bytes(name.encode()[-6:])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def divided(tokens: Tensor, sound: Tensor, voicing: Tensor, name: str) -> dict[str, Pooled]:
    """Means of frames ``(1, t, d)`` by every division of `SPOKEN`, at random places, and of all."""
    labels = {"sound": sound, "voicing": voicing, RANDOM: shuffled(sound, name)}
    found = {
        division: pool_regions(tokens, numbers[None], count=len(REGIONS[division]))
        for division, numbers in labels.items()
    }
    return found | {"all": pool_all(tokens)}


def features(recording: Recording, detector: Wav2Vec2AASIST) -> dict[str, Pooled]:
    """Means of a recording's frames and patches under the names ``tokens/division``."""
    wave, name = load_audio(recording.path)[: recording.n_samples], recording.id
    layers = (LOCAL, *range(detector.config.backbone.num_hidden_layers))
    frames, times = frame_tokens(detector, wave, layers=layers)
    sounds = [sound_labels(wave, times, division=d) for d in ("sound", "voicing")]
    found = {
        layer_name(layer): divided(tokens, *sounds, name)
        for layer, tokens in zip(layers, frames, strict=True)
    }
    patches, times = spectral_patches(wave)
    sounds = [sound_labels(wave, times, division=d) for d in ("sound", "voicing")]
    found["spectrogram"] = divided(patches.flatten(1)[None], *sounds, name)
    tokens, bands = by_band(patches)
    both = bands * len(SOUNDS) + sounds[0].repeat_interleave(len(BANDS))[None]
    for division, labels in (("band", bands), ("band and sound", both)):
        pooled = pool_regions(tokens, labels, count=len(REGIONS[division]))
        found["spectrogram"][division] = pooled
    with torch.no_grad():
        logits = detector(wave[None])[0]
    column = spoof_column(detector)
    found["detector"] = {"score": pool_all((logits[column] - logits[1 - column])[None, None, None])}
    return {f"{t}/{d}": pooled for t, group in found.items() for d, pooled in group.items()}


def collect(
    items: Sequence[Recording], detector: Wav2Vec2AASIST, cache: Path | None
) -> dict[str, Pooled]:
    """`features` of all recordings, from the cache where it holds them."""
    from safetensors import safe_open
    from safetensors.torch import save

    settings = json.dumps(
        {
            "detector": weights_hash(detector),
            "items": [[r.id, r.n_samples] for r in items],
            "regions": REGIONS,
            "bands": [BANDS_HZ, PATCH_ROWS],
        }
    )
    if cache is not None and cache.exists():
        with safe_open(cache, "pt") as file:
            if (file.metadata() or {}).get("settings") != settings:
                raise CheckpointError(
                    f"{cache} holds features of other recordings, another detector or other "
                    "regions; delete it, or name another file"
                )
            names = sorted({name.rpartition(".")[0] for name in file.keys()})  # noqa: SIM118
            return {
                name: Pooled(file.get_tensor(f"{name}.values"), file.get_tensor(f"{name}.counts"))
                for name in names
            }
    found = []
    for done, recording in enumerate(items, start=1):
        found.append(features(recording, detector))
        if done % 50 == 0:
            print(f"{done} of {len(items)} recordings", flush=True)
    pooled = {name: Pooled.cat([part[name] for part in found]) for name in found[0]}
    if cache is not None:
        tensors = {f"{n}.values": p.values.contiguous() for n, p in pooled.items()}
        tensors |= {f"{n}.counts": p.counts.contiguous() for n, p in pooled.items()}
        write_atomic(cache, save(tensors, {"settings": settings}))
    return pooled


# ------------------------------------------------------------------ probes and their scores


@dataclass(frozen=True)
class Data:
    """What all probes share: recordings, their classes, and the features of each."""

    items: Sequence[Recording]
    features: Mapping[str, Pooled]

    @property
    def spoof(self) -> Tensor:
        """Whether each recording is vocoded ``(n,)``."""
        return torch.tensor([r.family is not None for r in self.items])

    def inside(self, part: str) -> Tensor:
        """Recordings of a column of the table, or of train ``(n,)``."""
        return torch.tensor([part in r.parts for r in self.items])

    def of(self, name: str, part: str) -> tuple[Pooled, Tensor]:
        """Features and classes of the recordings of one column."""
        keep, pooled = self.inside(part), self.features[name]
        return Pooled(pooled.values[keep], pooled.counts[keep]), self.spoof[keep]


def area(scores: Tensor, spoof: Tensor) -> float | None:
    """Area under the ROC curve of the recordings with a score; None without both classes."""
    there = scores.isfinite()
    if len(spoof[there].unique()) < 2:
        return None
    return float(roc_auc(scores[there][None, None], spoof[there][None, None]))


def fitted(data: Data, name: str, division: str, penalty: float) -> RegionProbes:
    """Probes of some tokens, trained on train."""
    config = ProbeConfig(
        REGIONS[division],
        size=data.features[f"{name}/{division}"].values.shape[-1],
        minimum=1 if division == "all" else MINIMUM,
        penalty=penalty,
        tokens=name,
    )
    return RegionProbes.fit(*data.of(f"{name}/{division}", "train"), config)


def choose(data: Data, tokens: Sequence[str], division: str) -> RegionProbes:
    """Probes of the tokens and penalty with the best mean area on val; regions share them."""

    def mean_area(probes: RegionProbes) -> float:
        pooled, spoof = data.of(f"{probes.config.tokens}/{division}", "val")
        areas = [area(column, spoof) for column in probes.log_odds(pooled).T]
        known = [value for value in areas if value is not None]
        return sum(known) / max(len(known), 1)

    candidates = [fitted(data, n, division, p) for n, p in itertools.product(tokens, PENALTIES)]
    best = max(candidates, key=mean_area)
    return best.weighed(*data.of(f"{best.config.tokens}/{division}", "val"))


def measured(data: Data, scores: Tensor, others: Mapping[str, Tensor]) -> dict[str, Any]:
    """Columns of a row: areas, what they are above other scores' on the same recordings, and the
    share of recordings with a score."""
    columns: dict[str, Any] = {name: {} for name in ("auc", "present", *others)}
    for part in PARTS:
        inside = data.inside(part)
        keep = inside & scores.isfinite()
        columns["present"][part] = float(keep.sum() / inside.sum()) if inside.any() else 0.0
        spoof = data.spoof[keep]
        if len(spoof.unique()) < 2:
            continue
        groups = [r.group for r, kept in zip(data.items, keep.tolist(), strict=True) if kept]
        columns["auc"][part] = auc_interval(scores[keep], spoof, groups)
        for name, other in others.items():
            columns[name][part] = auc_interval(scores[keep], spoof, groups, against=other[keep])
    return columns


def rows_of(
    data: Data, encoder: str, probes: RegionProbes, division: str, whole: Tensor
) -> list[dict[str, Any]]:
    """A row for every region of a division, and one for all of them together."""
    config, name = probes.config, probes.config.tokens
    pooled = data.features[f"{name}/{division}"]
    odds = dict(zip(config.regions, probes.log_odds(pooled).T, strict=True))
    others = {region: {"over_all": whole} for region in odds} if division != "all" else {}
    if division == "sound":
        control = fitted(data, name, RANDOM, config.penalty)
        columns = control.log_odds(data.features[f"{name}/{RANDOM}"]).T
        for region, column in zip(config.regions, columns, strict=True):
            others[region]["over_random"] = column
    decisions = probes.judge(pooled)
    fakes = (data.inside("seen") | data.inside("unseen")) & data.spoof
    called = [d for d, fake in zip(decisions, fakes.tolist(), strict=True) if fake and d.is_spoof]
    shared = {"encoder": encoder, "division": division, "tokens": name}
    shared |= {"penalty": config.penalty}
    rows = []
    for place, (region, scores) in enumerate(odds.items()):
        row = shared | {"region": region} | measured(data, scores, others.get(region, {}))
        if division != "all":
            row["say"] = float(probes.say[place])
            resting = sum(region in decision.rests_on for decision in called)
            row["rests_on"] = resting / max(len(called), 1)
        rows.append(row)
    if division != "all":
        joint = measured(data, probes.scores(pooled), {"over_all": whole})
        rows.append(shared | {"region": f"all together, by {division}"} | joint)
    for row in rows:
        areas = {part: [round(v, 3) for v in found] for part, found in row["auc"].items()}
        print(encoder, division, row["region"], name, config.penalty, areas, sep=" | ", flush=True)
    return rows


def main() -> None:
    """Collect features, fit, choose, measure, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", default="../shared/corpus/pairs.csv", help="manifest")
    parser.add_argument("--every", type=int, default=1, help="takes every n-th pair, for a trial")
    parser.add_argument("--cache", type=Path, help="file of features, written or read")
    parser.add_argument("--save", type=Path, help="folder for the probes of layers by sound")
    parser.add_argument("--out", type=Path, default=RESULTS / "probes.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "images" / "probes.png")
    options = parser.parse_args()
    detector = default_detector()
    items = recordings(read_manifest(options.pairs)[:: options.every])
    data = Data(items, collect(items, detector, options.cache))
    layers = [layer_name(i) for i in range(detector.config.backbone.num_hidden_layers)]
    rows: list[dict[str, Any]] = []
    for encoder, tokens, divisions in (
        ("detector's layers", layers, SPOKEN),
        ("local frames", [layer_name(LOCAL)], SPOKEN),
        ("spectrogram", ["spectrogram"], (*SPOKEN, "band", "band and sound")),
    ):
        everything = choose(data, tokens, "all")
        pooled = data.features[f"{everything.config.tokens}/all"]
        whole = everything.log_odds(pooled)[:, 0]
        rows += rows_of(data, encoder, everything, "all", whole)
        for division in divisions:
            probes = choose(data, tokens, division)
            rows += rows_of(data, encoder, probes, division, whole)
            if (encoder, division) == ("detector's layers", "sound"):
                example = probes
    own = data.features["detector/score"].values[:, 0, 0].double()
    row = {"encoder": "detector", "division": "all", "region": "its own score"}
    rows.append(row | measured(data, own, {}))
    pooled, spoof = data.of(f"{example.config.tokens}/sound", "unseen")
    reports = example.judge(pooled)
    result = {
        "meta": provenance(
            detector,
            scikit_learn=version("scikit-learn"),
            minimum=MINIMUM,
            penalties=PENALTIES,
            every=options.every,
            recordings={part: int(data.inside(part).sum()) for part in ("train", *PARTS)},
            vocoded={part: int((data.inside(part) & data.spoof).sum()) for part in PARTS},
        ),
        "rows": rows,
        "examples": {
            kind: {"text": str(reports[place]), **asdict(reports[place])}
            for kind, place in (
                ("bona fide", int((~spoof).int().argmax())),
                ("vocoded", int(spoof.int().argmax())),
            )
        },
    }
    write_results(options.out, result)
    drawn = [r | {"group": r["encoder"]} for r in rows if r["division"] in ("all", "sound", "band")]
    title = "Which parts of speech betray a vocoder?"
    auc_figure(drawn, title=title).savefig(options.figure, dpi=110)
    if options.save:
        example.save_pretrained(options.save)


if __name__ == "__main__":
    main()

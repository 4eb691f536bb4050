"""Every method on every pair: against the true mask, against the detector, and what it costs."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from specsegdiff.benchmark.cost import Cost, measured
from specsegdiff.benchmark.fingerprints import fingerprint
from specsegdiff.benchmark.journal import note_rows, open_journal, pack, unpack
from specsegdiff.benchmark.scoring import (
    SCORES,
    Case,
    Row,
    identify,
    load_case,
    summarise,
    transform,
)
from specsegdiff.data.pairs import Pair
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.explanation import Explainer
from specsegdiff.frontend import Stft, StftConfig
from specsegdiff.masks import MaskConfig
from specsegdiff.metrics.faithfulness import faithfulness
from specsegdiff.metrics.similarity import similarity
from specsegdiff.shapes import Map, Mask

Ranking: TypeAlias = Literal["absolute", "value"]
"How the bins of a signed attribution are ranked (`rank`)."

FAITHFULNESS = ("ai", "ad", "ag", "fid_in", "ff")
"Scores by the detector: percent, but ff, which lies in [-1, 1]."

MEASURES = (*SCORES, "gdice_by_value", *FAITHFULNESS, "seconds", "peak_mb")
"Everything that a row holds a number of."

SIMILARITIES = ("maps", "truths", "gap", "specificity")
"Numbers of `similarities`, see `specsegdiff.metrics.similarity`."

TRUTH = "true mask"
"The method of the rows that the true mask itself scores, the most that a perfect map reaches."


def measure(
    methods: Mapping[str, Explainer],
    pairs: Sequence[Pair],
    *,
    detector: Callable[..., Any] | None = None,
    ranking: Ranking = "absolute",
    masks: MaskConfig | None = None,
    stft: Stft | StftConfig | None = None,
    journal: Path | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Row]:
    """Measure methods, by name, on the fakes of pairs: one row a pair and method.

    A row says what the pair is, and holds `MEASURES`. A map becomes a ranking of the bins by
    ``ranking`` (`rank`, which asks the method's attribute ``signed``, where it has one), and a mask
    by its own top share; GDice, foreground Dice, IoU and AP compare them with the true mask in the
    band that both members carry, and the `FAITHFULNESS` scores are what ``detector`` makes of that
    same mask (None without one). ``gdice_by_value`` is GDice with ``ranking='value'``. ``seconds``
    and ``peak_mb`` are those of the one call, after one on a second of the first fake that is not
    counted; see `benchmark.cost` for their limits. The field ``marked`` is the mask
    (`benchmark.journal.pack`). Rows of the method `TRUTH` say what the true mask itself reaches,
    and how much of it the detector uses.

    With ``journal``, rows are kept in that file as they come, and pairs and methods that it holds
    are not measured again, unless weights or settings are others (`fingerprint`): then a
    `ConfigError` says which. Code is not compared: remove the file after a method was changed.
    ``progress`` is called with (pairs done, all).

    Raises `ShapeError` where a method's map does not lie on the fake's axes, `ConfigError` on an
    unknown ranking, a method named as `TRUTH` or a ``stft`` of another type, and as `load_pair` and
    `faithfulness`.
    """
    masks, frontend = masks or MaskConfig(), transform(stft)
    _check(methods, ranking)
    kept: list[Row] = []
    if journal is not None:
        settings = {
            "detector": fingerprint(detector),
            "ranking": ranking,
            "masks": asdict(masks),
            "stft": asdict(frontend.config),
            "methods": {name: fingerprint(method) for name, method in methods.items()},
        }
        kept = open_journal(journal, settings)
        _check_pairs(kept, pairs, journal)
    rows = {(row["id"], row["method"]): row for row in kept}
    warm: set[str] = set()
    for done, pair in enumerate(pairs, start=1):
        todo = [name for name in (TRUTH, *methods) if (pair.id, name) not in rows]
        if todo:
            case = load_case(pair, masks=masks, stft=frontend)
            fresh = []
            for name in todo:
                heat, cost = case.changed, None
                if name != TRUTH:
                    if name not in warm:
                        methods[name](case.fake[None, : frontend.config.sample_rate])
                        warm.add(name)
                    heat, cost = _explain(methods[name], case, name)
                ranked = rank(heat, ranking, signed=getattr(methods.get(name), "signed", None))
                scores = _scores(case, heat, ranked, detector=detector, stft=frontend)
                fresh.append(identify(pair) | {"method": name} | scores | _cost(cost))
            if journal is not None:
                note_rows(journal, fresh)
            rows |= {(pair.id, row["method"]): row for row in fresh}
        if progress is not None:
            progress(done, len(pairs))
    return [rows[pair.id, name] for pair in pairs for name in (TRUTH, *methods)]


def rank(heat: Map, ranking: Ranking, *, signed: bool | None = None) -> Map:
    """The map by whose values bins are ranked, highest first.

    - ``'absolute'``: of an attribution the absolute value counts: where the detector looks, for or
      against. So does the only public re-implementation of arXiv 2506.03425, which does not state
      it. Any other map is ranked as it is.
    - ``'value'``: every map as it is, so that bins that speak against the target come last. The
      positive part gives the same mask wherever the top share is positive.

    ``signed`` says whether 0 parts for from against, as in an attribution; the methods in
    ``baselines`` that ask a detector have it as an attribute. Where nobody says, a map with values
    on both sides of 0 counts as one. A map without positive values may be an attribution all of
    whose bins speak against, or a negative energy or log-probability, where the highest counts; it
    is then taken for the latter. State ``signed`` wherever that is wrong.

    >>> [rank(torch.tensor([row]), "absolute").tolist() for row in ([-2.0, 1.0], [-2.0, -1.0])]
    [[[2.0, 1.0]], [[-2.0, -1.0]]]
    >>> rank(torch.tensor([[-2.0, -1.0]]), "absolute", signed=True).tolist()
    [[2.0, 1.0]]
    """
    if signed is None:
        signed = bool((heat < 0).any() & (heat > 0).any())
    return heat.abs() if ranking == "absolute" and signed else heat


def similarities(rows: Sequence[Row]) -> list[Row]:
    """How alike the masks of each method are among the vocoders of one recording: one row a
    recording and method, with `SIMILARITIES`.

    ``rows`` are those of `measure`. Fakes of one recording are those of one source group and file
    name of the real one; recordings with one fake are left out. Masks of unequal length are
    compared in the frames that all have, and in the narrowest band.
    """
    groups: dict[tuple[str, str], dict[str, dict[str, Row]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in rows:
        groups[row["source_group"], row["files"][0]][row["method"]][row["id"]] = row
    found = []
    for (source, recording), methods in groups.items():
        for name, fakes in methods.items():
            if len(fakes) < 2 or not fakes.keys() <= methods[TRUTH].keys():
                continue
            truths = [methods[TRUTH][id] for id in fakes]
            pair = similarity(*_shared([*fakes.values()], truths))
            found.append(
                {"source_group": source, "recording": recording, "method": name}
                | {"vocoders": len(fakes), **pair._asdict(), "gap": pair.gap}
            )
    return found


def entries(rows: Sequence[Row], *, resamples: int = 2000) -> list[dict[str, Any]]:
    """Summary of each method in rows of `measure`, as results files hold them.

    ``overall``, ``seen`` and ``unseen`` (and ``unknown``) are `summarise` of `MEASURES`,
    ``similarity`` is that of `SIMILARITIES`, where ``pairs`` counts recordings with two fakes or
    more.
    """
    alike = similarities(rows)
    result = []
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        entry: dict[str, Any] = {"method": name}
        entry["overall"] = summarise(own, scores=MEASURES, resamples=resamples)["all"]
        entry |= summarise(own, by="vocoder_seen", scores=MEASURES, resamples=resamples)
        content = [row for row in alike if row["method"] == name]
        if content:
            parts = summarise(content, scores=SIMILARITIES, resamples=resamples)
            entry["similarity"] = parts["all"]
        result.append(entry)
    return result


def _check(methods: Mapping[str, Explainer], ranking: object) -> None:
    if ranking not in ("absolute", "value"):
        raise ConfigError(f"ranking must be 'absolute' or 'value', got {ranking!r}")
    if TRUTH in methods:
        raise ConfigError(f"rows named {TRUTH!r} are those of the truth; name the method otherwise")


def _check_pairs(kept: Sequence[Row], pairs: Sequence[Pair], journal: Path) -> None:
    files = {pair.id: _files(pair) for pair in pairs}
    for row in kept:
        if row["files"] != files.get(row["id"], row["files"]):
            raise ConfigError(
                f"{journal} holds another pair {row['id']!r}, of {row['files']}; "
                "choose another file for these pairs"
            )


def _explain(method: Explainer, case: Case, name: str) -> tuple[Map, Cost]:
    result, cost = measured(lambda: method(case.fake[None]))
    if not isinstance(result, torch.Tensor) or result.ndim != 3 or len(result) != 1:
        came = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise ShapeError(
            f"expected {name} to map waves (1, n) to maps (1, f, t), got {came}; "
            "an Explainer keeps the batch axis"
        )
    return case.check(result[0], name=name), cost


def _scores(
    case: Case,
    heat: Map,
    ranked: Map,
    *,
    detector: Callable[..., Any] | None,
    stft: Stft,
) -> Row:
    marked = case.top(ranked)
    by_detector: dict[str, float | None] = dict.fromkeys(FAITHFULNESS)
    if detector is not None:
        asked = faithfulness(detector, case.fake[None], marked[None], stft=stft)
        by_detector = {name: float(asked[name]) for name in FAITHFULNESS}
    return {
        "files": _files(case.pair),
        **case.scores(ranked),
        "gdice_by_value": case.scores(heat)["gdice"],
        **by_detector,
        "audio_s": len(case.fake) / stft.config.sample_rate,
        "bins": len(marked) if case.valid is None else int(case.valid[:, 0].sum()),
        "marked": pack(marked),
    }


def _cost(cost: Cost | None) -> Row:
    return dict.fromkeys(Cost._fields) if cost is None else cost._asdict()


def _files(pair: Pair) -> list[Any]:
    """What tells a pair from another of the same id, without the folder that it lies in."""
    return [pair.real.name, pair.fake.name, pair.vocoder, pair.n_samples, pair.gain_db]


def _shared(maps: Sequence[Row], truths: Sequence[Row]) -> tuple[Mask, Mask]:
    """Masks of rows, ``(v, f, t)``, in the band and the frames that all of them have."""
    masks = [unpack(row["marked"]) for row in (*maps, *truths)]
    bins = min(row["bins"] for row in maps)
    frames = min(mask.shape[1] for mask in masks)
    stack = torch.stack([mask[:bins, :frames] for mask in masks])
    return stack[: len(maps)], stack[len(maps) :]

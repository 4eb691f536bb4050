"""What an answer is worth: R1 for the regions of Query 1, R2 for the words of Query 2.

Both are GRIDEX's (arXiv 2606.18738), with the weights of its public code. A reward is an object
that gives the parts of one answer with ``parts``, and a list of numbers when called as TRL and
ms-swift call reward functions:

- TRL: ``GRPOTrainer(reward_funcs=[CellReward()])`` calls ``reward(prompts=..., completions=...,
  completion_ids=..., **columns)``, where completions are texts or chats; None means that the
  reward does not apply.
- ms-swift: ``orms["cells"] = CellReward`` in a plug-in calls ``reward(completions, **columns)``.

The columns are those that `specsegdiff.train.examples.export` writes, and a file may hold both
queries: a reward gives None on the rows of the other. No trainer is imported.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from specsegdiff.errors import CorpusError
from specsegdiff.metrics.ranking import ndcg_graded, recall_at_k
from specsegdiff.metrics.reports import Fields, Told, consistency, field_accuracy, rouge_l
from specsegdiff.narration.parsing import Finding, parse_cells, parse_findings

WORDS = (*Fields._fields, "evidence")
"What a row of the column ``truth`` says of its region; in rows of Query 1 it is empty."


@dataclass(frozen=True)
class CellWeights:
    """Weights of the parts of R1."""

    hits: float = 1.0
    "Of the share of true regions found."
    order: float = 0.3
    "Of graded nDCG."
    form: float = 0.1
    "Of the form of the answer."


@dataclass(frozen=True)
class TextWeights:
    """Weights of the parts of R2."""

    text: float = 1.0
    "Of ROUGE-L against the true evidence, on hits."
    fields: float = 0.5
    "Of T, F and P that are right, on hits."
    consistency: float = 0.1
    "Of the agreement of the text with the fields declared beside it."
    form: float = 0.1
    "Of the form of the answer."


class CellParts(NamedTuple):
    """R1 and its parts, each in [0, 1] before its weight."""

    total: float
    "The reward; NaN where there is no true region."
    hits: float
    "R@K."
    order: float
    "Graded nDCG@K."
    form: float
    "1 for K different ids that exist, in a list and nothing else."


class TextParts(NamedTuple):
    """R2 and its parts, each the mean over the regions asked about, in [0, 1] before its weight."""

    total: float
    "The reward; NaN where there is no true region."
    hit: float
    "Share of the regions asked about that are true ones: an upper bound of text and fields."
    text: float
    "ROUGE-L, 0 for a region that is no true one."
    fields: float
    "Right fields, 0 for a region that is no true one."
    consistency: float
    "Agreement of text and declared fields."
    form: float
    "Share of lines with all fields, in an answer of nothing but such lines."


@dataclass(frozen=True)
class CellReward:
    """R1 = hits + 0.3 order + 0.1 form; an answer without the form is worth nothing.

    >>> CellReward().parts("[11, 3, 15]", ["15", "14", "11"])  # doctest: +ELLIPSIS
    CellParts(total=0.91..., hits=0.66..., order=0.47..., form=1.0)
    >>> CellReward()(["[11, 3, 15]", "no idea"], truth=[["15", "14", "11"]] * 2)[1]
    0.0
    """

    weights: CellWeights = field(default_factory=CellWeights)
    "Of the parts."
    count: int = 16
    "Regions of the picture."
    k: int = 3
    "Regions asked for."

    # TRL logs a reward under this name
    __name__ = "cell_reward"

    def parts(self, completion: str, truth: Sequence[str]) -> CellParts:
        """R1 of one answer; ``truth`` are the true regions, most covered first."""
        if not truth:
            return CellParts(math.nan, math.nan, math.nan, math.nan)
        ids = parse_cells(completion, count=self.count, k=self.k, strict=True).ids
        if not ids:
            return CellParts(0.0, 0.0, 0.0, 0.0)
        hits, order = recall_at_k(ids, truth, k=self.k), ndcg_graded(ids, truth, k=self.k)
        w = self.weights
        return CellParts(w.hits * hits + w.order * order + w.form, hits, order, 1.0)

    def __call__(
        self, completions: Sequence[Any], *, truth: Sequence[Sequence[Any]], **columns: Any
    ) -> list[float | None]:
        """R1 of many answers, as TRL and ms-swift ask for it; other columns are passed over.

        A row of ``truth`` is read by `true_cells`: rows with ``region`` and no words, or bare ids.
        It is None for a row of Query 2, to which R1 does not apply.
        """
        rows = zip(completions, truth, strict=True)
        return [_plain(self.parts(_text(c), true_cells(t)).total) for c, t in rows]


@dataclass(frozen=True)
class TextReward:
    """R2, the mean over regions of ``m (text + 0.5 fields) + 0.1 consistency + 0.1 form``.

    m is 1 for a true region and 0 for another, so that good words about a wrong place gain little.
    An answer that leaves a region out is worth nothing. Unlike GRIDEX's code, which cuts an answer
    into three brackets, the lenient reader takes it, and any word beside the lines costs the form.

    >>> told = Told("15", Fields("speech", "low", "vowel"), "Smeared vowel in the low band.")
    >>> line = '(15, T=speech, F=low, P=vowel, En="Smeared vowel in the mid band.")'
    >>> TextReward().parts(line, ["15"], [told])  # doctest: +ELLIPSIS
    TextParts(total=1.49..., hit=1.0, text=0.85..., fields=1.0, consistency=0.33..., form=1.0)
    """

    weights: TextWeights = field(default_factory=TextWeights)
    "Of the parts."

    __name__ = "text_reward"

    def parts(self, completion: str, ids: Sequence[str], truth: Sequence[Told]) -> TextParts:
        """R2 of one answer on the regions ``ids``; ``truth`` has a row for each true region."""
        if not truth or not ids:
            return TextParts(*[math.nan] * len(TextParts._fields))
        read = parse_findings(completion, ids=ids)
        if len(read.findings) < len(ids):
            return TextParts(*[0.0] * len(TextParts._fields))
        true = {row.region: row for row in truth}
        rows = [_slot(finding, true.get(finding.id)) for finding in read.findings]
        hit, text, fields, agreement, form = (
            sum(values) / len(rows) for values in zip(*rows, strict=True)
        )
        form = 0.0 if read.unparsed else form
        w = self.weights
        total = w.text * text + w.fields * fields + w.consistency * agreement + w.form * form
        return TextParts(total, hit, text, fields, agreement, form)

    def __call__(
        self,
        completions: Sequence[Any],
        *,
        ids: Sequence[Sequence[Any]],
        truth: Sequence[Sequence[Any]],
        **columns: Any,
    ) -> list[float | None]:
        """R2 of many answers, as TRL and ms-swift ask for it; other columns are passed over.

        A row of ``truth`` is read by `true_words`: rows with ``region``, ``time``, ``frequency``,
        ``phone`` and ``evidence``. It is None for a row of Query 1, to which R2 does not apply.
        """
        return [
            _plain(self.parts(_text(c), [str(id) for id in i], true_words(t)).total)
            for c, i, t in zip(completions, ids, truth, strict=True)
        ]


def true_cells(truth: Sequence[Any]) -> list[str]:
    """Read the true regions of Query 1 out of its column ``truth``; none for a row of Query 2.

    Also reads the bare ids of older files. Raises `CorpusError` on a row without a region.

    >>> blank = {"time": "", "frequency": "", "phone": "", "evidence": ""}
    >>> true_cells([{"region": "15", **blank}]), true_cells(["15", 14])
    (['15'], ['15', '14'])
    """
    if any(map(_has_words, truth)):
        return []
    return [str(_get(row, "region") if isinstance(row, Mapping) else row) for row in truth]


def true_words(truth: Sequence[Any]) -> list[Told]:
    """Read the true rows of Query 2 out of its column ``truth``; none for a row of Query 1.

    Raises `CorpusError` on a row that lacks a field.
    """
    return [told(row) for row in truth] if any(map(_has_words, truth)) else []


def told(row: Mapping[str, Any]) -> Told:
    """Read one row of Query 2's column ``truth``: plain data, as a file of examples holds it.

    Raises `CorpusError` where it lacks a field.
    """
    fields = Fields(_get(row, "time"), _get(row, "frequency"), _get(row, "phone"))
    return Told(str(_get(row, "region")), fields, _get(row, "evidence"))


def _has_words(row: Any) -> bool:
    """Whether a row of ``truth`` is one of Query 2: those of Query 1 have a region only."""
    return isinstance(row, Mapping) and any(row.get(name) for name in WORDS)


def _get(row: Any, name: str) -> Any:
    if not isinstance(row, Mapping) or name not in row:
        raise CorpusError(
            f"expected a row of truth with region, {', '.join(WORDS)}, got {row!r}; "
            "write the file with specsegdiff.train.examples.export"
        )
    return row[name]


def _slot(finding: Finding, true: Told | None) -> tuple[float, float, float, float, float]:
    fields = Fields(finding.time, finding.frequency, finding.phone)
    hit = true is not None
    return (
        float(hit),
        rouge_l(finding.evidence, true.evidence) if true else 0.0,
        field_accuracy([fields], [true.fields])["average"] if true else 0.0,
        consistency(fields, finding.evidence),
        float(finding.complete),
    )


def _text(completion: Any) -> str:
    """Text of a completion: itself, or the last turn of a chat, whose content may be in parts."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value

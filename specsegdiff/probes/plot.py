"""A picture of how well each region tells spoofed recordings from real ones."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from specsegdiff.errors import ShapeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"seen": "#1b6ca8", "unseen": "#d95f02"}
"Colours of the parts, which colour-blind eyes tell apart; their markers differ too."

MARKERS = {"seen": "o", "unseen": "s"}


def auc_figure(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> "Figure":
    """Draw the area under the ROC curve of every region, with its interval.

    ``rows`` have the fields ``group``, under whose name they are drawn together, ``region``, and
    ``auc``: values ``(area, low, high)`` of ``seen`` and ``unseen`` vocoders. A row without an area
    says so. Raises `ShapeError` where there is no row.
    """
    from matplotlib.figure import Figure

    if not rows:
        raise ShapeError("auc_figure needs at least one row, got none")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str(row["group"]), []).append(row)
    heights = [len(part) + 0.6 for part in groups.values()]
    figure = Figure(figsize=(8, 0.8 + 0.3 * sum(heights)), layout="constrained")
    panels = figure.subplots(
        len(groups), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for panel, (name, part) in zip(panels, groups.items(), strict=True):
        panel.set_title(name, loc="left", fontsize="small", parse_math=False)
        panel.axvline(0.5, color="0.6", linestyle=":", linewidth=1)
        for place, row in enumerate(part):
            _draw(panel, place, row["auc"])
        panel.set_yticks(range(len(part)), [str(row["region"]) for row in part], fontsize="small")
        panel.set_ylim(len(part) - 0.5, -0.5)
        panel.grid(axis="x", color="0.9")
    panels[-1].set_xlabel("area under the ROC curve (dotted: chance)")
    if title:
        figure.suptitle(title, fontsize="medium", parse_math=False)
    handles, names = _legend(panels)
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize="small")
    return figure


def _draw(panel: Any, place: int, found: Mapping[str, Sequence[float]]) -> None:
    for part, shift in (("seen", -0.15), ("unseen", 0.15)):
        if part not in found:
            continue
        area, low, high = found[part]
        panel.plot([low, high], [place + shift] * 2, color=COLOURS[part], linewidth=1.5)
        panel.plot(
            area,
            place + shift,
            MARKERS[part],
            color=COLOURS[part],
            markersize=5,
            label=f"{part} vocoders",
        )
    if not found:
        panel.text(0.5, place, "nowhere in both classes", va="center", fontsize="x-small")


def _legend(panels: Any) -> tuple[list[Any], list[str]]:
    """One entry for each part that is drawn anywhere."""
    known: dict[str, Any] = {}
    for panel in panels:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            known.setdefault(name, handle)
    return list(known.values()), list(known)

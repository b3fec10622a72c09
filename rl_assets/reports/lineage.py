"""The picture of where a model comes from: episodes, groups, judgement sets, batch and step, and what it stands on.

It is as large for a million episodes as for ten: episodes are told by hour and kind of scenario.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from rl_assets.reports.drawing import AMBER, BLUE, GREEN, INK, MUTED, PURPLE, SKY, canvas, nothing, png, safe_label

if TYPE_CHECKING:
    from rl_assets.registry.lineage import Generation

MOST_ORIGINS, MOST_STEPS = 6, 7
"""Rows of origins, and steps of the chain, that are drawn one by one."""
_ROW, _BOX = 1.0, 0.78
_COLUMNS = (0.0, 3.15, 5.35, 8.2, 11.0)
_WIDTHS = (2.85, 1.9, 2.55, 2.5, 2.5)
_RIGHT = _COLUMNS[-1] + _WIDTHS[-1]


def lineage_picture(generations: Sequence[Generation]) -> bytes:
    """PNG of the lineage of a model, as `registry.lineage.lineage_of` gives it: the newest generation in full, and the
    chain of steps below."""
    newest = generations[0]
    name = f"{newest.model.model_line}@{newest.model.step}"
    title = f"Where {safe_label(name, 48)} comes from"
    if not newest.sources:
        return nothing(title, f"Step {newest.model.step} is the base policy; no recorded episode went into it.")
    origins = newest.by_origin()
    rows = [(f"{window.replace('T', ' ')} UTC", kind, groups, count) for window, kind, groups, count in origins]
    if len(rows) > MOST_ORIGINS:
        rest = rows[MOST_ORIGINS - 1 :]
        more = (f"{len(rest)} more", "hours or scenarios", sum(r[2] for r in rest), sum(r[3] for r in rest))
        rows = [*rows[: MOST_ORIGINS - 1], more]
    height = max(len(rows), 2) * _ROW
    figure = canvas(title, height=round(150 + 62 * (height + 1.9)))
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(-0.1, _RIGHT + 0.1)
    axes.set_ylim(-1.95, height + 0.5)
    for x, width, heading in zip(_COLUMNS, _WIDTHS, ("Episodes", "Groups", "Judged in", "Batch", "Model"), strict=True):
        axes.text(x + width / 2, height + 0.2, heading, ha="center", fontsize=10, fontweight="bold", color=INK)
    middle = height / 2
    ways = len(rows)
    places = [height - (row + 0.5) * height / ways for row in range(ways)]
    sets = newest.judgement_sets
    judged = [safe_label(judged, 18) for judged in sets[:2]] + ([f"and {len(sets) - 2} more"] if len(sets) > 2 else [])
    for y, (hour, kind, groups, count) in zip(places, rows, strict=True):
        _box(axes, 0, y, [f"{count:,} episodes", safe_label(hour, 24), safe_label(kind, 26)], SKY)
        _box(axes, 1, y, [f"{groups:,} groups"], GREEN)
        _arrow(axes, 0, 1, y, y)
        _arrow(axes, 1, 2, y, middle)
    _box(axes, 2, middle, [f"{len(sets):,} judgement set{'s' if len(sets) != 1 else ''}", *judged], AMBER)
    model = newest.model
    told = [f"{len(newest.sources):,} episodes", f"{len(newest.groups):,} groups", safe_label(model.batch_id, 24)]
    _box(axes, 3, middle, told, PURPLE)
    _box(axes, 4, middle, [f"step {model.step}, {model.version}", model.state, f"SHA-256 {model.digest[:12]}"], BLUE)
    _arrow(axes, 2, 3, middle, middle)
    _arrow(axes, 3, 4, middle, middle)
    _chain(axes, generations)
    return png(figure)


def _chain(axes: Axes, generations: Sequence[Generation]) -> None:
    """The steps from the first to this one, each with the episodes that it took."""
    steps = list(reversed(generations))
    shown: list[Generation | None] = list(steps)
    if len(steps) > MOST_STEPS:
        shown = [steps[0], None, *steps[2 - MOST_STEPS :]]
    axes.text(0.0, -0.62, "What it stands on", fontsize=10, fontweight="bold", color=INK)
    width = _RIGHT / MOST_STEPS
    for place, generation in enumerate(shown):
        left = place * width
        if generation is None:
            lines, colour = [f"{len(steps) - MOST_STEPS + 1} more", "steps"], MUTED
        else:
            model, count = generation.model, len(generation.sources)
            lines = [f"step {model.step}", f"{count:,} episodes" if count else "base policy"]
            lines += ["checkpoint deleted"] if generation.pruned else []
            colour = BLUE
        _frame(axes, left, -1.4, width - 0.35, lines, colour)
        if place:
            axes.annotate(
                "",
                (left, -1.4),
                (left - 0.35, -1.4),
                arrowprops={"arrowstyle": "-|>", "color": MUTED, "shrinkA": 0, "shrinkB": 0},
            )


def _box(axes: Axes, column: int, y: float, lines: Sequence[str], colour: str) -> None:
    _frame(axes, _COLUMNS[column], y, _WIDTHS[column], lines, colour)


def _frame(axes: Axes, left: float, y: float, width: float, lines: Sequence[str], colour: str) -> None:
    height = _BOX + 0.24 * max(len(lines) - 3, 0)
    box = FancyBboxPatch(
        (left, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor="white",
        edgecolor=colour,
        linewidth=1.6,
    )
    axes.add_patch(box)
    for number, line in enumerate(lines):
        offset = (len(lines) - 1) / 2 - number
        axes.text(
            left + width / 2,
            y + offset * 0.24,
            line,
            ha="center",
            va="center",
            fontsize=8.5 if number == 0 else 7.5,
            fontweight="bold" if number == 0 else "normal",
            color=INK if number == 0 else MUTED,
        )


def _arrow(axes: Axes, start: int, end: int, y0: float, y1: float) -> None:
    axes.annotate(
        "",
        (_COLUMNS[end], y1),
        (_COLUMNS[start] + _WIDTHS[start], y0),
        arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0},
    )

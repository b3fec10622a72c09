"""The picture of what markets came to in an hour: how far perpetuals moved, how sure prediction markets had been."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from rl_assets.reports.drawing import BLUE, MUTED, ORANGE, canvas, finite, nothing, png, safe_label, style
from rl_assets.store.outcomes import Outcome

MOST_ROWS = 14
"""Of each kind: perpetuals that moved furthest, prediction markets that surprised most."""


def outcomes_picture(outcomes: Sequence[Outcome]) -> bytes:
    """Perpetuals by their change in percent, prediction markets by their last probability of YES and their outcome.

    Raises MalformedInput where a number is NaN or infinite.
    """
    title = "What markets came to"
    moved = [(o.ticker, o.change_percent) for o in outcomes if o.ticker is not None and o.change_percent is not None]
    ended = [(str(o.question or o.market_id), o.final_probability, o.outcome) for o in outcomes if o.ticker is None]
    told = [(name, p, outcome == "YES") for name, p, outcome in ended if p is not None]
    if not moved and not told:
        return nothing(title, "No market moved or ended in this hour.")
    finite((change for _, change in moved), "change_percent")
    finite((p for _, p, _ in told), "final_probability")
    left = sorted(moved, key=lambda row: (-abs(row[1]), str(row[0])))[:MOST_ROWS]
    right = sorted(told, key=lambda row: (-abs(row[2] - row[1]), str(row[0])))[:MOST_ROWS]
    rows = max(len(left), len(right))
    figure = canvas(title, height=max(220, 130 + 30 * rows))
    grid = list(figure.subplots(1, bool(left) + bool(right), squeeze=False)[0])
    if left:
        _changes(grid[0], left)
    if right:
        _probabilities(grid[-1], right)
    dropped = len(moved) + len(told) - len(left) - len(right)
    note = f"   {dropped} that moved or surprised less are not shown" if dropped else ""
    figure.supxlabel(
        f"perpetuals: {len(moved)}   prediction markets that ended: {len(told)}{note}", fontsize=9, color=MUTED
    )
    return png(figure)


def _changes(axes: Axes, rows: Sequence[tuple[str, float]]) -> None:
    style(axes, "Change over the hour (percent)", "", grid="x")
    changes = [change for _, change in rows]
    axes.barh(range(len(rows)), changes, height=0.6, color=[BLUE if c > 0 else ORANGE for c in changes], alpha=0.75)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    _name(axes, [name for name, _ in rows])


def _probabilities(axes: Axes, rows: Sequence[tuple[str, float, bool]]) -> None:
    style(axes, "Last probability of YES, and the outcome (filled)", "", grid="x")
    for place, (_, probability, yes) in enumerate(rows):
        axes.plot([probability, float(yes)], [place, place], color=MUTED, linewidth=1)
        axes.plot([probability], [place], "o", color="white", markeredgecolor=BLUE if yes else ORANGE, markersize=7)
        axes.plot([float(yes)], [place], "o", color=BLUE if yes else ORANGE, markersize=7, clip_on=False)
    axes.set_xlim(-0.04, 1.04)
    handles = [Line2D([], [], marker="o", linestyle="", color=c, label=n) for c, n in ((BLUE, "YES"), (ORANGE, "NO"))]
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9, frameon=False, ncols=2)
    _name(axes, [name for name, *_ in rows])


def _name(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [safe_label(name) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)

"""Plots of the pipeline's assets, as PNG bytes about 900 pixels wide and small enough to be stored as metadata.

Every function raises MalformedInput where a number is NaN or infinite, and says in the picture where there is nothing
to show. Labels may come from agents; they are drawn as they stand. This loads matplotlib: import it where it is used.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence

import numpy as np

from rl_assets.market.snapshot import Snapshot, Truth
from rl_assets.reports.drawing import (
    BLUE,
    GREEN,
    HEIGHT,
    INK,
    MUTED,
    ORANGE,
    SERIES,
    canvas,
    finite,
    label_ends,
    nothing,
    png,
    safe_label,
    style,
)
from rl_assets.training.figures import FIGURES

MOST_ROWS, MOST_LINES, MOST_POSTS = 14, 6, 80
CURVES = {
    name: FIGURES[name].label
    for name in (
        *("loss/train", "loss/entropy", "loss/kl_base", "loss/clip_fraction", "loss/importance_ratio"),
        *("loss/importance_ratio_max", "loss/grad_norm", "data/advantage_spread", "data/tokens", "data/staleness"),
        "loss",
    )
}
"""Points of a learning curve that are drawn, with their meaning and unit."""


def as_markdown_image(png_bytes: bytes) -> str:
    """Markdown with the picture inside, as Dagster's UI shows it."""
    return f"![plot](data:image/png;base64,{base64.b64encode(png_bytes).decode()})"


def price_paths(snapshot: Snapshot, truth: Truth | None) -> bytes:
    """The crowd's prices and the perpetuals' index prices of a market day with its posts; latent values if given."""
    config = snapshot.config
    title = f"Prices of {safe_label(snapshot.id, 60)}" + (" and the values behind them" if truth else "")
    panels = []
    if config.markets:
        latents = truth.latents() if truth else None
        panels.append((snapshot.crowd_prices(), latents, 0, "Price of a YES share (dollars)"))
    if config.perps:
        fairs = truth.fairs() if truth else None
        panels.append((snapshot.perp_prices(), fairs, config.markets, "Index price (dollars)"))
    figure = canvas(title)
    grid = figure.subplots(1, len(panels), squeeze=False, width_ratios=[1.6, 1.0][: len(panels)])
    ticks = np.arange(config.ticks + 1)
    shows_posts = len(snapshot.posts) <= MOST_POSTS
    for axes, (prices, hidden, first, y) in zip(grid[0], panels, strict=True):
        style(axes, f"Tick ({config.tick_seconds} s each)", y, whole_x=True)
        drawn = min(prices.shape[1], MOST_LINES)
        for column in range(drawn):
            colour = SERIES[column % len(SERIES)]
            axes.plot(ticks, prices[:, column], color=colour, linewidth=1.8)
            if hidden is not None:
                axes.plot(ticks, hidden[:, column], color=colour, linewidth=1.2, linestyle=(0, (4, 2)))
            for up, marker in ((True, "^"), (False, "v")) if shows_posts else ():
                at = [p.tick for p in snapshot.posts if p.instrument == first + column and p.up is up]
                axes.plot(at, prices[at, column], marker, color=colour, markersize=6, markeredgecolor="white")
        names = config.instruments[first : first + drawn]
        ends = [(prices[-1, c], name, SERIES[c % len(SERIES)]) for c, name in enumerate(names)]
        label_ends(axes, ends, config.ticks)
    legend = [f"▲ ▼ {len(snapshot.posts)} posts that say up or down"] if shows_posts else []
    if max(config.markets, config.perps) > MOST_LINES:
        legend.append(f"the first {MOST_LINES} of {config.markets} markets and {config.perps} perpetuals")
    legend += ["dashed: latent value, which no agent sees"] if truth else []
    figure.supxlabel("     ".join(legend), fontsize=9, color=MUTED)
    return png(figure)


def distribution_by_policy(values_by_policy: Mapping[str, Sequence[float]], axis: str) -> bytes:
    """One row per policy: how its values are distributed, over bins that all rows share, with its mean.

    axis: what the values are, with their unit.
    """
    title = f"{_quantity(axis)} by policy"
    rows = {name: finite(values, f"policy {name!r}") for name, values in values_by_policy.items()}
    rows = {name: values for name, values in rows.items() if values}
    if not rows:
        return nothing(title, "No episodes yet.")
    names = sorted(rows, key=lambda name: (float(np.mean(rows[name])), name))
    dropped = len(names) - MOST_ROWS
    names = names[-MOST_ROWS:]
    everything = np.concatenate([rows[name] for name in names])
    low, high = float(everything.min()), float(everything.max())
    pad = (high - low) * 0.02 or max(abs(low) * 0.05, 0.5)
    edges = np.linspace(low - pad, high + pad, 46)
    figure = canvas(title, height=max(220, min(110 + 46 * len(names), 640)))
    axes = style(figure.subplots(), axis, "", grid="x")
    for row, name in enumerate(names):
        share = np.histogram(rows[name], edges)[0] / len(rows[name])
        mean = float(np.mean(rows[name]))
        axes.stairs(row + 0.82 * share / share.max(), edges, baseline=row, fill=True, color=BLUE, alpha=0.55)
        axes.plot([mean, mean], [row, row + 0.82], color=ORANGE, linewidth=2)
        text = f"mean {_short(mean)}, n = {len(rows[name])}"
        axes.annotate(
            text,
            (1, row + 0.3),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            fontsize=9,
            color=INK,
            va="center",
            annotation_clip=False,
        )
    if low < 0 < high:
        axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_yticks([row + 0.3 for row in range(len(names))], [safe_label(name) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.08, len(names) + 0.02)
    note = f"   {dropped} policies of lower mean are not shown" if dropped > 0 else ""
    figure.supxlabel(f"height: share of the policy's episodes   orange: mean{note}", fontsize=9, color=MUTED)
    return png(figure)


def group_spread(values_by_group: Mapping[str, Sequence[float]], axis: str) -> bytes:
    """What the members of each group got, groups in order of their mean. A group without spread teaches nothing.

    axis: what the values are, with their unit.
    """
    title = f"{_quantity(axis)} within groups"
    rows = [finite(values, f"group {name!r}") for name, values in sorted(values_by_group.items())]
    rows = sorted((row for row in rows if row), key=lambda row: float(np.mean(row)))
    if not rows:
        return nothing(title, "No groups yet.")
    figure = canvas(title)
    axes = style(figure.subplots(), f"Groups in order of their mean ({len(rows)} in all)", axis, whole_x=True)
    places = np.arange(1, len(rows) + 1)
    axes.vlines(places, [min(row) for row in rows], [max(row) for row in rows], color=BLUE, alpha=0.35, linewidth=2)
    dot = float(np.clip(420 / len(rows), 1.5, 6))
    x = np.concatenate([np.full(len(row), place) for place, row in zip(places, rows, strict=True)])
    axes.plot(x, np.concatenate(rows), ".", color=BLUE, markersize=dot, alpha=0.75, label="member")
    axes.plot(places, [np.mean(row) for row in rows], "_", color=ORANGE, markersize=dot + 4, mew=2, label="mean")
    axes.legend(loc="upper left", fontsize=9, frameon=False, ncols=2)
    axes.margins(y=0.12)
    flat = sum(max(row) == min(row) for row in rows)
    figure.supxlabel(f"{flat} of {len(rows)} groups have no spread", fontsize=9, color=MUTED)
    return png(figure)


def learning_curve(points: Sequence[Mapping[str, float]]) -> bytes:
    """The curve of a training step or of the warm start: one panel per name of `CURVES` that the points hold."""
    title = "Learning curve"
    names = [name for name in CURVES if any(name in point for point in points)]
    if not names:
        return nothing(title, "No updates were recorded.")
    columns = min(len(names), 3)
    title = f"{title} over {len(points)} update{'s' * (len(points) != 1)}"
    figure = canvas(title, height=HEIGHT if len(names) <= 3 else 230 * -(-len(names) // columns))
    grid = figure.subplots(-(-len(names) // columns), columns, squeeze=False).ravel()
    for axes, name in zip(grid, names, strict=False):
        held = [(point.get("update", place), point[name]) for place, point in enumerate(points) if name in point]
        updates = finite((update for update, _ in held), "update")
        values = np.array(finite((value for _, value in held), name))
        style(axes, "Update", "", whole_x=True)
        axes.xaxis.get_major_locator().set_params(nbins=6 if columns > 1 else 12)
        axes.set_title(CURVES[name], fontsize=9.5, loc="left", color=INK)
        smooth = _running_mean(values, len(values) // 30)
        faint = 0.3 if len(values) >= 60 else 1.0
        axes.plot(updates, values, "o" if len(values) == 1 else "-", color=BLUE, linewidth=1.2, alpha=faint)
        if faint < 1:
            axes.plot(updates, smooth, color=BLUE, linewidth=2)
        if name == "loss/importance_ratio":
            axes.axhline(1, color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
        if len(values) == 1:
            axes.set_xticks(updates)
        axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-4, 5))
        axes.yaxis.get_offset_text().set_fontsize(8)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    return png(figure)


def paired_gate(
    differences_by_day: Mapping[int, float],
    lower: float | None,
    minimum_effect: float,
    mean: float,
) -> bytes:
    """What the gate decided on: candidate less champion per market day, their mean, its lower confidence bound, and the
    minimum effect that the bound must exceed. All in dollars of expected PnL per episode.

    lower: None where so few days bound nothing.
    """
    title = "Candidate less champion, by market day"
    if not differences_by_day:
        return nothing(title, "No market day was played by both.")
    days = sorted(differences_by_day)
    values = finite((differences_by_day[day] for day in days), "differences by day")
    mean, minimum_effect = finite((mean, minimum_effect), "the gate's decision")
    figure = canvas(title)
    axes = style(figure.subplots(), "Market days, worst difference first", "Difference (dollars per episode)")
    order = sorted(range(len(days)), key=lambda place: (values[place], days[place]))
    places = np.arange(len(days))
    heights = [values[place] for place in order]
    colours = [BLUE if height > 0 else ORANGE for height in heights]
    axes.bar(places, heights, width=0.8 if len(days) > 1 else 0.2, color=colours, alpha=0.75)
    if len(days) <= 30:
        axes.set_xticks(places, [safe_label(days[place], 8) for place in order], rotation=0 if len(days) <= 14 else 90)
    else:
        axes.set_xticks([])
    axes.set_xlim(-0.7, len(days) - 0.3)
    passed = lower is not None and lower > minimum_effect
    bound = GREEN if passed else ORANGE
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.axhline(mean, color=bound, linewidth=2)
    axes.axhline(minimum_effect, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    ends = [(mean, f"mean {_signed(mean)}", bound), (minimum_effect, f"minimum effect {_signed(minimum_effect)}", INK)]
    if lower is None:
        verdict = "so few days have no lower bound"
    else:
        finite([lower], "the lower bound")
        axes.axhspan(lower, mean, color=bound, alpha=0.14, linewidth=0)
        axes.axhline(lower, color=bound, linewidth=1.2)
        ends.append((lower, f"lower bound {_signed(lower)}", bound))
        verdict = f"the lower bound is {'' if passed else 'not '}above the minimum effect"
    axes.margins(y=0.1)
    label_ends(axes, ends, len(days) - 0.3)
    better = sum(value > 0 for value in values)
    figure.supxlabel(f"candidate ahead on {better} of {len(days)} days; {verdict}", fontsize=9, color=MUTED)
    return png(figure)


def pnl_by_policy(intervals: Mapping[str, tuple[float, float | None, float | None]]) -> bytes:
    """Mean and interval (mean, low, high) per policy, best on top. Bounds are None or NaN where one market day was
    played, which has no interval; they are then not drawn."""
    title = "Expected PnL by policy"
    if not intervals:
        return nothing(title, "No policy has played yet.")
    rows = {name: finite(interval[:1], f"policy {name!r}")[0] for name, interval in intervals.items()}
    names = sorted(rows, key=lambda name: (rows[name], name))[-2 * MOST_ROWS :]
    figure = canvas(title, height=max(200, 110 + 34 * len(names)))
    axes = style(figure.subplots(), "Expected PnL (dollars per episode)", "", grid="x")
    for row, name in enumerate(names):
        mean, text = rows[name], _short(rows[name])
        bounds = [bound for bound in intervals[name][1:] if bound is not None and not math.isnan(bound)]
        if len(bounds) == 2:
            low, high = finite(bounds, f"the interval of policy {name!r}")
            axes.plot([low, high], [row, row], color=BLUE, linewidth=3, alpha=0.5, solid_capstyle="butt")
            text += f"  [{_short(low)}, {_short(high)}]"
        axes.plot([mean], [row], "o", color=BLUE, markersize=7)
        axes.annotate(
            text,
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            fontsize=9,
            color=INK,
            va="center",
            annotation_clip=False,
        )
    left, right = axes.get_xlim()
    if left < 0 < right:
        axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_yticks(range(len(names)), [safe_label(name) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(names) - 0.4)
    figure.supxlabel("dot: mean   line: 95 % interval", fontsize=9, color=MUTED)
    return png(figure)


def _quantity(axis: str) -> str:
    """What an axis shows, without its unit."""
    return axis.partition(" (")[0]


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    half = max(window, 1)
    return np.array([values[max(place - half, 0) : place + half + 1].mean() for place in range(len(values))])


def _short(value: float) -> str:
    return (f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}").replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+,.2f}".replace("-", "−")

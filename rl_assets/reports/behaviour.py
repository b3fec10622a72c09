"""Plots of how policies play: equity over an episode, what they do when, whether they bet on what pays, day by day.

Like `plots`, every function gives PNG bytes, refuses NaN, and draws labels as they stand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from rl_assets.episodes import Episode, Step
from rl_assets.market.metrics import cluster_interval, market_day
from rl_assets.reports.drawing import (
    AMBER,
    BLUE,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SERIES,
    SKY,
    canvas,
    finite,
    label_ends,
    nothing,
    png,
    safe_label,
    style,
)
from rl_assets.reports.summary import pnl

MOST_CURVES, MOST_POLICIES, MOST_KINDS, BINS = 60, 6, 9, 5
HELD = ("hold", "close", "invalid")
_COLOURS = {
    "hold": GRID,
    "buy_yes": BLUE,
    "sell_yes": SKY,
    "buy_no": ORANGE,
    "sell_no": AMBER,
    "long": GREEN,
    "short": PURPLE,
    "close": "#8A8A8A",
    "invalid": "#000000",
}


def equity_curves(episodes_by_policy: Mapping[str, Sequence[Episode]]) -> bytes:
    """Mean equity in dollars per policy over an episode, with the range of its middle 80 %; one policy also shows its
    episodes. An episode that ends early counts as long as it lasts."""
    title = "Equity over an episode"
    curves = {name: [c for e in mine if len(c := _equity(e))] for name, mine in episodes_by_policy.items()}
    curves = {name: mine for name, mine in curves.items() if mine}
    if not curves:
        return nothing(title, "No episode has a step.")
    shown = list(curves)[:MOST_POLICIES]
    figure = canvas(title)
    axes = style(figure.subplots(), "Ticks played", "Equity (dollars)", whole_x=True)
    ends = []
    for place, name in enumerate(shown):
        colour = SERIES[place % len(SERIES)]
        longest = max(map(len, curves[name]))
        table = np.full((len(curves[name]), longest), np.nan)
        for row, curve in zip(table, curves[name], strict=True):
            row[: len(curve)] = curve
        ticks = np.arange(longest)
        if len(shown) == 1:
            for row in table[:: -(-len(table) // MOST_CURVES)]:
                axes.plot(ticks, row, color=colour, linewidth=0.7, alpha=0.25)
        low, high = np.nanquantile(table, [0.1, 0.9], axis=0)
        axes.fill_between(ticks, low, high, color=colour, alpha=0.12, linewidth=0)
        mean = np.nanmean(table, axis=0)
        axes.plot(ticks, mean, color=colour, linewidth=2.2)
        ends.append((float(mean[-1]), safe_label(name, 22), colour))
    label_ends(axes, ends, max(max(map(len, curves[name])) for name in shown) - 1)
    hidden = len(curves) - len(shown)
    note = f"     {hidden} more policies are in the table" if hidden else ""
    figure.supxlabel(f"line: mean     band: middle 80 % of episodes{note}", fontsize=9, color=MUTED)
    return png(figure)


def action_timeline(episodes: Sequence[Episode], policy: str) -> bytes:
    """The share of a policy's episodes that do each kind of action at each tick."""
    title = f"What {safe_label(policy)} does, tick by tick"
    counts: dict[int, Counter[str]] = {}
    for episode in episodes:
        for step in episode.steps:
            counts.setdefault(step.tick, Counter())[kind_of(step)] += 1
    if not counts:
        return nothing(title, "No episode has a step.")
    known = [kind for kind in _COLOURS if any(kind in count for count in counts.values())]
    others = Counter[str]()
    for count in counts.values():
        others.update({kind: n for kind, n in count.items() if kind not in _COLOURS})
    kinds = known + [kind for kind, _ in sorted(others.items(), key=lambda item: (-item[1], item[0]))]
    named, rest = kinds[:MOST_KINDS], kinds[MOST_KINDS:]
    ticks = sorted(counts)
    totals = np.array([counts[tick].total() for tick in ticks])
    figure = canvas(title, height=280)
    axes = style(figure.subplots(), "Tick", "Share of episodes", whole_x=True)
    bottom = np.zeros(len(ticks))
    bands = [([kind], safe_label(kind, 22)) for kind in named] + ([(rest, f"{len(rest)} other kinds")] if rest else [])
    for place, (members, label) in enumerate(bands):
        share = np.array([sum(counts[tick][kind] for kind in members) for tick in ticks]) / totals
        colour = _COLOURS.get(members[0], SERIES[place % len(SERIES)])
        axes.bar(ticks, share, bottom=bottom, width=0.9, color=colour, edgecolor="white", linewidth=0.4, label=label)
        bottom += share
    axes.set_ylim(0, 1)
    axes.set_xlim(ticks[0] - 0.6, ticks[-1] + 0.6)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", fontsize=9, frameon=False)
    return png(figure)


def calibration(episodes: Sequence[Episode], policy: str) -> bytes:
    """Whether a policy bets more where more is to be had: what an order adds to expected PnL (credit, dollars) by its
    size, and, where tokens have logprobs, how often it adds something by the probability of the response."""
    title = f"Does {safe_label(policy)} earn more where it bets more?"
    trades = [
        (market_day(episode), step)
        for episode in episodes
        for step in episode.steps
        if step.valid and step.credit is not None and _size(step) is not None and kind_of(step) not in HELD
    ]
    if not trades:
        return nothing(title, "No order of these episodes has a size and a known value.")
    days = np.array([day for day, _ in trades])
    sizes = np.array(finite((_size(step) or 0.0 for _, step in trades), "the size of an order"))
    credits = np.array(finite((step.credit or 0.0 for _, step in trades), "the credit of a step"))
    spoken = np.array([bool(step.logprobs) for _, step in trades])
    figure = canvas(title, height=320)
    panels = figure.subplots(1, 1 + bool(spoken.any()), squeeze=False)[0]
    style(panels[0], "Size of the order (dollars)", "Added to expected PnL (dollars)")
    _binned(panels[0], sizes, credits, days)
    panels[0].axhline(0, color=MUTED, linewidth=0.8)
    if spoken.any():
        sure = np.array([np.exp(sum(step.logprobs)) for (_, step), said in zip(trades, spoken, strict=True) if said])
        finite(sure, "the logprobs of a response")
        style(panels[1], "Probability that the policy gave the response", "Share of orders that add to PnL")
        _binned(panels[1], sure, (credits[spoken] > 0).astype(float), days[spoken])
        panels[1].axhline(0.5, color=MUTED, linewidth=0.8)
        panels[1].set_ylim(0, 1.08)
    note = "number: orders in the bin     dot: mean     line: 95 % interval over market days"
    figure.supxlabel(note, fontsize=9, color=MUTED)
    return png(figure)


def price_calibration(tables: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """What was bought at which price, and what it was worth: rows of `metrics.calibration_table` per policy."""
    title = "Was what it bought worth its price?"
    shown = {name: rows for name, rows in list(tables.items())[:MOST_POLICIES] if rows}
    if not shown:
        return nothing(title, "Nothing was bought on a prediction market.")
    figure = canvas(title, height=440)
    axes = style(figure.subplots(), "Mean price paid for a side (dollars)", "Worth in the end", grid="both")
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
    for place, (name, rows) in enumerate(shown.items()):
        colour = SERIES[place % len(SERIES)]
        paid, latent, came = (finite((row[key] for row in rows), key) for key in ("paid", "latent", "came_true"))
        label = f"{safe_label(name, 22)} ({sum(int(row['trades']) for row in rows):,})"
        axes.plot(paid, latent, "o-", color=colour, markersize=6, linewidth=1.4, label=label)
        if len(shown) == 1:
            axes.plot(paid, came, "x", color=ORANGE, markersize=7, markeredgewidth=2, label="share that came true")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=9, frameon=False)
    note = "dot: mean final latent probability of what was bought     above the dashed line: worth more than its price"
    figure.supxlabel(note, fontsize=9, color=MUTED)
    return png(figure)


def days_by_policy(episodes_by_policy: Mapping[str, Sequence[Episode]]) -> bytes:
    """Mean PnL in dollars per market day; of one policy alone, with its 95 % interval over the day's snapshots."""
    title = "PnL by market day"
    shown = dict(list(episodes_by_policy.items())[:MOST_POLICIES])
    table: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for name, episodes in shown.items():
        for episode in episodes:
            if (value := pnl(episode)) is not None:
                of_day = table.setdefault(name, {}).setdefault(market_day(episode), [])
                of_day.append((episode.snapshot_id or episode.trajectory_id, value))
    if not table:
        return nothing(title, "No episode has a PnL.")
    days = sorted({day for of_policy in table.values() for day in of_policy}, key=lambda day: (len(day), day))
    place_of = {day: place for place, day in enumerate(days)}
    figure = canvas(title)
    axes = style(figure.subplots(), f"Market day ({len(days)} in all)", "PnL (dollars per episode)")
    axes.axhline(0, color=MUTED, linewidth=0.8)
    for number, (name, of_policy) in enumerate(table.items()):
        colour = SERIES[number % len(SERIES)]
        aside = (number - (len(table) - 1) / 2) * 0.12
        points = []
        for day, values in of_policy.items():
            interval = cluster_interval(np.array([value for _, value in values]), [snapshot for snapshot, _ in values])
            x = place_of[day] + aside
            points.append((x, interval.mean))
            if len(table) == 1 and interval.clusters > 1:
                axes.plot([x, x], [interval.low, interval.high], color=colour, linewidth=2.5, alpha=0.4)
        axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=5, label=safe_label(name, 26))
    if len(days) <= 30:
        axes.set_xticks(range(len(days)), [safe_label(day, 10) for day in days], rotation=0 if len(days) <= 10 else 90)
    else:
        axes.set_xticks([])
    axes.set_xlim(-0.7, len(days) - 0.3)
    if len(table) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=9, frameon=False)
    else:
        figure.supxlabel("dot: mean     line: 95 % interval over the snapshots of the day", fontsize=9, color=MUTED)
    return png(figure)


def kind_of(step: Step) -> str:
    """The kind of a step's action: `do` of our schema, `actionType` of Babylon's, or invalid."""
    if not step.valid:
        return "invalid"
    kind = step.action.get("do", step.action.get("actionType"))
    return kind if isinstance(kind, str) else "unnamed"


def _equity(episode: Episode) -> list[float]:
    """Equity in dollars before the first tick and after each."""
    if not episode.steps:
        return []
    first = episode.steps[0]
    return finite([first.equity - first.reward, *(step.equity for step in episode.steps)], "the equity of an episode")


def _size(step: Step) -> float | None:
    size = step.action.get("size")
    return float(size) if isinstance(size, (int, float)) and not isinstance(size, bool) else None


def _binned(axes: Axes, x: np.ndarray, y: np.ndarray, days: np.ndarray) -> None:
    """Means of y over bins of x, each with its interval and how many orders it holds."""
    distinct = np.unique(x)
    if len(distinct) <= BINS:
        bins = [x == value for value in distinct]
    else:
        edges = np.unique(np.quantile(x, np.linspace(0, 1, BINS + 1)))
        place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
        bins = [place == number for number in range(len(edges) - 1)]
    for chosen in bins:
        if not chosen.any():
            continue
        interval, middle = cluster_interval(y[chosen], list(days[chosen])), float(x[chosen].mean())
        if interval.clusters > 1:
            axes.plot([middle, middle], [interval.low, interval.high], color=BLUE, linewidth=3, alpha=0.45)
        axes.plot([middle], [interval.mean], "o", color=BLUE, markersize=7)
        top = interval.mean if math.isnan(interval.high) else interval.high
        axes.annotate(
            f"{int(chosen.sum()):,}",
            (middle, top),
            xytext=(0, 5),
            textcoords="offset points",
            fontsize=8.5,
            color=INK,
            ha="center",
        )
    axes.margins(x=0.12, y=0.2)

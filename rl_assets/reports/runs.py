"""Reports of play, for a run and for a comparison of policies: an HTML file each, with CSV and Parquet beside it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rl_assets.episodes import Episode
from rl_assets.errors import MalformedInput
from rl_assets.market.metrics import METRICS, Interval, market_day, measure
from rl_assets.market.snapshot import Worlds
from rl_assets.places import Place, whole_file
from rl_assets.reports.page import LONGEST_NAME, Picture, plain, render, write_page
from rl_assets.reports.summary import (
    by_policy,
    paired_difference,
    pnl,
    shown_intervals,
    summarise,
)
from rl_assets.store.episode_files import write_episodes_parquet
from rl_assets.tree import RunFiles

MOST_STEPS = 50
"""Steps of an episode that are shown in full."""
MOST_POLICIES = 6
"""Policies with pictures of their own; all are in the table."""
_COLUMNS = (
    "trajectory_id",
    "agent_id",
    "policy",
    "snapshot_id",
    "scenario_id",
    "window_id",
    "sibling",
    "market_day",
    "expected_pnl",
    "realised_pnl",
    "max_drawdown",
    "trades",
    "breaches",
    "fees",
    "ticks",
    "is_evaluation",
    "prompt_version",
    "started_at",
    "ended_at",
)


def write_run_report(directory: Place, episodes: Sequence[Episode], *, worlds: Worlds | None = None) -> Place:
    """Write page, table and episodes of a run (`RunFiles`) and return the path of the page.

    worlds: snapshot and sealed truth by snapshot id, with which orders are also measured by what they turned out to be
    worth. Each file is whole or not there, and the page is written last. Before anything is written, raises
    MalformedInput where there is no episode, a number is NaN or a world is missing; RlAssetsError if the disk refuses.
    """
    from rl_assets.reports.behaviour import action_timeline, calibration, days_by_policy, equity_curves
    from rl_assets.reports.plots import distribution_by_policy

    policies = by_policy(episodes)
    if not policies:
        raise MalformedInput("the run holds no episode; play some before its report")
    page = render(
        "run.html",
        names=_names(policies),
        told=_told(episodes),
        rows=summarise(policies),
        distribution=Picture(
            distribution_by_policy(_pnls(policies), "PnL (dollars per episode)"), "Distribution of PnL"
        ),
        days=Picture(days_by_policy(policies), "Mean PnL of each market day"),
        equity=Picture(equity_curves(policies), "Equity over an episode"),
        timelines=_each(policies, action_timeline, "Share of episodes per kind of action and tick"),
        calibrated=_each(policies, calibration, "Credit by size of order and probability"),
        examples=_examples(episodes),
        measured=_measured(policies, worlds),
        worth=pnl,
        most_steps=MOST_STEPS,
    )
    return _write(RunFiles(directory), episodes, page)


def write_comparison_report(
    directory: Place, episodes_by_policy: Mapping[str, Sequence[Episode]], *, worlds: Worlds | None = None
) -> Place:
    """Write page, table and episodes that compare policies (`RunFiles`); return the path of the page.

    The first policy is the baseline, against which the others are paired on shared snapshots. Raises as
    `write_run_report` does, and MalformedInput for fewer than two policies or one without an episode.
    """
    from rl_assets.reports.behaviour import action_timeline, calibration, days_by_policy, equity_curves
    from rl_assets.reports.plots import distribution_by_policy, pnl_by_policy

    if len(episodes_by_policy) < 2:
        raise MalformedInput(f"a comparison needs two policies, got {len(episodes_by_policy)}; use write_run_report")
    idle = [name for name, mine in episodes_by_policy.items() if not mine]
    if idle:
        raise MalformedInput(f"policy {idle[0]!r} has no episode; play some before it is compared")
    episodes = [episode for mine in episodes_by_policy.values() for episode in mine]
    baseline, *others = episodes_by_policy
    rows = summarise(episodes_by_policy)
    page = render(
        "comparison.html",
        names=_names(episodes_by_policy),
        told=_told(episodes),
        baseline=baseline,
        rows=rows,
        measured=_measured(episodes_by_policy, worlds),
        differences=[
            (name, paired_difference(episodes_by_policy[name], episodes_by_policy[baseline])) for name in others
        ],
        intervals=Picture(pnl_by_policy(shown_intervals(rows)), "Mean and interval per policy, as in the table"),
        distribution=Picture(
            distribution_by_policy(_pnls(episodes_by_policy), "PnL (dollars per episode)"),
            "Distribution of PnL per policy",
        ),
        days=Picture(days_by_policy(episodes_by_policy), "Mean PnL of each policy on each market day"),
        equity=Picture(equity_curves(episodes_by_policy), "Mean equity of each policy over an episode"),
        timelines=_each(episodes_by_policy, action_timeline, "Share of episodes per kind of action and tick"),
        calibrated=_each(episodes_by_policy, calibration, "Credit by size of order and probability"),
    )
    return _write(RunFiles(directory), episodes, page)


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known with the worlds at hand. rows: name, meaning and one interval per policy of each metric."""

    policies: tuple[str, ...]
    rows: list[tuple[str, str, list[Interval | None]]]
    prices: Picture


def _measured(policies: Mapping[str, Sequence[Episode]], worlds: Worlds | None) -> Measured | None:
    """Metrics of each policy under the name it has in the report."""
    from rl_assets.reports.behaviour import price_calibration

    if worlds is None:
        return None
    found = measure(policies, worlds)
    tables = {name: one.calibration for name, one in found.items()}
    return Measured(
        policies=tuple(found)[:MOST_POLICIES],
        rows=[
            (name.replace("_", " "), means, [one.values[name] for one in list(found.values())[:MOST_POLICIES]])
            for name, means in METRICS.items()
        ],
        prices=Picture(price_calibration(tables), "Price paid next to what it was worth in the end"),
    )


def _write(files: RunFiles, episodes: Sequence[Episode], page: str) -> Place:
    with whole_file(files.table) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(_COLUMNS)
        writer.writerows([_cell(value) for value in _row(episode)] for episode in episodes)
    write_episodes_parquet(files.episodes, episodes)
    return write_page(files.report, page)


def _row(episode: Episode) -> list[object]:
    special = {"policy": str(episode.policy), "market_day": market_day(episode), "ticks": len(episode.steps)}
    return [special[name] if name in special else getattr(episode, name) for name in _COLUMNS]


def _cell(value: object) -> object:
    """A text that a spreadsheet would run as a formula gets an apostrophe in front; Parquet holds it as it was."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _names(policies: Mapping[str, object]) -> str:
    names = [plain(name, LONGEST_NAME) for name in policies]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _told(episodes: Sequence[Episode]) -> list[tuple[str, object]]:
    versions = sorted({episode.prompt_version or "not recorded" for episode in episodes})
    return [
        ("Episodes", f"{len(episodes):,}"),
        ("Snapshots", len({e.snapshot_id for e in episodes if e.snapshot_id is not None})),
        ("Market days", len({market_day(episode) for episode in episodes})),
        ("Steps", f"{sum(len(episode.steps) for episode in episodes):,}"),
        ("Prompt", ", ".join(versions[:3])),
        ("Began (UTC)", f"{min(episode.started_at for episode in episodes):%Y-%m-%d %H:%M}"),
    ]


def _pnls(policies: Mapping[str, Sequence[Episode]]) -> dict[str, list[float]]:
    return {name: [v for episode in mine if (v := pnl(episode)) is not None] for name, mine in policies.items()}


def _each(
    policies: Mapping[str, Sequence[Episode]], draw: Callable[[Sequence[Episode], str], bytes], says: str
) -> list[Picture]:
    return [Picture(draw(mine, name), f"{says}: {name}") for name, mine in list(policies.items())[:MOST_POLICIES]]


def _examples(episodes: Sequence[Episode]) -> list[Episode]:
    """The best, the middle and the worst episode by PnL; without a PnL anywhere, the first, the middle and the last."""
    ranked = sorted(
        [episode for episode in episodes if pnl(episode) is not None] or episodes, key=lambda e: -(pnl(e) or 0.0)
    )
    return [ranked[place] for place in sorted({0, len(ranked) // 2, len(ranked) - 1})]

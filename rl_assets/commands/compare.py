"""`rl-assets compare`: agents of every kind on the same snapshots, and who is surely better than whom."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rl_assets.commands.entrants import KEY, OPENAI, Asking, entrants_of, keys_of
from rl_assets.commands.snapshots import DIFFICULTY, SPLIT
from rl_assets.errors import ConfigurationError
from rl_assets.text import printable

if TYPE_CHECKING:
    from rl_assets.agents.comparison import Results
    from rl_assets.market.metrics import Interval
    from rl_assets.market.snapshot import World
    from rl_assets.settings import Settings


@click.command()
@click.argument("agents", nargs=-1)
@click.option("--split", type=SPLIT, default="gate", show_default=True)
@click.option("--first", type=int, default=None, help="First seed; the first of the split if left out.")
@click.option("--count", type=click.IntRange(1, 10_000), default=64, show_default=True, help="Snapshots of the split.")
@click.option("--difficulty", type=DIFFICULTY, default="standard", show_default=True, help="Of the split's worlds.")
@click.option("--snapshot", "ids", multiple=True, help="A snapshot on disk, imported or ours, in place of a split.")
@click.option("--siblings", type=click.IntRange(1, 512), default=1, show_default=True, help="Episodes per snapshot.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every agent's draws.")
@click.option("--base-url", default=None, help="One more agent: the OpenAI-compatible API under this URL, and")
@click.option("--model", default=None, help="the model there.")
@click.option("--key-env", multiple=True, help=f"Variable with the API's key, or HOST=VARIABLE.  [default: {KEY}]")
@click.option("--temperature", type=click.FloatRange(0, 2), default=1.0, show_default=True)
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Of an API's answer.")
@click.option(
    "--concurrency", type=click.IntRange(1, 512), default=8, show_default=True, help="Episodes asked at once."
)
@click.option("--timeout", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Seconds per request.")
@click.option(
    "--retries", type=click.IntRange(0, 20), default=4, show_default=True, help="After 429, 5xx or no answer."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=None, help="Directory of the results.")
def compare(
    agents: tuple[str, ...],
    split: str,
    first: int | None,
    count: int,
    difficulty: str,
    ids: tuple[str, ...],
    siblings: int,
    seed: int,
    base_url: str | None,
    model: str | None,
    key_env: tuple[str, ...],
    temperature: float,
    max_tokens: int,
    concurrency: int,
    timeout: float,
    retries: int,
    out: Path | None,
) -> int:
    """Let AGENTS play the same snapshots and compare what they earn. The first is the baseline of the report.

    \b
    hold, oracle, ...     a reference agent
    model, model@3        the champion, or a step of the model line
    DIRECTORY             a Hugging Face checkpoint
    openai:NAME@URL       a model behind an OpenAI-compatible API, such as openai:qwen@http://127.0.0.1:8000/v1
    a2a:URL               an A2A 0.3 agent, which is sent every observation as a message

    Run it again to go on where it was stopped, or where an agent failed. Exit code 1: some episodes failed.
    """
    from rl_assets.agents.comparison import plan_of, run
    from rl_assets.commands.shown import console, progress
    from rl_assets.episodes import digest
    from rl_assets.settings import Settings

    settings = Settings.from_env()
    if (base_url is None) != (model is None):
        raise click.UsageError("--base-url and --model belong together")
    names = [*agents, *([f"{OPENAI}{model}@{base_url}"] if base_url else [])]
    if not names:
        raise click.UsageError("name at least one agent, such as hold or model")
    asking = Asking(temperature, max_tokens, concurrency, timeout, retries, keys_of(key_env, names))
    worlds = _chosen(settings, split, first, count, difficulty, ids)
    entrants = entrants_of(names, siblings, asking)
    plan = plan_of(entrants, worlds, seed)
    directory = out or settings.data_dir / "comparisons" / digest(plan)[:12]
    # asyncio ends what is being asked in good order, where the handler is Python's own.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with progress() as report:
        results, page = run(
            directory, entrants, worlds, seed=seed, on_progress=lambda name, done, n: report(f"playing {name}", done, n)
        )
    _show(results)
    console().print(f"results: {page or directory}")
    return 1 if results.failures else 0


def _chosen(
    settings: Settings, split: str, first: int | None, count: int, difficulty: str, ids: Sequence[str]
) -> list[World]:
    from rl_assets.market.config import DIFFICULTIES
    from rl_assets.market.generate import generate
    from rl_assets.market.snapshot import SPLITS, load_world

    if ids:
        return [load_world(settings.tree.snapshots, key) for key in dict.fromkeys(ids)]
    seeds = SPLITS[split]
    start = seeds.start if first is None else first
    if start not in seeds or start + count > seeds.stop:
        raise ConfigurationError(
            f"split {split} has the seeds {seeds.start} to {seeds.stop - 1}; choose --first and --count within"
        )
    return [generate(split, number, DIFFICULTIES[difficulty]) for number in range(start, start + count)]


def _show(results: Results) -> None:
    from rl_assets.commands.shown import console, show_table
    from rl_assets.reports.summary import summarise

    board = results.ranking()
    ranks = {standing.policy: standing.rank for standing in board.standings} if board else {}
    failed = {name: sum(f.agent == name for f in results.failures) for name in results.episodes}
    rows = [
        (
            ranks.get(row.policy),
            printable(row.policy),
            row.episodes,
            failed.pop(row.policy),
            _interval(row.expected),
            row.skill,
            row.max_drawdown,
            row.trades,
            row.breaches,
        )
        for row in summarise(results.episodes)
    ]
    rows += [(None, printable(name), 0, count, None, None, None, None, None) for name, count in failed.items()]
    columns = ("rank", "agent", "played", "failed", "expected PnL", "skill", "drawdown", "trades", "breaches")
    show_table("dollars per episode, with 95 % intervals over market days", columns, rows)
    if results.failures:
        reasons: dict[tuple[str, str], list[str]] = {}
        for failure in results.failures:
            reasons.setdefault((failure.agent, failure.reason), []).append(failure.snapshot_id)
        show_table(
            "failed episodes; run the same command again to play them",
            ("agent", "episodes", "first", "reason"),
            [(printable(a), len(where), where[0], printable(reason, 300)) for (a, reason), where in reasons.items()],
        )
    for sentence in _told(results):
        console().print(sentence)


def _interval(value: Interval | None) -> str | None:
    if value is None:
        return None
    return f"{value.mean:,.2f}" + ("" if math.isnan(value.low) else f" [{value.low:,.2f}, {value.high:,.2f}]")


def _told(results: Results) -> list[str]:
    """The leaderboard in a line: > between neighbours of whom one is surely better, = between those of whom none is."""
    board = results.ranking()
    if board is None or len(board.standings) < 2:
        return []
    pairs = {(pair.better, pair.worse): pair for pair in board.pairs}
    line = printable(board.standings[0].policy)
    for better, worse in itertools.pairwise(board.standings):
        pair = pairs.get((better.policy, worse.policy)) or pairs[worse.policy, better.policy]
        sign = ">" if worse.policy in better.better_than else "="
        line += f" {sign} {printable(worse.policy)} (p {pair.p:.2g})"
    told = [f"leaderboard on {board.snapshots} snapshots of {board.days} market days: {line}"]
    if not board.can_tell:
        told.append(
            f"{board.days} market days cannot show a difference among {len(board.standings)} agents "
            f"(p is {board.least_p:.2g} at best); play more snapshots"
        )
    return told

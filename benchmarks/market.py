"""How fast the market is on this machine: `python -m benchmarks.market`.

Measures the engine with and without observations, reference agents that play without being recorded, memory by width
and over many plays, and a week of one-minute ticks from its seed to its file.
"""

from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import psutil

from benchmarks.timing import measure
from rl_assets.agents import prompt
from rl_assets.agents.reference import DRAWS, Seat, rule
from rl_assets.agents.runner import Assignment, ReferenceAgent, play
from rl_assets.commands.shown import show_table
from rl_assets.market.config import WorldConfig
from rl_assets.market.engine import Engine, Orders
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import load_snapshot, save_snapshot
from rl_assets.market.streams import uniform_draws

WIDTHS = (1, 64, 4096)
WORLDS = 512
WEEK = WorldConfig(ticks=10_080, tick_seconds=60)
PLAYS = 40
"""Plays of the widest batch over which memory is watched."""


def main() -> None:
    worlds = [generate("train", seed) for seed in range(WORLDS)]
    config = worlds[0][0].config
    instruments = config.markets + config.perps
    rows = []
    for width in WIDTHS:
        snapshots = [worlds[place % WORLDS][0] for place in range(width)]
        truths = [worlds[place % WORLDS][1] for place in range(width)]
        orders = wild_orders(config, width)
        repeats = max(5, 200 // width)
        ticks = width * config.ticks
        for what, work in (
            ("engine", lambda s=snapshots, o=orders: run(s, o)),
            ("engine and observations", lambda s=snapshots, o=orders: run(s, o, observe=True)),
            ("news follower, not recorded", lambda s=snapshots, t=truths: follow("news_follower", s, t)),
        ):
            seconds = measure(work, repeats)
            rows.append((what, width, seconds.rate(ticks), seconds.rate(ticks * instruments)))
    agent = [Assignment(ReferenceAgent("news_follower"), "bench")]
    seconds = measure(lambda: play(agent, worlds, seed=0, new_ids=lambda n: [""] * n), 5)
    ticks = WORLDS * config.ticks
    rows.append(("news follower, recorded", WORLDS, seconds.rate(ticks), seconds.rate(ticks * instruments)))
    show_table("Playing", ("what", "episodes side by side", "agent-ticks/s", "market-ticks/s"), rows)

    wide = [worlds[place % WORLDS][0] for place in range(WIDTHS[-1])]
    orders = wild_orders(config, WIDTHS[-1])
    process = psutil.Process()
    run(wide, orders, observe=True)
    before = process.memory_info().rss
    for _ in range(PLAYS):
        run(wide, orders, observe=True)
    grown = (process.memory_info().rss - before) / 1e6
    plays = f"{PLAYS} plays of {WIDTHS[-1]} episodes"
    show_table("Memory", ("what", "resident", "grown"), [(plays, f"{before / 1e6:.0f} MB", f"{grown:+.1f} MB")])

    rows = []
    for width in WIDTHS:
        snapshots = [worlds[place % WORLDS][0] for place in range(width)]
        orders = wild_orders(config, width)
        tracemalloc.start()
        run(snapshots, orders, observe=True)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        rows.append((width, f"{peak / 1e6:.2f} MB", f"{peak / width / 1e3:.2f} kB"))
    show_table("Memory of a play, with observations", ("episodes side by side", "at most", "per episode"), rows)

    seconds = measure(lambda: generate("train", 0, WEEK), 5)
    snapshot, truth = generate("train", 0, WEEK)
    with tempfile.TemporaryDirectory(prefix="rl-assets-bench-") as directory:
        root = Path(directory)
        saving = measure(lambda: save_snapshot(root, snapshot, truth), 5)
        loading = measure(lambda: load_snapshot(root, snapshot.id), 5)
        size = {path.parent.name: path.stat().st_size / 1e6 for path in root.rglob("*.json")}
    show_table(
        f"A week of {WEEK.ticks} ticks",
        ("what", "figure"),
        [
            ("generate, seconds", str(seconds)),
            ("save, seconds", str(saving)),
            ("load and check, seconds", str(loading)),
            ("public file", f"{size[snapshot.id]:.2f} MB"),
            ("sealed file", f"{size['sealed']:.2f} MB"),
        ],
    )


def run(snapshots: list, orders: list[Orders], *, observe: bool = False) -> None:
    engine = Engine(snapshots)
    for order in orders:
        if observe:
            prompt.observations(engine)
        engine.step(order)


def follow(name: str, snapshots: list, truths: list) -> None:
    engine, act, n = Engine(snapshots), rule(name), len(snapshots)
    ticks = engine.config.ticks
    draws = uniform_draws([(0, row) for row in range(n)], ticks * DRAWS).reshape(n, ticks, DRAWS)
    while not engine.done:
        engine.step(act(Seat(engine, np.arange(n), draws[:, engine.tick], truths)))


def wild_orders(config: WorldConfig, width: int) -> list[Orders]:
    """Orders of all kinds on all instruments, some of which are refused, one per episode and tick."""
    rng = np.random.default_rng(0)
    instruments = config.markets + config.perps
    return [
        Orders(
            rng.integers(0, 8, width).astype(np.int8),
            rng.integers(0, instruments, width).astype(np.int16),
            rng.choice([25.0, 50.0, 100.0], width),
        )
        for _ in range(config.ticks)
    ]


if __name__ == "__main__":
    main()

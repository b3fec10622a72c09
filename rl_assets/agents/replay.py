"""The proof that a record is true: the recorded responses, run again, give every recorded number bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rl_assets.agents import prompt
from rl_assets.episodes import Episode
from rl_assets.market.actions import to_orders
from rl_assets.market.engine import money
from rl_assets.market.exchange import engine_for
from rl_assets.market.snapshot import Snapshot, Truth, World

AT_ONCE = 512
"""Episodes that are run side by side."""


def replay(episode: Episode, snapshot: Snapshot, truth: Truth) -> list[str]:
    """What differs from the record of one episode, in words; empty if every bit agrees."""
    return replay_all([episode], {str(episode.snapshot_id): (snapshot, truth)})[0]


def replay_all(episodes: Sequence[Episode], worlds: Mapping[str, World]) -> list[list[str]]:
    """What differs from the record of each episode, in words; empty for those of which every bit agrees.

    worlds: by snapshot id, those of all episodes. Raises KeyError if one is missing.
    """
    differences: list[list[str]] = [[] for _ in episodes]
    alike: dict[object, list[int]] = {}
    for place, episode in enumerate(episodes):
        snapshot, _ = worlds[str(episode.snapshot_id)]
        if episode.snapshot_id != snapshot.id:
            differences[place].append(f"played on {episode.snapshot_id}, replayed on {snapshot.id}")
        elif len(episode.steps) != snapshot.n_ticks:
            differences[place].append(f"{len(episode.steps)} steps recorded, the snapshot has {snapshot.n_ticks} ticks")
        else:
            alike.setdefault((type(snapshot), snapshot.config), []).append(place)
    for places in alike.values():
        for start in range(0, len(places), AT_ONCE):
            part = places[start : start + AT_ONCE]
            found = _replay([episodes[place] for place in part], worlds)
            for place, differing in zip(part, found, strict=True):
                differences[place] += differing
    return differences


def _replay(episodes: Sequence[Episode], worlds: Mapping[str, World]) -> list[list[str]]:
    """`replay_all` for episodes of whole length whose snapshots fit on one engine."""
    pairs = [worlds[str(episode.snapshot_id)] for episode in episodes]
    truths = [truth for _, truth in pairs]
    engine = engine_for([snapshot for snapshot, _ in pairs])
    system = prompt.system_message(engine.config)
    differences = [[] if episode.system == system else ["the system message differs"] for episode in episodes]
    worth = engine.hindsight(truths)
    while not engine.done:
        steps = [episode.steps[engine.tick] for episode in episodes]
        observations = prompt.observations(engine)
        orders, _, _ = to_orders([step.response for step in steps], engine.config)
        fills = engine.step(orders)
        worth, before = engine.hindsight(truths), worth
        for row, step in enumerate(steps):
            replayed = {
                "observation": observations[row],
                "valid": bool(fills.valid[row]),
                "reward": money(fills.reward[row]),
                "equity": money(engine.equity[row]),
                "credit": money(worth[row] - before[row]),
            }
            differences[row] += [
                f"tick {step.tick}: {name} was {getattr(step, name)!r}, replays as {value!r}"
                for name, value in replayed.items()
                if getattr(step, name) != value
            ]
    realised, expected = engine.settle(truths)
    for row, episode in enumerate(episodes):
        replayed = {
            "realised_pnl": money(realised[row]),
            "expected_pnl": money(expected[row]),
            "max_drawdown": money(engine.max_drawdown[row]),
            "fees": money(engine.fees[row]),
            "breaches": int(engine.breaches[row]),
            "trades": int(engine.trades[row]),
        }
        differences[row] += [
            f"{name} was {getattr(episode, name)!r}, replays as {value!r}"
            for name, value in replayed.items()
            if getattr(episode, name) != value
        ]
    return differences

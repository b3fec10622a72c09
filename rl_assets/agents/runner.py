"""Playing episodes: agents take turns with the market until it closes, many episodes side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import numpy as np

from rl_assets.agents import prompt
from rl_assets.agents.reference import DRAWS, Seat, rule
from rl_assets.agents.reply import Reply
from rl_assets.collector import paused_collector
from rl_assets.episodes import Episode, Policy, Sampling, Step, window_of
from rl_assets.market.actions import to_orders
from rl_assets.market.engine import LIQUIDATED, Engine, Fills, money
from rl_assets.market.exchange import engine_for
from rl_assets.market.snapshot import Truth, World
from rl_assets.market.streams import uniform_draws
from rl_assets.spread import spread

PART = 128
"""Episodes that are played side by side, wherever that is: a last digit of a logprob depends on how many there are."""


class Table(Protocol):
    """An agent at play in some rows of an engine. `reply` is called once per tick with one observation per row."""

    def reply(self, observations: Sequence[str]) -> list[Reply]: ...


class Agent(Protocol):
    """Whoever can play. `sit` starts episodes in the given rows; `seeds` holds one entropy tuple per row."""

    policy: Policy

    @property
    def sampling(self) -> Sampling | None: ...

    def sit(self, engine: Engine, rows: np.ndarray, truths: list[Truth], seeds: list[tuple[int, ...]]) -> Table: ...


def at_once(agent: Agent, wanted: int) -> int:
    """How many episodes an agent plays side by side: those wanted, or fewer where it says what its memory holds."""
    return min(wanted, getattr(agent, "most_at_once", wanted))


class ReferenceAgent:
    """A rule of `reference`, by name. It says its orders as text, like everybody else."""

    sampling: Sampling | None = None
    travels = True

    def __init__(self, name: str) -> None:
        self._rule = rule(name)
        self.policy = Policy(name)

    def sit(self, engine: Engine, rows: np.ndarray, truths: list[Truth], seeds: list[tuple[int, ...]]) -> Table:
        return _ReferenceTable(self._rule, engine, rows, truths, uniform_draws(seeds, engine.config.ticks * DRAWS))


class _ReferenceTable:
    def __init__(self, rule, engine: Engine, rows: np.ndarray, truths: list[Truth], draws: np.ndarray) -> None:
        self._rule, self._engine, self._rows, self._truths = rule, engine, rows, truths
        self._draws = draws.reshape(len(rows), -1, DRAWS)

    def reply(self, observations: Sequence[str]) -> list[Reply]:
        orders = self._rule(Seat(self._engine, self._rows, self._draws[:, self._engine.tick], self._truths))
        return [Reply(text) for text in prompt.render_orders(orders, self._engine.config)]


@dataclass(frozen=True)
class Assignment:
    """An agent, the id it is recorded under, and how many siblings of it play each snapshot."""

    agent: Agent
    agent_id: str
    siblings: int = 1


@dataclass(frozen=True)
class Player:
    """Who an episode is recorded for. sibling: its number among the episodes of one policy on one snapshot."""

    trajectory_id: str
    agent_id: str
    policy: Policy
    sampling: Sampling | None = None
    sibling: int = 0


class Game:
    """Episodes side by side on one engine: it takes one reply per episode and tick, and in the end gives their records.

    The episodes' start is the moment a game is made, their end the moment the market closes.
    """

    def __init__(self, worlds: Sequence[World], clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.truths = [truth for _, truth in worlds]
        self.engine = engine_for([snapshot for snapshot, _ in worlds])
        self._clock = clock
        self._began = self._ended = clock()
        self._worth = self.engine.hindsight(self.truths)
        self._steps: list[list[Step]] = [[] for _ in worlds]
        self._seen: list[str] | None = None

    def observations(self) -> list[str]:
        """What each episode sees at this tick. Rendered once, however often it is asked for."""
        if self._seen is None:
            self._seen = prompt.observations(self.engine)
        return self._seen

    def take(self, replies: Sequence[Reply]) -> Fills:
        """Move one tick. Raises ValueError after the last."""
        engine, tick = self.engine, self.engine.tick
        observations = self.observations()
        orders, actions, unreadable = to_orders([r.text for r in replies], engine.config)
        fills = engine.step(orders)
        self._seen = None
        before, self._worth = self._worth, engine.hindsight(self.truths)
        for row, reply in enumerate(replies):
            self._steps[row].append(
                Step(
                    tick=tick,
                    observation=observations[row],
                    response=reply.text,
                    action=actions[row],
                    valid=bool(fills.valid[row]),
                    reward=money(fills.reward[row]),
                    equity=money(engine.equity[row]),
                    credit=money(self._worth[row] - before[row]),
                    error=_trouble(fills, row, unreadable[row]),
                    token_ids=reply.token_ids,
                    logprobs=reply.logprobs,
                    prompt_tokens=reply.prompt_tokens,
                    latency_ms=reply.latency_ms,
                )
            )
        if engine.done:
            self._ended = self._clock()
        return fills

    def episodes(self, players: Sequence[Player], is_evaluation: bool = False) -> list[Episode]:
        """The records, one player per row. Raises ValueError before the market has closed."""
        engine = self.engine
        if not engine.done:
            raise ValueError("the episodes are still in play")
        realised, expected = engine.settle(self.truths)
        system = prompt.system_message(engine.config)
        return [
            Episode(
                trajectory_id=player.trajectory_id,
                agent_id=player.agent_id,
                policy=player.policy,
                scenario_id=f"benchmark-{snapshot.id}",
                window_id=window_of(self._ended),
                started_at=self._began,
                ended_at=self._ended,
                system=system,
                steps=tuple(self._steps[row]),
                prompt_version=prompt.PROMPT_VERSION,
                sampling=player.sampling,
                snapshot_id=snapshot.id,
                sibling=player.sibling,
                realised_pnl=money(realised[row]),
                expected_pnl=money(expected[row]),
                max_drawdown=money(engine.max_drawdown[row]),
                breaches=int(engine.breaches[row]),
                trades=int(engine.trades[row]),
                fees=money(engine.fees[row]),
                is_evaluation=is_evaluation,
            )
            for row, (snapshot, player) in enumerate(zip(engine.snapshots, players, strict=True))
        ]


def play(
    assignments: Sequence[Assignment],
    worlds: Sequence[World],
    *,
    seed: int,
    new_ids: Callable[[int], list[str]],
    batch: int = PART,
    is_evaluation: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[Episode]:
    """Every assignment plays every world with all its siblings: episodes in order of assignment, world, sibling.

    seed, the snapshot's seed and the sibling's number decide every draw. batch: episodes at once, at most. `new_ids`
    gives n fresh trajectory ids. `on_progress` is called with the episodes done and in all.
    """
    total = sum(a.siblings for a in assignments) * len(worlds)
    parts: list[_Part] = []
    for assignment in assignments:
        seats = [(world, sibling) for world in worlds for sibling in range(assignment.siblings)]
        width = at_once(assignment.agent, batch)
        for start in range(0, len(seats), width):
            part = seats[start : start + width]
            parts.append(_Part(assignment, part, new_ids(len(part)), seed, is_evaluation, clock))
    # What asks an endpoint waits for it, here as well as anywhere.
    everywhere = spread if all(getattr(a.agent, "travels", False) for a in assignments) else map
    episodes: list[Episode] = []
    for played in everywhere(_play_part, parts):
        episodes += played
        if on_progress is not None:
            on_progress(len(episodes), total)
    return episodes


@dataclass(frozen=True)
class _Part:
    """Episodes of one agent that are played side by side. ids: one per seat."""

    assignment: Assignment
    seats: Sequence[tuple[World, int]]
    ids: Sequence[str]
    seed: int
    is_evaluation: bool
    clock: Callable[[], datetime]


def _play_part(part: _Part) -> list[Episode]:
    return play_seats(
        part.assignment,
        part.seats,
        seed=part.seed,
        ids=part.ids,
        is_evaluation=part.is_evaluation,
        clock=part.clock,
    )


@paused_collector()
def play_seats(
    assignment: Assignment,
    seats: Sequence[tuple[World, int]],
    *,
    seed: int,
    ids: Sequence[str],
    is_evaluation: bool = False,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[Episode]:
    """Play worlds of one configuration side by side, each with the number of its sibling. ids: one per episode."""
    game = Game([world for world, _ in seats], clock)
    agent = assignment.agent
    seeds = [(seed, world[0].seed, sibling) for world, sibling in seats]
    table = agent.sit(game.engine, np.arange(len(seats)), game.truths, seeds)
    while not game.engine.done:
        game.take(table.reply(game.observations()))
    players = [
        Player(trajectory_id, assignment.agent_id, agent.policy, agent.sampling, sibling)
        for trajectory_id, (_, sibling) in zip(ids, seats, strict=True)
    ]
    return game.episodes(players, is_evaluation)


def _trouble(fills: Fills, row: int, unreadable: str | None) -> str | None:
    refused = None if fills.error[row] is None else unreadable or str(fills.error[row])
    if not fills.liquidated[row]:
        return refused
    return LIQUIDATED if refused is None else f"{refused}; {LIQUIDATED}"

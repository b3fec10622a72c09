"""Agents at play in one market day, tick by tick: the accounts, the orders and the clock behind the A2A operations.

No HTTP, no tokens, no parsing here. A `Room` is one game of the runner: every agent in it has an account and pools of
its own (a row of the engine), and all share one clock, which moves when each of them has acted. An agent places at most
one order per tick, as everywhere in this market. An order is checked, and its fill told, the moment it is placed:
nobody else trades in the agent's pools, so nothing comes between. One that the exchange would refuse is not placed and
costs nothing. What is recorded of a tick is the canonical text of the order that was placed, or of holding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rl_assets.agents import prompt
from rl_assets.agents.reply import Reply
from rl_assets.agents.runner import Game, Player
from rl_assets.episodes import Episode, Policy
from rl_assets.market.config import WorldConfig
from rl_assets.market.engine import Do, Engine, Orders, money
from rl_assets.market.snapshot import World


class Refused(Exception):
    """An operation that cannot be done. The message tells the agent why, and what to do instead."""


@dataclass(eq=False)
class Session:
    """One agent's place in a room. row: its row of the engine. fast_forward: placing an order is all that it does in a
    tick. costs: dollars paid for what is held, by position id. order: canonical text of the order of this tick."""

    id: str
    agent: str
    room: Room
    row: int
    fast_forward: bool
    last_seen: float
    sibling: int = 0
    trajectory_id: str = ""
    gone: bool = False
    acted: bool = False
    order: str | None = None
    latency_ms: int = 0
    costs: dict[str, float] = field(default_factory=dict)

    @property
    def engine(self) -> Engine:
        return self.room.game.engine

    @property
    def cash(self) -> float:
        return money(self.engine.cash[self.row])

    @property
    def equity(self) -> float:
        return money(self.engine.equity[self.row])

    def shares(self, place: int, outcome: str, engine: Engine | None = None) -> float:
        """Shares held of one side of a prediction market: now, or in an engine that a quote gave."""
        engine = engine or self.engine
        return float((engine.yes if outcome == "YES" else engine.no)[self.row, place])

    def place(self, do: Do, instrument: int, size: float) -> Engine:
        """Place this tick's order. Returns the engine as the order will leave it; raises Refused if it will not.

        instrument: its index, or that of a channel to join. size: dollars.
        """
        self.room.check_open()
        if self.order is not None or self.acted:
            placed = f"{self.order} is placed" if self.order is not None else "you have held"
            raise Refused(f"one order per tick, and {placed}: call advance, then order again")
        orders = Orders.hold(self.engine.n)
        orders.do[self.row], orders.instrument[self.row], orders.size[self.row] = do, instrument, size
        after, errors = self.engine.quote(orders)
        if errors[self.row] is not None:
            raise Refused(f"the exchange refuses this order: {errors[self.row]}")
        whole = int(size) if size == int(size) else size
        config = self.room.config
        name = (config.channels if do == Do.JOIN else config.instruments)[instrument]
        self.order = prompt.render(do, name, whole)
        return after

    def act(self) -> None:
        """Say that this tick's decision is made: the order that was placed, or holding. Once per tick."""
        self.room.check_open()
        if not self.acted:
            self.acted = True
            self.latency_ms = self.room.since_tick_ms()
            self.room.move_if_all_acted()


class Room:
    """A market day with a place for each of `seats` agents. Nothing moves before all are taken.

    on_move is called after every tick.
    """

    def __init__(
        self,
        world: World,
        seats: int = 1,
        *,
        now: Callable[[], float] = time.monotonic,
        on_move: Callable[[Room], None] = lambda room: None,
    ) -> None:
        self.snapshot, _ = world
        self.game = Game([world] * seats)
        self.seats = seats
        self.sessions: list[Session] = []
        self.recorded = False
        self._now = now
        self._on_move = on_move
        self._tick_began = now()

    @property
    def config(self) -> WorldConfig:
        return self.snapshot.config

    @property
    def tick(self) -> int:
        """Decisions that have been made: 0 at the start, config.ticks at the end."""
        return self.game.engine.tick

    @property
    def finished(self) -> bool:
        return self.game.engine.done

    @property
    def full(self) -> bool:
        """Whether all agents have joined, which is when the market opens."""
        return len(self.sessions) == self.seats

    @property
    def waiting_for(self) -> int:
        """Agents that have not joined, or not acted in this tick."""
        return 0 if self.finished else self.seats - sum(s.acted or s.gone for s in self.sessions)

    def check_open(self) -> None:
        """Raises Refused unless agents may act now."""
        if not self.full:
            missing = self.seats - len(self.sessions)
            raise Refused(f"this market opens when all {self.seats} agents have joined; {missing} missing, try later")
        if self.finished:
            raise Refused("this market has closed; getDashboard tells how you did, and join starts a new episode")

    def since_tick_ms(self) -> int:
        return int((self._now() - self._tick_began) * 1000)

    def sit(self, session: Session) -> None:
        """Take a free place. The clock of the first tick starts when the last place is taken."""
        self.sessions.append(session)
        if self.full:
            self._tick_began = self._now()

    def leave(self, session: Session) -> None:
        """Hold for this agent from now on. Its episode will not be recorded, and nobody waits for it."""
        session.gone = True
        if self.full and not self.finished and any(not s.gone for s in self.sessions):
            self.move_if_all_acted()

    def move_if_all_acted(self) -> None:
        """Move the clock one tick once every agent has acted or left."""
        if self.waiting_for:
            return
        replies = [Reply(prompt.HOLD_TEXT)] * self.seats
        for session in self.sessions:
            if not session.gone:
                replies[session.row] = Reply(session.order or prompt.HOLD_TEXT, latency_ms=session.latency_ms)
            session.order, session.acted = None, False
        self.game.take(replies)
        self._tick_began = self._now()
        self._on_move(self)

    def episodes(self, agent_ids: Mapping[str, str]) -> list[Episode]:
        """The records of those who stayed to the end. agent_ids: what each agent is recorded under, by its name."""
        players = [Player("", "", Policy("gone"))] * self.seats
        for s in self.sessions:
            players[s.row] = Player(s.trajectory_id, agent_ids[s.agent], Policy(s.agent), sibling=s.sibling)
        records = self.game.episodes(players, is_evaluation=self.snapshot.split != "train")
        return [records[s.row] for s in self.sessions if not s.gone]

    def observation(self, session: Session) -> str:
        """What the episode's record shows of this tick: the text that every policy reads."""
        return self.game.observations()[session.row]

    def result(self, session: Session) -> dict[str, Any]:
        """How an episode ended; money in dollars. Call it when the market has closed."""
        engine, row = self.game.engine, session.row
        realised, expected = engine.settle(self.game.truths)
        return {
            "realisedPnl": money(realised[row]),
            "expectedPnl": money(expected[row]),
            "equity": session.equity,
            "maxDrawdown": money(engine.max_drawdown[row]),
            "fees": money(engine.fees[row]),
            "trades": int(engine.trades[row]),
            "breaches": int(engine.breaches[row]),
            "episode": session.trajectory_id if self.recorded else None,
        }

"""A live agent's steps of an hour as one trajectory: Babylon's shape, growing by a step per tick.

The row is written as for any other episode (`record`); what only live play has (what was read, the account before the
decision, the market's answer) is added to each step once and kept as it is when the row grows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier, Placeholder

from rl_assets.agents.prompt import PROMPT_VERSION
from rl_assets.episodes import Episode, Policy, Sampling, Step
from rl_assets.errors import MalformedInput
from rl_assets.market.engine import money
from rl_assets.store.episodes import new_ids, read_episodes
from rl_assets.store.record import CALL_COLUMNS, TRAJECTORY_COLUMNS, call_rows, step_json, trajectory_row
from rl_assets.turns import Decision

_KEPT = ("id", "trajectoryId", "createdAt", "usedInTraining")
"""Columns that stay as they are when a row grows."""


def record_step(
    conn: psycopg.Connection,
    decision: Decision,
    accesses: Sequence[dict[str, Any]],
    *,
    agent_id: str,
    scenario: str,
    window_id: str,
    points: int,
    began: datetime,
    continued: str | None,
) -> str:
    """Add a decision to the trajectory that it continues, or begin one; returns the trajectory's id.

    points: the agent's balance. began: when the turn began. Call it in a transaction. Raises MalformedInput where the
    step cannot be stored, or what it continues is gone.
    """
    try:
        now = datetime.now(UTC)
        step = Step(
            tick=decision.tick,
            observation=decision.observation,
            response=decision.response,
            action=decision.action,
            valid=decision.valid,
            reward=money(decision.equity - decision.equity_before),
            equity=money(decision.equity),
            error=decision.error,
            token_ids=decision.token_ids,
            logprobs=decision.logprobs,
            prompt_tokens=decision.prompt_tokens,
            latency_ms=decision.latency_ms,
        )
        if continued is None:
            episode, stored = _begun(decision, agent_id, scenario, window_id, began), []
        else:
            episode, stored = _continued(conn, continued)
        episode = _grown(episode, step, decision, now)
        new = step_json(episode, len(stored), step)
        new["providerAccesses"] = list(accesses)
        new["environmentState"] = {
            **decision.environment,
            "agentPoints": points,
            "timestamp": int(now.timestamp() * 1000),
        }
        new["action"]["result"] = {**decision.result, **new["action"]["result"]}
        row = dict(zip(TRAJECTORY_COLUMNS, trajectory_row(episode, new_ids(1)[0], now), strict=True))
        row["stepsJson"] = json.dumps([*stored, new], separators=(",", ":"), allow_nan=False)
        conn.execute(_UPSERT, list(row.values()))
        conn.execute(_INSERT_CALL, call_rows(episode, new_ids(len(episode.steps)), now)[-1])
        return episode.trajectory_id
    except (ValueError, psycopg.DataError) as error:
        raise MalformedInput(f"the step cannot be recorded ({error}); see what the market and the agent say") from error


def _begun(decision: Decision, agent_id: str, scenario: str, window_id: str, began: datetime) -> Episode:
    drawn = decision.temperature is not None and decision.max_tokens is not None
    return Episode(
        trajectory_id=new_ids(1)[0],
        agent_id=agent_id,
        policy=Policy(decision.policy, decision.step),
        scenario_id=scenario,
        window_id=window_id,
        started_at=began,
        ended_at=began,
        system=decision.system,
        steps=(),
        prompt_version=PROMPT_VERSION,
        sampling=Sampling(decision.temperature or 0.0, decision.max_tokens or 0) if drawn else None,
    )


def _continued(conn: psycopg.Connection, trajectory_id: str) -> tuple[Episode, list[Any]]:
    """The episode so far, and its steps as they are stored."""
    row = conn.execute(
        'SELECT "stepsJson" FROM trajectories WHERE "trajectoryId" = %s FOR UPDATE', [trajectory_id]
    ).fetchone()
    if row is None:
        raise MalformedInput(f"trajectory {trajectory_id} is gone; its agent begins another one")
    return read_episodes(conn, [trajectory_id])[trajectory_id], json.loads(row[0])


def _grown(episode: Episode, step: Step, decision: Decision, now: datetime) -> Episode:
    """The episode with one more step. What it earned is the sum of its steps, in dollars."""
    steps = (*episode.steps, step)
    path = list(accumulate((each.reward for each in steps), initial=steps[0].equity - steps[0].reward))
    return replace(
        episode,
        steps=steps,
        ended_at=now,
        realised_pnl=money(path[-1] - path[0]),
        max_drawdown=money(max(peak - value for peak, value in zip(accumulate(path, max), path, strict=True))),
        breaches=sum(not each.valid for each in steps),
        trades=episode.trades + decision.traded,
        fees=money(episode.fees + decision.fee),
    )


_COLUMNS = SQL(", ").join(map(Identifier, TRAJECTORY_COLUMNS))
_UPSERT = SQL('INSERT INTO trajectories ({}) VALUES ({}) ON CONFLICT ("trajectoryId") DO UPDATE SET {}').format(
    _COLUMNS,
    SQL(", ").join([Placeholder()] * len(TRAJECTORY_COLUMNS)),
    SQL(", ").join(
        SQL("{0} = excluded.{0}").format(Identifier(name)) for name in TRAJECTORY_COLUMNS if name not in _KEPT
    ),
)
_INSERT_CALL = SQL("INSERT INTO llm_call_logs ({}) VALUES ({})").format(
    SQL(", ").join(map(Identifier, CALL_COLUMNS)), SQL(", ").join([Placeholder()] * len(CALL_COLUMNS))
)

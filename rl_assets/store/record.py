"""An episode as rows of Babylon's `trajectories` and `llm_call_logs`: the shape of its recorder, with keys added.

What Babylon does not know is added where its readers do not look: token ids and logprobs to each call, tick, credit and
equity to each step, and policy, prompt version, sampling and snapshot to the metadata. `parse` reads all of it back.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

from rl_assets.episodes import Episode, Step
from rl_assets.errors import MalformedInput
from rl_assets.store import bulk_json
from rl_assets.text import storable

RECORDER = "rl-assets/1"
TRAJECTORY_COLUMNS = (
    *("id", "trajectoryId", "agentId", "startTime", "endTime", "durationMs", "windowId", "windowHours", "episodeId"),
    *("scenarioId", "stepsJson", "rewardComponentsJson", "metricsJson", "metadataJson", "totalReward", "episodeLength"),
    *("finalStatus", "finalBalance", "finalPnL", "tradesExecuted", "postsCreated", "isTrainingData", "isEvaluation"),
    *("usedInTraining", "createdAt", "updatedAt"),
)
CALL_COLUMNS = (
    *("id", "trajectoryId", "stepId", "callId", "timestamp", "latencyMs", "model", "purpose", "actionType"),
    *("systemPrompt", "userPrompt", "response", "temperature", "maxTokens", "topP", "promptTokens"),
    *("completionTokens", "totalTokens", "metadata", "createdAt"),
)
WINDOW_LENGTH, SCENARIO_LENGTH, EPISODE_LENGTH = 50, 100, 100
"""Characters that Babylon's columns hold."""


def trajectory_row(episode: Episode, row_id: str, now: datetime) -> tuple[Any, ...]:
    """Values in the order of `TRAJECTORY_COLUMNS`. Raises MalformedInput if the episode cannot be stored whole."""
    try:
        return _trajectory_row(episode, row_id, now)
    except (ValueError, TypeError) as error:  # JSON has neither NaN nor objects of ours
        raise MalformedInput(
            f"episode {episode.trajectory_id} cannot be recorded ({error}); correct the agent or world that made it"
        ) from error


def _trajectory_row(episode: Episode, row_id: str, now: datetime) -> tuple[Any, ...]:
    if len(episode.window_id or "") > WINDOW_LENGTH or len(episode.scenario_id or "") > SCENARIO_LENGTH:
        raise MalformedInput(
            f"episode {episode.trajectory_id} has a window or scenario of more than {WINDOW_LENGTH} or "
            f"{SCENARIO_LENGTH} characters; shorten it"
        )
    for number, step in enumerate(episode.steps):
        numbers = sum(step.logprobs, step.reward + step.equity + (step.credit or 0.0))
        if not (math.isfinite(numbers) and bulk_json.is_finite(step.action)):
            raise ValueError(f"step {number} holds a number that is not finite")
    ended, written = _stamp(episode.ended_at), _stamp(now)
    errors = sum(not step.valid for step in episode.steps)
    total = sum(step.reward for step in episode.steps)
    summary = {
        "episodeLength": len(episode.steps),
        "finalStatus": "completed_with_errors" if errors else "completed",
        "finalBalance": episode.steps[-1].equity if episode.steps else None,
        "finalPnL": episode.realised_pnl,
        "tradesExecuted": episode.trades,
        "postsCreated": 0,
    }
    return (
        row_id,
        episode.trajectory_id,
        episode.agent_id,
        _stamp(episode.started_at),
        ended,
        int((episode.ended_at - episode.started_at).total_seconds() * 1000),
        episode.window_id,
        1,
        f"{episode.scenario_id or 'episode'}-{_milliseconds(episode.ended_at)}"[:EPISODE_LENGTH],
        episode.scenario_id,
        bulk_json.encode_finite([step_json(episode, number, step) for number, step in enumerate(episode.steps)]),
        bulk_json.encode({"environmentReward": total}),
        bulk_json.encode({**summary, "errorCount": errors}),
        bulk_json.encode(_metadata(episode)),
        total,
        *summary.values(),
        not episode.is_evaluation,
        episode.is_evaluation,
        False,
        written,
        written,
    )


def call_rows(episode: Episode, row_ids: list[str], now: datetime) -> list[tuple[Any, ...]]:
    """One row per step, values in the order of `CALL_COLUMNS`. row_ids: as many as there are steps."""
    sampling = episode.sampling
    created, when = _stamp(now), _stamp(episode.ended_at)
    system, model = storable(episode.system), storable(episode.policy.name)
    metadata = json.dumps({"modelVersion": str(episode.policy)})
    rows = []
    for number, (row_id, step) in enumerate(zip(row_ids, episode.steps, strict=True)):
        completed = len(step.token_ids) or None
        rows.append(
            (
                row_id,
                episode.trajectory_id,
                f"{episode.trajectory_id}-step-{number}",
                f"{episode.trajectory_id}-call-{number}-0",
                when,
                step.latency_ms,
                model,
                "action",
                storable(action_type(step.action)),
                system,
                storable(step.observation),
                storable(step.response),
                sampling.temperature if sampling else 0.0,
                sampling.max_tokens if sampling else 0,
                sampling.top_p if sampling else None,
                step.prompt_tokens or None,
                completed,
                step.prompt_tokens + completed if completed else None,
                metadata,
                created,
            )
        )
    return rows


def action_type(action: dict[str, Any]) -> str:
    """Babylon's name of an action, e.g. `BUY_YES`. An unreadable action is `INVALID`."""
    return str(action.get("do", "invalid")).upper()


def naive(moment: datetime) -> datetime:
    """As Babylon's columns hold it: UTC, without zone, in whole milliseconds."""
    utc = moment.astimezone(UTC).replace(tzinfo=None)
    return utc.replace(microsecond=utc.microsecond // 1000 * 1000)


def _stamp(moment: datetime) -> str:
    """`naive` as COPY writes it. Made once, it spares each row of an episode the making."""
    return str(naive(moment))


def step_json(episode: Episode, number: int, step: Step) -> dict[str, Any]:
    """A step as an element of `stepsJson`."""
    sampling = episode.sampling
    before = step.equity - step.reward
    start = episode.steps[0].equity - episode.steps[0].reward
    kind = action_type(step.action)
    action = {"actionType": kind, "parameters": step.action, "success": step.valid}
    action |= {"error": step.error} if step.error is not None else {}
    call = {
        "model": episode.policy.name,
        "modelVersion": str(episode.policy),
        "systemPrompt": episode.system,
        "userPrompt": step.observation,
        "response": step.response,
        "temperature": sampling.temperature if sampling else 0.0,
        "maxTokens": sampling.max_tokens if sampling else 0,
        "topP": sampling.top_p if sampling else None,
        "latencyMs": step.latency_ms,
        "purpose": "action",
        "actionType": kind,
        "promptTokens": step.prompt_tokens,
        "tokenIds": step.token_ids,
        "logprobs": step.logprobs,
    }
    return {
        "stepNumber": number,
        "timestamp": _milliseconds(episode.ended_at),
        "environmentState": {"agentBalance": before, "agentPnL": before - start},
        "providerAccesses": [],
        "llmCalls": [call],
        "action": {**action, "result": {"equity": step.equity}},
        "reward": step.reward,
        "tick": step.tick,
        "equity": step.equity,
        "credit": step.credit,
    }


def _metadata(episode: Episode) -> dict[str, Any]:
    sampling = episode.sampling
    return {
        "isTrainingData": not episode.is_evaluation,
        "recorder": RECORDER,
        "policy": episode.policy.name,
        "step": episode.policy.step,
        "promptVersion": episode.prompt_version,
        "sampling": sampling
        and {
            "temperature": sampling.temperature,
            "maxTokens": sampling.max_tokens,
            "topP": sampling.top_p,
            "seed": sampling.seed,
        },
        "system": None if episode.steps else episode.system,
        "snapshotId": episode.snapshot_id,
        "sibling": episode.sibling,
        "realisedPnl": episode.realised_pnl,
        "expectedPnl": episode.expected_pnl,
        "maxDrawdown": episode.max_drawdown,
        "breaches": episode.breaches,
        "trades": episode.trades,
        "fees": episode.fees,
    }


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)

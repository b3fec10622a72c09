"""A recorded row as an episode, whichever of Babylon's recorders or ours wrote it, or the reason why it is none.

Optional keys may be missing and foreign ones present. What an episode must have (its steps with their actions, rewards
and balances, all of them finite) must be there: nothing is filled in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from rl_assets.episodes import Episode, Policy, Sampling, Step, is_logprob
from rl_assets.store import bulk_json
from rl_assets.store.record import RECORDER
from rl_assets.text import whole

UNRECORDED = "unrecorded"
"""Name of the policy of rows that say nothing of the model that decided."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Json = dict[str, Any]


class Malformed(Exception):
    """Why a row is not an episode: `reason` is one of a few words to count by, `detail` says where."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Decoded:
    """A row whose JSON has been read. Steps in `bare` hold no prompt, which may stand in `llm_call_logs`."""

    row: Mapping[str, Any]
    steps: list[Json]
    metadata: Json

    @property
    def bare(self) -> bool:
        return any(_call(step) is None for step in self.steps)


def decode(row: Mapping[str, Any]) -> Decoded:
    """Read the JSON of a row of `trajectories`. Raises Malformed."""
    steps = _loads(row["stepsJson"], "stepsJson")
    metadata = _loads(row["metadataJson"], "metadataJson")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise Malformed("bad_steps", "stepsJson is not a list of objects")
    for number, step in enumerate(steps):
        calls = step.get("llmCalls", [])
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise Malformed("bad_steps", f"step {number}: llmCalls is not a list of objects")
    if not isinstance(metadata, dict):
        raise Malformed("bad_metadata", "metadataJson is not an object")
    return Decoded(row, steps, metadata)


def to_episode(decoded: Decoded, window_id: str | None, logged: Mapping[str, Mapping[str, Any]]) -> Episode:
    """The episode of a row. logged: its rows of `llm_call_logs` by step id, asked where a step has no call of its own.

    Raises Malformed.
    """
    row, metadata = decoded.row, decoded.metadata
    identity = row["trajectoryId"]
    ours = metadata.get("recorder") == RECORDER
    calls: list[Mapping[str, Any]] = []
    for number, raw in enumerate(decoded.steps):
        step_ids = (f"{identity}-step-{raw.get('stepNumber', number)}", str(raw.get("stepId")))
        calls.append(_call(raw) or next((logged[i] for i in step_ids if i in logged), {}))
    steps = tuple(
        _step(raw, call, number, ours) for number, (raw, call) in enumerate(zip(decoded.steps, calls, strict=True))
    )
    first = calls[0] if calls else {}
    system = _text(first, "systemPrompt") if steps else _text(metadata, "system")
    named = _maybe_text(metadata, "policy")
    name = named or _maybe_text(metadata, "agentModel") or _maybe_text(first, "model") or UNRECORDED
    return Episode(
        trajectory_id=identity,
        agent_id=row["agentId"],
        policy=Policy(name, _whole(metadata, "step") if named else None),
        scenario_id=row["scenarioId"],
        window_id=window_id,
        started_at=_moment(row, "startMs"),
        ended_at=_moment(row, "endMs"),
        system=system,
        steps=steps,
        prompt_version=_maybe_text(metadata, "promptVersion"),
        sampling=_sampling(metadata, first, ours),
        snapshot_id=_maybe_text(metadata, "snapshotId"),
        sibling=_whole(metadata, "sibling") or 0,
        realised_pnl=_number(metadata, "realisedPnl", None) if ours else _earned(row, decoded.steps),
        expected_pnl=_number(metadata, "expectedPnl", None),
        max_drawdown=_number(metadata, "maxDrawdown", None),
        breaches=_count(metadata, "breaches", sum(not step.valid for step in steps)),
        trades=_count(metadata, "trades", sum(_trades(raw) for raw in decoded.steps)),
        fees=_number(metadata, "fees", 0.0) or 0.0,
        # Babylon's flag for rows that nobody may train on has the same effect as one for evaluations.
        is_evaluation=bool(row["isEvaluation"]) or not row["isTrainingData"],
    )


def _step(raw: Json, call: Mapping[str, Any], number: int, ours: bool) -> Step:
    where = f"step {number}: "
    action, state = raw.get("action"), raw.get("environmentState")
    if not isinstance(action, dict) or not isinstance(action.get("success"), bool):
        raise Malformed("bad_action", f"{where}action is not an object that says whether it succeeded")
    parameters = action.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Malformed("bad_action", f"{where}parameters of the action are not an object")
    balance = raw if "equity" in raw else state
    if not isinstance(balance, dict):
        raise Malformed("missing_key", f"{where}environmentState is not an object")
    token_ids, logprobs = _list(call, "tokenIds", where), _finites(_list(call, "logprobs", where), "a logprob", where)
    if len(token_ids) != len(logprobs):
        raise Malformed("bad_logprobs", f"{where}{len(token_ids)} token ids and {len(logprobs)} logprobs")
    if not set(map(type, token_ids)) <= {int}:
        raise Malformed("bad_logprobs", f"{where}a token id is not a whole number")
    if logprobs and not is_logprob(max(logprobs)):
        raise Malformed("bad_logprobs", f"{where}a logprob of {max(logprobs)}, which no probability has")
    equity = _number(balance, "equity" if balance is raw else "agentBalance", where=where)
    reward = _number(raw, "reward", where=where)
    assert equity is not None
    assert reward is not None
    error = action.get("error")
    return Step(
        tick=_count(raw, "tick", number),
        observation=_text(call, "userPrompt", where),
        response=_text(call, "response", where),
        action=parameters if ours else {"actionType": str(action.get("actionType")), "parameters": parameters},
        valid=action["success"],
        reward=reward,
        equity=equity,
        credit=_number(raw, "credit", None, where=where),
        error=_maybe_text({"error": error if error is None or isinstance(error, str) else json.dumps(error)}, "error"),
        token_ids=tuple(token_ids),
        logprobs=logprobs,
        prompt_tokens=_count(call, "promptTokens", 0),
        latency_ms=_count(call, "latencyMs", 0),
    )


def _call(step: Json) -> Json | None:
    """The call that decided: the first one for the action, else the first."""
    calls = step.get("llmCalls", [])
    return next((call for call in calls if call.get("purpose") == "action"), calls[0] if calls else None)


def _sampling(metadata: Json, call: Mapping[str, Any], ours: bool) -> Sampling | None:
    raw = metadata.get("sampling") if ours else call
    if not isinstance(raw, Mapping) or raw.get("temperature") is None or raw.get("maxTokens") is None:
        return None
    temperature, top_p = _number(raw, "temperature"), _number(raw, "topP", 1.0)
    assert temperature is not None
    return Sampling(temperature, _count(raw, "maxTokens", 0), 1.0 if top_p is None else top_p, _count(raw, "seed", 0))


def _earned(row: Mapping[str, Any], steps: Sequence[Json]) -> float | None:
    """Dollars earned during the row. Babylon's finalPnL is the sum over the agent's life, and so is agentPnL before."""
    final = _number(row, "finalPnL", None)
    state = steps[0].get("environmentState") if steps else None
    start = _number(state, "agentPnL", None) if isinstance(state, dict) else None
    return None if final is None or start is None else final - start


def _trades(step: Json) -> bool:
    action = step.get("action")
    kind = str(action.get("actionType")) if isinstance(action, dict) else ""
    parameters = action.get("parameters") if isinstance(action, dict) else None
    named = isinstance(parameters, dict) and (parameters.get("marketId") or parameters.get("ticker"))
    return "BUY" in kind or "SELL" in kind or bool(kind == "TRADING_DECISION" and named)


def _loads(text: str, column: str) -> Any:
    try:
        return bulk_json.decode(text)
    except RecursionError:
        raise Malformed("bad_json", f"{column} is nested too deeply") from None
    except ValueError as error:
        reason = "not_finite" if "not finite" in str(error) else "bad_json"
        raise Malformed(reason, f"{column}: {error}") from None


_REQUIRED: Any = object()


def _number(raw: Mapping[str, Any], key: str, default: float | None = _REQUIRED, where: str = "") -> float | None:
    value = raw.get(key)
    if value is None:
        if default is _REQUIRED:
            raise Malformed("missing_key", f"{where}{key} is missing")
        return default
    return _finite(value, key, where)


def _finites(values: list[Any], what: str, where: str) -> tuple[float, ...]:
    if set(map(type, values)) <= {float} and all(map(math.isfinite, values)):
        return tuple(values)
    return tuple(_finite(value, what, where) for value in values)


def _finite(value: object, what: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Malformed("wrong_type", f"{where}{what} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Malformed("not_finite", f"{where}{what} is not finite")
    return number


def _count(raw: Mapping[str, Any], key: str, default: int) -> int:
    """A whole number; Babylon writes some of them with a fraction."""
    value = _number(raw, key, None)
    return default if value is None else round(value)


def _whole(raw: Json, key: str) -> int | None:
    value = raw.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise Malformed("wrong_type", f"{key} is not a whole number")
    return value


def _maybe_text(raw: Mapping[str, Any], key: str) -> str | None:
    return None if raw.get(key) is None else _text(raw, key)


def _text(raw: Mapping[str, Any], key: str, where: str = "") -> str:
    value = raw.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed("wrong_type", f"{where}{key} is not a text")
    return whole(value)


def _list(raw: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = raw.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise Malformed("wrong_type", f"{where}{key} is not a list")
    return value


def _moment(row: Mapping[str, Any], key: str) -> datetime:
    try:
        return EPOCH + timedelta(milliseconds=_finite(row[key], key, ""))
    except OverflowError:
        raise Malformed("bad_time", f"{key} is outside the years 1 to 9999") from None

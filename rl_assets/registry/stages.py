"""How a candidate goes live in stages: it begins, goes on where its episodes allow it, arrives, or is taken back.

While it is staged the candidate stays `training` in Babylon's table, so that app keeps the champion; only who asks
`get_latest_rl_model` for an agent is told of it. At 100 % it is promoted, as one without stages is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl_assets.errors import LedgerConflict, MalformedInput, MissingCheckpoint
from rl_assets.registry.evidence import Conclusion, look_at
from rl_assets.registry.models import PlayableModel, decided, get_model, playable, promote, rollback
from rl_assets.registry.rollout import Rollout, change, close, insert, note_figures, open_rollout, staged_rollout
from rl_assets.registry.rows import lock, lock_champion, set_state
from rl_assets.registry.terms import Terms

if TYPE_CHECKING:
    import psycopg

    from rl_assets.registry.health import Health

Probe = Callable[[PlayableModel, int], "Health"]
"""The health check: of a model, over so many market days."""


@dataclass(frozen=True, slots=True)
class Begun:
    """live: whether the candidate plays now. reason: what was decided, with what the health check found."""

    live: bool
    reason: str


def begin(conn: psycopg.Connection, model_line: str, step: int, terms: Terms, probe: Probe) -> Begun:
    """Bring a candidate to its first stage, as the gate has decided. One that fails its health check is rejected.

    Raises LedgerConflict where no decision of the gate says so or another candidate is on its way, and what `probe`
    raises; nothing is changed then. Beginning again changes nothing.
    """
    model = get_model(conn, model_line, step)
    known = open_rollout(conn, model_line)
    if known is not None and known.step == step:
        return Begun(True, known.reason)
    health = probe(playable(model), terms.days)
    with conn.transaction():
        champion, _ = lock_champion(conn, model_line)
        others = open_rollout(conn, model_line)
        if others is not None and others.step == step:
            return Begun(True, others.reason)
        if others is not None and others.state == "staged":
            raise LedgerConflict(
                f"step {step} of {model_line} cannot go live while step {others.step} is with {others.percentage} % of "
                "the agents; wait for its end, or take it back with `rl-assets models rollback`"
            )
        reason = decided(conn, get_model(conn, model_line, step), champion, promote=True).decision.reason
        if others is not None:
            close(conn, others, "ended", f"step {step} takes its place")
        first = terms.stages[0]
        rollout = insert(
            conn,
            line=model_line,
            step=step,
            champion_step=champion.step,
            percentage=0 if health.fault else first,
            terms=terms,
            reason=f"{reason}; health: {health}",
        )
        if health.fault:
            fault = f"rejected by its health check: {health} ({reason})"
            close(conn, rollout, "rolled_back", fault)
            set_state(conn, get_model(conn, model_line, step), "rejected")
            return Begun(False, fault)
        if first == 100:
            _arrive(conn, rollout, rollout.reason, {})
            return Begun(True, reason)
        return Begun(True, f"step {step} is with {first} % of the agents ({reason})")


def look(conn: psycopg.Connection, model_line: str) -> Conclusion | None:
    """Take in what agents have played since, and take a candidate back that does harm, or end a watch; None where no
    candidate is on its way. `advance` of a staged one is left to `advance`, whose health check takes time.

    Raises MissingCheckpoint where the model to go back to is not what was registered; then nothing is changed.
    """
    with conn.transaction():
        lock(conn, model_line)
        rollout = open_rollout(conn, model_line)
        if rollout is None:
            return None
        conclusion = look_at(conn, rollout)
        note_figures(conn, rollout.id, conclusion.figures)
        if conclusion.decision == "rollback":
            rollback(conn, model_line, f"by itself: {conclusion.reason}")
        elif conclusion.decision == "advance" and rollout.state == "watched":
            _move(conn, rollout, "ended", "ended", rollout.stage, conclusion)
        return conclusion


def advance(conn: psycopg.Connection, model_line: str, probe: Probe) -> str | None:
    """Take a staged candidate to its next stage if its episodes allow it; returns what came of it, None where there is
    none. A candidate that fails its health check is taken back. Raises what `probe` raises."""
    rollout = staged_rollout(conn, model_line)
    if rollout is None:
        return None
    conclusion = look(conn, model_line)
    if conclusion is None or conclusion.decision != "advance":
        return conclusion and conclusion.reason
    health, fault = _checked(conn, rollout, probe)
    with conn.transaction():
        lock(conn, model_line)
        now = staged_rollout(conn, model_line)
        if now is None or (now.id, now.stage) != (rollout.id, rollout.stage):
            return f"step {rollout.step} of {model_line} moved on meanwhile"
        if fault:
            return rollback(conn, model_line, f"by itself: its health check failed, {fault}").reason
        stage = now.stage + 1
        reason = f"{conclusion.reason}; health: {health}"
        if now.terms.stages[stage] == 100:
            _arrive(conn, now, reason, conclusion.figures)
        else:
            _move(conn, now, "advanced", "staged", stage, Conclusion("advance", reason, conclusion.figures))
        return f"step {now.step} is with {now.terms.stages[stage]} % of the agents: {reason}"


def confirm(conn: psycopg.Connection, model_line: str, probe: Probe) -> str | None:
    """The health check once a candidate is with agents: of the model that the registry gives them, loaded as they load
    it. One that fails is taken back. Returns what was found, None where no candidate is on its way or watched.

    Raises what `probe` raises beside a checkpoint that is lost or broken.
    """
    rollout = open_rollout(conn, model_line)
    if rollout is None:
        return None
    health, fault = _checked(conn, rollout, probe)
    if not fault:
        return f"step {rollout.step}: {health}"
    with conn.transaction():
        lock(conn, model_line)
        now = open_rollout(conn, model_line)
        if now is None or now.id != rollout.id:
            return f"step {rollout.step} of {model_line} is no longer with anybody"
        return rollback(conn, model_line, f"by itself: its health check failed where it is live, {fault}").reason


def _checked(conn: psycopg.Connection, rollout: Rollout, probe: Probe) -> tuple[Health | None, str | None]:
    """What a probe finds of a candidate, and its fault in words, None where it is well. A checkpoint that is lost or
    broken is a fault as well: agents are playing with it."""
    try:
        health = probe(playable(get_model(conn, rollout.model_line, rollout.step)), rollout.terms.days)
    except (MissingCheckpoint, MalformedInput) as error:
        return None, str(error)
    return health, health.fault and str(health)


def _arrive(conn: psycopg.Connection, rollout: Rollout, reason: str, figures: dict[str, Any]) -> None:
    """Make the candidate champion, and go on watching it."""
    promote(conn, rollout.model_line, rollout.step)
    last = len(rollout.terms.stages) - 1
    change(
        conn,
        rollout.id,
        "promoted",
        state="watched",
        stage=last,
        percentage=100,
        reason=reason,
        figures=figures,
    )


def _move(
    conn: psycopg.Connection, rollout: Rollout, decision: str, state: str, stage: int, conclusion: Conclusion
) -> None:
    change(
        conn,
        rollout.id,
        decision,
        state=state,
        stage=stage,
        percentage=rollout.terms.stages[stage],
        reason=conclusion.reason,
        figures=conclusion.figures,
    )

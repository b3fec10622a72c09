"""What a person does to the models of a line, guarded against a button that is pressed twice and against what has
changed since somebody looked: a champion taken back, and a candidate turned down that the gate cannot decide upon."""

from __future__ import annotations

import psycopg

from rl_assets.errors import LedgerConflict
from rl_assets.registry.models import Change, model_of_batch, rollback
from rl_assets.registry.rollout import open_rollout, staged_rollout
from rl_assets.registry.rows import Model, lock, lock_champion, set_state
from rl_assets.store.ledger import advance_batch, get_batch

TWICE_MINUTES = 10
"""For so long after a rollback, another one by hand says which step it takes back."""


def rollback_by_hand(conn: psycopg.Connection, model_line: str, reason: str, step: int | None = None) -> Change:
    """`rollback` as a person asks for it who saw a step live.

    Raises LedgerConflict where another step is live than the one that is named; and where none is named shortly after a
    rollback: a button pressed twice, or a run that is executed again, would take back a good model as well.
    """
    with conn.transaction():
        champion, _ = lock_champion(conn, model_line)
        rollout = staged_rollout(conn, model_line)
        live = champion.step if rollout is None else rollout.step
        if step is not None and step != live:
            raise LedgerConflict(
                f"step {step} of {model_line} is not the one to take back, which is step {live} by now; nothing was "
                "changed"
            )
        if step is None and (lately := _taken_back_lately(conn, model_line)) is not None:
            raise LedgerConflict(
                f"step {lately} of {model_line} was taken back less than {TWICE_MINUTES} minutes ago; to take back "
                f"step {live} too, name it as the step"
            )
        return rollback(conn, model_line, reason)


def _taken_back_lately(conn: psycopg.Connection, model_line: str) -> int | None:
    row = conn.execute(
        """SELECT step FROM (
             SELECT step, changed_at FROM rl_assets.rollouts WHERE model_line = %(line)s AND state = 'rolled_back'
             UNION ALL
             SELECT before.step, h.changed_at FROM rl_assets.champion_history AS h, LATERAL (
               SELECT step FROM rl_assets.champion_history AS earlier
               WHERE earlier.model_line = h.model_line AND earlier.id < h.id ORDER BY earlier.id DESC LIMIT 1) AS before
             JOIN rl_assets.models AS m ON m.model_line = %(line)s AND m.step = before.step AND m.state = 'rejected'
             WHERE h.model_line = %(line)s) AS taken_back
           WHERE changed_at > now() - make_interval(mins => %(minutes)s) ORDER BY changed_at DESC LIMIT 1""",
        {"line": model_line, "minutes": TWICE_MINUTES},
    ).fetchone()
    return row[0] if row else None


def turn_down(conn: psycopg.Connection, batch_id: str, reason: str) -> Model:
    """Reject a trained or evaluated batch and its candidate, without the gate; its episodes stay consumed.

    One transaction over ledger, registry and Babylon's tables; returns the candidate as it is then. Raises
    LedgerConflict, and changes nothing, where the batch is in another state, or its model is live, was, or is on its
    way.
    """
    line = get_batch(conn, batch_id).model_line
    with conn.transaction():
        lock(conn, line)  # before the ledger's, as whoever registers a candidate takes them
        batch = get_batch(conn, batch_id)
        instead = _INSTEAD.get(batch.state)
        if instead is not None:
            raise LedgerConflict(
                f"{batch_id} is {batch.state}, and only what is trained or evaluated is rejected; {instead}"
            )
        model, rollout = model_of_batch(conn, batch_id), open_rollout(conn, line)
        who = f"{batch_id} cannot be rejected, for step {model.step} of {line}"
        if rollout is not None and rollout.step == model.step:
            raise LedgerConflict(
                f"{who} is with {rollout.percentage} % of the agents; take it back with `rl-assets models rollback`"
            )
        if model.state not in ("candidate", "rejected"):
            raise LedgerConflict(f"{who} is {model.state}; take a champion back with `rl-assets models rollback`")
        set_state(conn, model, "rejected")
        advance_batch(conn, batch_id, "rejected", error=reason, seen=batch)
        return model_of_batch(conn, batch_id)


_INSTEAD = {
    "reserved": "give its episodes back with `rl-assets batches free`",
    "training": "wait for its end",
    "unknown": "settle it with `rl-assets batches settle`",
    "failed": "give its episodes back with `rl-assets batches free`",
    "promoted": "take it back with `rl-assets models rollback`",
    "rejected": "make another model of it with `rl-assets batches branch`",
    "freed": "its episodes wait again already",
}
"""What a person does with a batch of another state."""

"""A batch whose candidate a person turns down, because the gate cannot: it cannot be played, or what follows fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rl_assets.errors import LedgerConflict
from rl_assets.registry.models import model_of_batch
from rl_assets.registry.rollout import open_rollout
from rl_assets.registry.rows import Model, lock, set_state
from rl_assets.store.ledger import advance_batch, get_batch

if TYPE_CHECKING:
    import psycopg


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

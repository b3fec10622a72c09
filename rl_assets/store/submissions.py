"""What the ledger keeps of a training that is handed to a service elsewhere, before and after it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg.types.json import Jsonb

from rl_assets.errors import LedgerConflict
from rl_assets.training.submission import KEY, Submission

if TYPE_CHECKING:
    import psycopg


def begin_submission(conn: psycopg.Connection, batch_id: str, submission: Submission) -> None:
    """Write down, for good, that a batch is about to be submitted.

    Raises LedgerConflict, once per attempt that somebody else has begun, and where the batch is not being trained.
    """
    begun = conn.execute(
        """UPDATE rl_assets.batches SET result = coalesce(result, '{}') || %(entry)s, updated_at = clock_timestamp()
           WHERE id = %(batch)s AND state = 'training' AND attempt = %(attempt)s
             AND (result -> %(key)s ->> 'attempt')::int IS DISTINCT FROM %(attempt)s""",
        {
            "entry": Jsonb({KEY: submission.to_json()}),
            "batch": batch_id,
            "attempt": submission.attempt,
            "key": KEY,
        },
    ).rowcount
    if not begun:
        raise LedgerConflict(
            f"attempt {submission.attempt} at {batch_id} is submitted already, or the batch is not being trained; see "
            "`rl-assets batches list`"
        )


def update_submission(conn: psycopg.Connection, batch_id: str, submission: Submission) -> None:
    """Write down what the answer to a submission was."""
    conn.execute(
        """UPDATE rl_assets.batches SET result = result || %s, updated_at = clock_timestamp()
           WHERE id = %s AND attempt = %s""",
        [Jsonb({KEY: submission.to_json()}), batch_id, submission.attempt],
    )

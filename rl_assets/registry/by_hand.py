"""What a person does to the models of a line: guarded against a button that is pressed twice, and against what has
changed since somebody looked."""

from __future__ import annotations

import psycopg

from rl_assets.errors import LedgerConflict
from rl_assets.registry.models import Change, rollback
from rl_assets.registry.rollout import staged_rollout
from rl_assets.registry.rows import lock_champion

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

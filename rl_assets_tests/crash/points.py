"""Crash points: the moments around a write that lasts, of which a process that is told to dies at one by SIGKILL."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any, cast

import psycopg
from psycopg.pq import TransactionStatus

WRITES = ("INSERT", "UPDATE", "DELETE", "WITH")


class Points:
    """Counts the moments, dies at number `die_at`, from 1, and ends at one that begins with `stop_at`. Each is noted in
    `log`, a line per moment."""

    def __init__(self, log: Path, die_at: int | None, stop_at: str | None) -> None:
        self._log, self._die_at, self._stop_at, self._count = log, die_at, stop_at, 0

    def reach(self, what: str) -> None:
        self._count += 1
        with self._log.open("a", encoding="utf-8") as file:
            file.write(what + "\n")
        if self._count == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._stop_at is not None and what.startswith(self._stop_at):
            os._exit(0)

    def install(self, data: Path) -> None:
        """Watch every commit of a transaction that wrote, and every file that takes its place under `data`."""
        leave, execute, replace, rmtree = (
            psycopg.Transaction.__exit__,
            cast(Any, psycopg.Cursor.execute),
            os.replace,
            shutil.rmtree,
        )

        def commit(transaction: Any, kind: Any, error: Any, trace: Any) -> bool | None:
            outermost = transaction._outer_transaction
            label = self._written(transaction.connection) if outermost and kind is None else None
            if label is None:
                return leave(transaction, kind, error, trace)
            self.reach(f"before commit {label}")
            result = leave(transaction, kind, error, trace)
            self.reach(f"after commit {label}")
            return result

        def statement(cursor: Any, query: Any, *rest: Any, **named: Any) -> Any:
            alone = cursor.connection.info.transaction_status == TransactionStatus.IDLE
            if not (alone and isinstance(query, str) and query.lstrip().upper().startswith(WRITES)):
                return execute(cursor, query, *rest, **named)
            self.reach(f"before {' '.join(query.split()[:3])}")
            result = execute(cursor, query, *rest, **named)
            self.reach(f"after {' '.join(query.split()[:3])}")
            return result

        def put(source: Any, target: Any, **named: Any) -> None:
            ours = Path(target).is_relative_to(data)
            if ours:
                self.reach(f"before rename to {Path(target).name}")
            replace(source, target, **named)
            if ours:
                self.reach(f"after rename to {Path(target).name}")

        def remove(path: Any, *rest: Any, **named: Any) -> None:
            ours = Path(path).is_relative_to(data) and Path(path).exists()
            if ours:
                self.reach(f"before removing {Path(path).name}")
            rmtree(path, *rest, **named)  # pyright: ignore[reportCallIssue]
            if ours:
                self.reach(f"after removing {Path(path).name}")

        for owner, name, watched in (
            (psycopg.Transaction, "__exit__", commit),
            (psycopg.Cursor, "execute", statement),
            (os, "replace", put),
            (shutil, "rmtree", remove),
        ):
            setattr(owner, name, watched)

    def _written(self, conn: psycopg.Connection) -> str | None:
        """What a transaction is about to commit, or None where it has written nothing."""
        row = conn.execute("SELECT pg_current_xact_id_if_assigned() IS NOT NULL").fetchone()
        if row is None or not row[0]:
            return None
        states = conn.execute("SELECT id, state, attempt FROM rl_assets.batches ORDER BY created_at, id").fetchall()
        return "; ".join(f"{state} {attempt}" for _, state, attempt in states) or "without a batch"

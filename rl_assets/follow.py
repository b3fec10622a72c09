"""Watching the pipeline from outside: from recorded episodes to a model that is deployed or turned down.

It only looks, at the ledger and at failed runs. Who starts what is the sensors' affair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rl_assets.errors import RlAssetsError
from rl_assets.registry.models import champion_step
from rl_assets.store.ledger import DECIDED, Batch, Readiness, batches, readiness
from rl_assets.training.submission import open_submission
from rl_assets.training.trigger import ATTEMPTS

if TYPE_CHECKING:
    import psycopg

    from rl_assets.settings import Settings

LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class Sight:
    """One look. unjudged: how many of the watched episodes no judge has seen. batch: the newest one that was not there
    before. failure: why a run failed, of those that nothing repeats."""

    ready: Readiness
    unjudged: int
    batch: Batch | None
    failure: str | None

    def __str__(self) -> str:
        if self.batch is not None:
            attempt = f", attempt {self.batch.attempt}" if self.batch.attempt > 1 else ""
            state = f"{self.batch.id} is {self.batch.state}{attempt}"
            if self.batch.state != "unknown":
                return state
            return f"{state} ({self.batch.error}): W&B is asked at each tick of the training sensor what became of it"
        if self.unjudged:
            return f"{self.unjudged} episodes wait to be judged"
        return f"{self.ready.fresh} fresh episodes wait for training"


class Watch:
    """Looks at the model line from now on. `failures` gives the errors of runs that failed since, if any."""

    def __init__(
        self,
        conn: psycopg.Connection,
        settings: Settings,
        failures: Callable[[], Sequence[str]],
    ) -> None:
        self._conn, self._settings, self._failures = conn, settings, failures
        self._line = settings.model_line
        self._ids: list[str] = []
        self._known = {
            batch.id for batch in batches(conn, model_line=self._line, states=(*DECIDED, "freed"), limit=1000)
        }

    def watch(self, trajectory_ids: Sequence[str]) -> None:
        """Watch these episodes until they are judged."""
        self._ids += trajectory_ids

    def look(self) -> Sight:
        step = champion_step(self._conn, self._line)
        ready = readiness(self._conn, self._line, step, self._settings.most_stale)
        new = [b for b in batches(self._conn, model_line=self._line, limit=20) if b.id not in self._known]
        return Sight(ready, self._unjudged(), new[0] if new else None, next(iter(self._failures()), None))

    def _unjudged(self) -> int:
        row = self._conn.execute(
            'select count(*) from trajectories where "trajectoryId" = any(%s) and "judgedAt" is null', (self._ids,)
        ).fetchone()
        return int(row[0]) if row else 0


def judged(sight: Sight) -> bool:
    """Whether every watched episode has been judged, or training has already begun."""
    return sight.unjudged == 0 or sight.batch is not None


def ended(sight: Sight) -> bool:
    """Whether a batch has come to its end: promoted or rejected. One that is unknown comes to it when W&B has told what
    became of it. Raises RlAssetsError for a batch that comes to no end by itself."""
    batch = sight.batch
    if batch is None:
        return False
    if batch.state == "unknown" and open_submission(batch.result, batch.attempt) is None:
        raise RlAssetsError(
            f"nobody can be asked whether {batch.id} was trained: {batch.error or 'no error was recorded'}; settle it "
            "with `rl-assets batches settle`"
        )
    if batch.state == "failed" and batch.attempt >= ATTEMPTS:
        raise RlAssetsError(
            f"{batch.id} is {batch.state} after {batch.attempt} attempts: {batch.error or 'no error was recorded'}; "
            "read its run with `make ui`"
        )
    return batch.state in DECIDED


def until(
    watch: Watch,
    done: Callable[[Sight], bool],
    *,
    deadline: float,
    on_sight: Callable[[Sight], None],
    check: Callable[[], None],
) -> Sight:
    """Look every LOOK_SECONDS until `done`. deadline: on the monotonic clock, in seconds. `check` raises where a
    service died.

    Raises RlAssetsError if a run failed for good or the deadline passes; what is recorded stays, and the pipeline goes
    on from there with the next daemon.
    """
    while True:
        sight = watch.look()
        on_sight(sight)
        if done(sight):
            return sight
        if sight.failure is not None:
            raise RlAssetsError(f"a run failed: {sight.failure}; read it with `make ui`")
        check()
        if time.monotonic() >= deadline:
            raise RlAssetsError(f"time is up while {sight}; look with `make ui`, or allow more with --timeout")
        time.sleep(LOOK_SECONDS)

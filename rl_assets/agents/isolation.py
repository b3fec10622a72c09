"""A turn in a process of its own: whatever an agent does there, it takes no more than its time and memory, and a fault
of it reaches nobody else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from rl_assets.settings import REPOSITORY
from rl_assets.text import printable
from rl_assets.turns import Decision, Job

MOST_BYTES = 32 * 2**20
"""Of what a process tells: several answers of a market as long as one may be."""
STDERR_BYTES = 8192
KEPT_FROM_AGENTS = ("DATABASE_URL", "DAGSTER_PG_URL")
"""Variables that hold what no agent needs."""


@dataclass
class Turn:
    """What is known of a turn when its process has ended. accesses: in Babylon's shape, in order. replies: what the
    agent said, for turns without a decision. failed: why there is no decision, in words."""

    accesses: list[dict[str, Any]] = field(default_factory=list)
    replies: list[dict[str, Any]] = field(default_factory=list)
    decision: Decision | None = None
    failed: str | None = None

    def take(self, kind: str, value: Any) -> None:
        """Note one thing that the process tells."""
        if kind == "access":
            self.accesses.append(value)
        elif kind == "reply":
            self.replies.append(value)
        elif kind == "failed":
            self.failed = str(value)
        elif kind == "decision":
            self.decision = Decision.model_validate(value)


Play = Callable[[Job], Awaitable[Turn]]


async def isolated(job: Job) -> Turn:
    """Take a turn in a process of its own. Never raises for what the agent does: a turn without a decision says why."""
    turn = Turn()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rl_assets.agents.live_process", str(os.getpid())),
            cwd=REPOSITORY,
            env={k: v for k, v in os.environ.items() if k not in KEPT_FROM_AGENTS} | {"OMP_NUM_THREADS": "1"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        turn.failed = f"no process could be started for it ({error}); see how many run on this machine"
        return turn
    try:
        async with asyncio.timeout(job.seconds):
            said = await _hear(process, job, turn)
            code = await process.wait()
    except TimeoutError:
        turn.failed = turn.failed or (
            f"no decision within {job.seconds} s; see what its market or model does, or give it more with --seconds"
        )
    except (ValueError, ValidationError, RecursionError):
        turn.decision, turn.failed = None, "what its process told cannot be read, or is too long; nothing is recorded"
    else:
        if turn.decision is None and turn.failed is None:
            turn.failed = f"its process {_ended(code)}" + (f" ({said})" if said else "")
    finally:
        await _end(process)
    return turn


async def _hear(process: asyncio.subprocess.Process, job: Job, turn: Turn) -> str:
    """Give the job and take in what is told, to the end. Returns the last line on the standard error."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(_last_line(process.stderr))
    try:
        with suppress(ConnectionError):  # one that has ended already says why by its code
            process.stdin.write(job.model_dump_json().encode())
            await process.stdin.drain()
            process.stdin.close()
        size, rest = 0, b""
        while chunk := await process.stdout.read(65536):
            size += len(chunk)
            if size > MOST_BYTES:
                raise ValueError("too much")
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                ((kind, value),) = json.loads(line).items()
                turn.take(kind, value)
        return await errors
    finally:
        errors.cancel()


async def _last_line(stream: asyncio.StreamReader) -> str:
    kept = b""
    while chunk := await stream.read(65536):
        kept = (kept + chunk)[-STDERR_BYTES:]
    lines = kept.decode("utf-8", "replace").strip().splitlines()
    return printable(lines[-1], 200) if lines else ""


def _ended(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code} before it decided"


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()

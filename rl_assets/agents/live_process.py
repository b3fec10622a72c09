"""The process of one live agent for one turn: `python -m rl_assets.agents.live_process`, started by `isolation`.

It reads a `Job` on its standard input, binds itself to the job's limits, and writes a line of JSON for each thing that
happens. Only the standard library is loaded before the limits hold.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import signal
import sys
import traceback
from typing import Any

_PR_SET_PDEATHSIG = 1


def main() -> None:
    # Whatever a library prints must not come between the lines that the coordinator reads.
    told = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # the coordinator is gone already, and nobody would record this turn
    text = sys.stdin.buffer.read()
    memory_mb = int(json.loads(text)["memory_mb"])
    # What a library maps from its file is not counted, so the limit means the same with torch and without.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold the agent's token

    def tell(kind: str, value: Any) -> None:
        print(json.dumps({kind: value}), file=told)

    try:
        from rl_assets.agents.turn import take_turn
        from rl_assets.turns import Job

        asyncio.run(take_turn(Job.model_validate_json(text), tell))
    except BaseException as error:
        tell("failed", _reason(error, memory_mb))


def _reason(error: BaseException, memory_mb: int) -> str:
    from rl_assets.errors import RlAssetsError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return f"it needs more than {memory_mb} MiB of memory; see what it reads, or give it more with --memory"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, RlAssetsError):
        return str(error)
    # The text of any other error may hold what is secret; where it happened does not.
    where = " < ".join(
        f"{os.path.basename(frame.filename)}:{frame.lineno}"
        for frame in reversed(traceback.extract_tb(error.__traceback__)[-3:])
    )
    return f"{type(error).__name__} at {where}; this is a fault of the program"


if __name__ == "__main__":
    main()

"""The demo's time: where it goes, and how much of it is Dagster's.

python -m benchmarks.loop [ARGUMENTS OF rl-assets demo]

Overhead is what passes after playing while no step on the way to the decision works (waiting for sensors, for the
queue, for processes to start and for the next step), and the ending of daemon and database. Steps of other jobs do not
count as work, since the demo does not wait for them. What the daemon takes from the processors is not seen here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg

from rl_assets.services import databases
from rl_assets.settings import REPOSITORY, Settings

STAGES = {
    "Dagster daemon: ": "database and tables",
    "model: ": "base policy",
    "digest of what was played: ": "play and record",
    "readiness after: ": "pipeline",
    "done in ": "end of daemon and database",
}
"""How the line begins that the command prints when a stage is over, and what the stage is."""
ON_THE_WAY = ("pipeline_window", "training")
"""Jobs without which no decision comes about."""

STEPS = """
SELECT run_id, step_key, extract(epoch FROM min(timestamp) FILTER (WHERE dagster_event_type = 'STEP_START')),
  extract(epoch FROM max(timestamp) FILTER (WHERE dagster_event_type = 'STEP_SUCCESS'))
FROM event_logs WHERE dagster_event_type IN ('STEP_START', 'STEP_SUCCESS') GROUP BY 1, 2 ORDER BY 3
"""
RUNS = """
SELECT run_id, pipeline_name, extract(epoch FROM create_timestamp), start_time, end_time FROM runs ORDER BY 3
"""


@dataclass(frozen=True)
class Span:
    """name, and seconds since the epoch. A step's name is its asset's."""

    name: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


def demo(data: Path, arguments: list[str]) -> list[Span]:
    """Run the demo on a data directory; its stages."""
    ours = ("DATABASE_URL", "DAGSTER_PG_URL", "RL_ASSETS_DAGSTER_DIR")
    env = {name: value for name, value in os.environ.items() if name not in ours} | {"RL_ASSETS_DATA": str(data)}
    stages, since = [], time.time()
    waiting = dict(STAGES)
    command = [sys.executable, "-u", "-m", "rl_assets", "demo", *arguments]
    with subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            for start in [start for start in waiting if line.startswith(start)]:
                now = time.time()
                stages.append(Span(waiting.pop(start), since, now))
                since = now
    assert process.returncode == 0 and not waiting, waiting
    return stages


def covered(spans: list[Span], start: float, end: float) -> float:
    """Seconds from start to end in which at least one of the spans runs."""
    seconds, until = 0.0, start
    for span in sorted(spans, key=lambda span: span.start):
        low, high = max(span.start, until), min(span.end, end)
        seconds += max(high - low, 0.0)
        until = max(until, high)
    return seconds


def show(stages: list[Span], runs: list[tuple], steps: dict[str, list[Span]]) -> None:
    began, total = stages[0].start, stages[-1].end - stages[0].start
    needed = [step for run_id, job, *_ in runs if job in ON_THE_WAY for step in steps.get(run_id, [])]
    pipeline, ending = stages[-2:]
    print("\nseconds from the start")
    for stage in stages:
        print(f"  {stage.start - began:7.1f} to {stage.end - began:6.1f}  {stage.seconds:6.1f}  {stage.name}")
    for run_id, job, created, started, ended in runs:
        if started is None or ended is None:
            continue
        requested, start, end = (float(moment) - began for moment in (created, started, ended))
        print(f"{job}: requested at {requested:.1f}, started at {start:.1f}, ended at {end:.1f}")
        for step in steps.get(run_id, []):
            print(f"  {step.start - began:7.1f} to {step.end - began:6.1f}  {step.seconds:6.1f}  {step.name}")
    waited = pipeline.seconds - covered(needed, pipeline.start, pipeline.end) + ending.seconds
    print(f"overhead: {waited:.1f} of {total:.1f} s, {100 * waited / total:.1f} %")


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="rl-assets-bench-") as directory:
        data = Path(directory)
        data.chmod(0o755)
        stages = demo(data, arguments)
        with databases(Settings(data)) as urls, psycopg.connect(urls.dagster) as conn:
            steps: dict[str, list[Span]] = {}
            for run_id, name, start, end in conn.execute(STEPS):
                if end is not None:
                    steps.setdefault(run_id, []).append(Span(name, float(start), float(end)))
            show(stages, conn.execute(RUNS).fetchall(), steps)


if __name__ == "__main__":
    main(sys.argv[1:])

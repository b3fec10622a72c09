"""`rl-assets harness` and `rl-assets demo`: play, record, and follow what the pipeline makes of it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rl_assets.errors import ConfigurationError

if TYPE_CHECKING:
    import psycopg

    from rl_assets.follow import Watch
    from rl_assets.harness import Plan, Played
    from rl_assets.services import Children
    from rl_assets.settings import Settings
    from rl_assets.store.ledger import Batch, Readiness

BELOW_THRESHOLD = 3
SETTLE_SECONDS = 120.0
"""How long runs may take to end after a batch has come to its end."""
FORCED_BY = "rl-assets harness --force"
FOLLOWED = ("snapshots", "pipeline_window")
"""Jobs of which a failed run ends the following: without their work nothing is judged, or the gate has no worlds."""


@dataclass(frozen=True)
class Options:
    """train: go on to a training. force: even below the threshold. follow: wait for its end, up to timeout seconds."""

    train: bool
    force: bool
    follow: bool
    threshold: int | None
    timeout: float


@click.command()
@click.option("--snapshots", type=int, default=None, help="Train snapshots to play; as many as the threshold needs.")
@click.option("--siblings", type=int, default=16, show_default=True, help="Episodes of the model on each snapshot.")
@click.option("--seed", type=int, default=None, help="Which market days and draws; the next unplayed if left out.")
@click.option("--agents", default=None, help="Comma-separated: model, hold, random, …; all if left out.")
@click.option("--gate-snapshots", type=int, default=64, show_default=True, help="Snapshots of the gate to provide.")
@click.option("--train", is_flag=True, help="Go on until the sensor has had a model trained and the gate has decided.")
@click.option("--force", is_flag=True, help="With --train: train even below the threshold.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="With --train: wait for the end of it.")
@click.option("--threshold", type=int, default=None, help="TRAINING_MIN_TRAJECTORIES of this command and its daemon.")
@click.option("--timeout", type=click.FloatRange(1), default=1800.0, show_default=True, help="Seconds to follow.")
def harness(
    snapshots: int | None,
    siblings: int,
    seed: int | None,
    agents: str | None,
    gate_snapshots: int,
    train: bool,
    force: bool,
    follow: bool,
    threshold: int | None,
    timeout: float,
) -> int:
    """Let agents play train snapshots and record what they do.

    Exit codes: 0 success; 1 failed; 2 bad input; 3 below the threshold, so that nothing was trained.
    """
    from rl_assets.harness import AGENTS, Plan

    if force and not train:
        raise ConfigurationError("--force needs --train: without it nothing is trained")
    names = AGENTS if agents is None else tuple(name.strip() for name in agents.split(","))
    plan = Plan(snapshots=snapshots, siblings=siblings, seed=seed, agents=names, gate_snapshots=gate_snapshots)
    return _session(plan, Options(train, force, follow, threshold, timeout))


@click.command()
@click.option("--threshold", type=int, default=None, help="TRAINING_MIN_TRAJECTORIES of the demo, by default 1000.")
@click.option("--timeout", type=click.FloatRange(1), default=1800.0, show_default=True, help="Seconds to follow.")
def demo(threshold: int | None, timeout: float) -> int:
    """The whole loop once: episodes until the sensor starts a training, then the gate, and a report.

    Run again, it goes on from there: new market days, a training on new episodes alone.
    """
    from rl_assets.harness import Plan

    return _session(Plan(), Options(train=True, force=False, follow=True, threshold=threshold, timeout=timeout))


def _session(plan: Plan, options: Options) -> int:
    from rl_assets.backends import check
    from rl_assets.commands.shown import console
    from rl_assets.services import Children, code_server, daemon, databases
    from rl_assets.settings import Settings
    from rl_assets.store.database import connect, migrate

    if options.threshold is not None:
        os.environ["TRAINING_MIN_TRAJECTORIES"] = str(options.threshold)
    settings = Settings.from_env()
    check(settings)
    console().print(f"backend: {settings.backend} ({settings.backend_why}); base policy: {settings.base_policy}")
    began = time.monotonic()
    with ExitStack() as stack:
        console().print(
            "database: " + ("DATABASE_URL" if settings.database_url else f"embedded, {settings.postgres_dir}")
        )
        urls = stack.enter_context(databases(settings))
        migrate(urls.babylon)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rl-assets-")))
        children = stack.enter_context(Children(settings.dagster_dir))
        failures: Callable[[], list[str]] = list
        ours = False
        if options.train:
            failures = _failures_from_now()
            ours = stack.enter_context(daemon(settings, children, lambda: code_server(children, directory)))
            _check_daemon(ours, options, children)
        conn = stack.enter_context(connect(urls.babylon))
        played, watch = _play(conn, settings, plan, failures)
        if not options.train or not options.follow:
            _show_readiness("after", _ready(conn, settings), settings)
            return 0
        batch = _follow(conn, settings, options, watch, children)
        if ours:
            _let_runs_end()
        _show_readiness("after", _ready(conn, settings), settings)
        if batch is None:
            return BELOW_THRESHOLD
        _show_end(conn, settings, batch, played)
    console().print(f"done in {time.monotonic() - began:.0f} s; nothing is left running. Look at it: make ui")
    return 0


def _check_daemon(ours: bool, options: Options, children: Children) -> None:
    from rl_assets.commands.shown import console

    if not ours and options.threshold is not None:
        raise ConfigurationError("a daemon with its own threshold runs on this data; stop it, or leave --threshold out")
    if ours and not options.follow:
        raise ConfigurationError("--no-follow needs a daemon that stays: start `make ui` first, or leave it out")
    log = f"log: {children.log('daemon')}" if ours else "another command's"
    console().print(f"Dagster daemon: {log}")


def _play(
    conn: psycopg.Connection, settings: Settings, plan: Plan, failures: Callable[[], list[str]]
) -> tuple[Played, Watch]:
    from rl_assets.commands.shown import console, progress, show_table
    from rl_assets.follow import Watch
    from rl_assets.harness import live_model, run
    from rl_assets.registry.checkpoints import RemoteCheckpoint

    with progress() as report:
        model = live_model(conn, settings, report)
        where = "at W&B" if isinstance(model.checkpoint_path, RemoteCheckpoint) else "embedded, on this machine"
        console().print(f"model: {model.model_line} step {model.step}, {where}: {model.checkpoint_path}")
        _show_readiness("before", _ready(conn, settings), settings)
        watch = Watch(conn, settings, failures)
        began = time.monotonic()
        played = run(conn, settings, plan, model, report)
    show_table(
        f"{len(played.trajectory_ids)} episodes on {played.snapshots} snapshots, seed {played.seed}, "
        f"recorded in {time.monotonic() - began:.0f} s",
        ("agent", "episodes", "expected PnL $", "realised PnL $", "trades", "breaches"),
        [(r.policy, r.episodes, r.expected_pnl, r.realised_pnl, r.trades, r.breaches) for r in played.rows],
    )
    console().print(f"digest of what was played: {played.digest}")
    watch.watch(played.trainable_ids)
    return played, watch


def _follow(
    conn: psycopg.Connection, settings: Settings, options: Options, watch: Watch, children: Children
) -> Batch | None:
    from rl_assets.commands.shown import console
    from rl_assets.follow import ended, judged, until
    from rl_assets.training.trigger import claim

    deadline = time.monotonic() + options.timeout
    shown: list[str] = []
    with console().status("waiting for the sensors") as status:

        def on_sight(sight: object) -> None:
            text = str(sight)
            status.update(text)
            if not shown or shown[-1] != text:
                shown.append(text)
                console().print(f"  {time.strftime('%H:%M:%S')} {text}")

        sight = until(watch, judged, deadline=deadline, on_sight=on_sight, check=children.check)
        if sight.batch is None and sight.ready.fresh < settings.min_trajectories:
            if not options.force:
                console().print(
                    f"{sight.ready.fresh} of {settings.min_trajectories} fresh episodes: nothing is trained; play "
                    "more, or add --force"
                )
                return None
            found = claim(
                conn,
                model_line=settings.model_line,
                minimum=settings.min_trajectories,
                forced_by=FORCED_BY,
                most_stale=settings.most_stale,
            )
            console().print(f"the threshold of {settings.min_trajectories} was overridden by --force: {found.reason}")
        return until(watch, ended, deadline=deadline, on_sight=on_sight, check=children.check).batch


def _let_runs_end() -> None:
    """Wait for runs that work still, such as one that has decided on its batch and is about to say that it succeeded.

    The daemon ends with this command, and a run that it interrupts would stand as failed.
    """
    import dagster as dg

    instance = dg.DagsterInstance.get()
    working = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    deadline = time.monotonic() + SETTLE_SECONDS
    while instance.get_runs(dg.RunsFilter(statuses=working), limit=1) and time.monotonic() < deadline:
        time.sleep(0.1)


def _ready(conn: psycopg.Connection, settings: Settings) -> Readiness:
    from rl_assets.registry.models import champion_step
    from rl_assets.store.ledger import readiness

    return readiness(conn, settings.model_line, champion_step(conn, settings.model_line), settings.most_stale)


def _show_readiness(when: str, ready: Readiness, settings: Settings) -> None:
    from rl_assets.commands.shown import console

    flight = f"; {ready.in_flight_batch} is in flight" if ready.in_flight_batch else ""
    console().print(
        f"readiness {when}: {ready.fresh} of {settings.min_trajectories} fresh episodes in {ready.trainable_groups} "
        f"groups; {ready.waiting_groups} groups wait for a judge; {ready.claimed} episodes claimed so far{flight}"
    )


def _show_end(conn: psycopg.Connection, settings: Settings, batch: Batch, played: Played) -> None:
    from rl_assets.commands.shown import console, show_table
    from rl_assets.registry.models import get_latest_rl_model

    live = get_latest_rl_model(conn, settings.model_line)
    result = batch.result or {}
    flat = [(name, value) for name, value in result.items() if isinstance(value, (str, int, float, bool))]
    show_table(f"{batch.id}: {batch.state}", ("", ""), flat)
    console().print(f"live model: {live.model_line} step {live.step} (before: step {played.model.step})")
    report = settings.tree.batch(batch.id).report
    if report.is_file():
        console().print(f"report: {report}")


def _failures_from_now() -> Callable[[], list[str]]:
    """Errors of runs that fail from now on and stand in the way; attempts of trainings are the ledger's to count."""
    from datetime import UTC, datetime

    import dagster as dg

    from rl_assets.automation.runs import error_of

    instance = dg.DagsterInstance.get()
    since = datetime.now(UTC)

    def read() -> list[str]:
        chosen = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], created_after=since)
        return [
            f"{run.job_name} {run.run_id}: {error_of(instance, run.run_id)}"
            for run in instance.get_runs(chosen, limit=50)
            if run.job_name in FOLLOWED
        ]

    return read

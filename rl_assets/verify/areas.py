"""Every area in turn, and those of them that are the configuration, the database, the data and the registry."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import psycopg

from rl_assets.backends import SMOLLM2, SMOLLM2_INSTALL, check, smollm2_weights
from rl_assets.errors import ConfigurationError, MissingCheckpoint, RlAssetsError
from rl_assets.services import databases
from rl_assets.settings import REPOSITORY, Settings
from rl_assets.store.database import connect
from rl_assets.verify.automation import automation
from rl_assets.verify.finding import Finding
from rl_assets.verify.operations import operations

ROOM_BYTES = 1 << 30
"""Free disk below which a training may not fit."""
PINNED = {"openpipe-art": "0.5.18", "transformers": "5.2.0", "sqlalchemy": "2.0", "polars": "1", "openai": "2"}
"""Packages of which other versions are known to break, with what their version must begin with."""


def verify(settings: Settings) -> list[Finding]:
    """Look at every area. The embedded database is started for it if it is down, and stopped again."""
    found = _guarded("configuration", lambda: configuration(settings))
    try:
        with databases(settings) as urls, connect(urls.babylon) as conn:
            for area, look in (
                ("database", lambda: database(conn)),
                ("data", lambda: data(conn, settings)),
                ("automation", automation),
                ("registry", lambda: registry(conn, settings)),
                ("operations", lambda: operations(conn, settings)),
            ):
                found += _guarded(area, look)
    except RlAssetsError as error:
        found.append(Finding("database", "connection", "fail", str(error), "see the message"))
    return found


def _guarded(area: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of an area; an error that a person can act on is one of them."""
    found: list[Finding] = []
    try:
        found.extend(look())
    except (RlAssetsError, psycopg.Error, OSError) as error:
        said = str(error).strip().partition("\n")[0]  # Postgres adds the statement
        found.append(Finding(area, "look", "fail", said, "mend this first; the rest could not be checked"))
    return found


def configuration(settings: Settings) -> Iterator[Finding]:
    """Settings, package versions and disk space."""
    area = "configuration"
    yield Finding(
        area,
        "settings",
        "pass",
        f"data in {settings.data_dir}; threshold {settings.min_trajectories}; groups of {settings.group_size}; judge "
        f"{settings.judge}",
    )
    yield backend(settings)
    for package, beginning in PINNED.items():
        try:
            installed = version(package)
        except PackageNotFoundError:
            yield Finding(area, package, "fail", "not installed", "make install")
            continue
        fits = f"{installed}.".startswith(f"{beginning}.")
        remedy = "" if fits else f"pip install -c constraints.txt {package}"
        yield Finding(area, package, "pass" if fits else "fail", installed, remedy)
    for name in ("dagster.yaml", "workspace.yaml"):
        there = (REPOSITORY / name).is_file()
        yield Finding(area, name, "pass" if there else "fail", str(REPOSITORY / name), "" if there else "restore it")
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(settings.data_dir).free
    enough = free >= ROOM_BYTES
    yield Finding(
        area, "disk", "pass" if enough else "warn", f"{free / 1e9:.1f} GB free", "" if enough else "free some space"
    )


def backend(settings: Settings) -> Finding:
    """Where models are trained and played, why there, and what that lacks."""
    detail = f"{settings.backend} ({settings.backend_why}), base policy {settings.base_policy}"
    try:
        check(settings)
    except ConfigurationError as error:
        return Finding("configuration", "backend", "fail", detail, str(error))
    if settings.base_policy == SMOLLM2 and smollm2_weights() is None:
        return Finding("configuration", "backend", "warn", f"{detail}, not installed", SMOLLM2_INSTALL)
    return Finding("configuration", "backend", "pass", detail)


def database(conn: psycopg.Connection) -> Iterator[Finding]:
    """The server and the tables in it."""
    from rl_assets.store.episodes import has_news_index

    area = "database"
    yield Finding(area, "server", "pass", f"PostgreSQL {_one(conn, 'show server_version')}")
    # The game's tables are in the schema that the URL names, which is first in the search path.
    game = ("trajectories", "llm_call_logs", "trained_models")
    for table in (*game, "rl_assets.snapshots", "rl_assets.offers", "rl_assets.champion"):
        there = _one(conn, "select to_regclass(%s)", table) is not None
        remedy = "" if there else "rl-assets db migrate"
        yield Finding(area, table, "pass" if there else "fail", "there" if there else "missing", remedy)
    indexed = has_news_index(conn)
    yield Finding(
        area,
        "index on news",
        "pass" if indexed else "warn",
        "there"
        if indexed
        else "missing: ticks read the last two days of trajectories, and late rows of older hours are not noticed",
        "" if indexed else "create it as docs/production.md says",
    )


def data(conn: psycopg.Connection, settings: Settings) -> Iterator[Finding]:
    """Recorded episodes, and snapshots in the registry and on disk."""
    from rl_assets.market.snapshot import load_world
    from rl_assets.store.snapshots import list_snapshots

    area = "data"
    episodes = _one(conn, "select count(*) from trajectories")
    yield Finding(
        area,
        "episodes",
        "pass" if episodes else "warn",
        f"{episodes} recorded",
        "" if episodes else "rl-assets harness",
    )
    rows = list_snapshots(conn)
    waiting = [row for row in rows if row.materialized_at is None]
    for split in ("train", "gate"):
        of_split = [row for row in rows if row.split == split]
        yield Finding(
            area,
            f"{split} snapshots",
            "pass" if of_split else "warn",
            f"{len(of_split)} registered",
            "" if of_split else f"rl-assets snapshots generate --split {split}",
        )
    if waiting:
        yield Finding(area, "materialized", "warn", f"{len(waiting)} snapshots are not yet", "start a daemon: make ui")
    broken: list[str] = []
    for row in rows:
        try:
            load_world(settings.tree.snapshots, row.id)
        except RlAssetsError as error:
            broken.append(str(error))
    detail = f"{len(broken)} of {len(rows)} are broken, first: {broken[0]}" if broken else f"all {len(rows)} are whole"
    yield Finding(
        area,
        "snapshot files",
        "fail" if broken else "pass",
        detail,
        "delete their files, then rl-assets snapshots generate with the same seeds" if broken else "",
    )


def registry(conn: psycopg.Connection, settings: Settings) -> Iterator[Finding]:
    """The champion, the checkpoints that must be kept, and the batches in flight."""
    from rl_assets.registry.checkpoints import RemoteCheckpoint, checkpoint_digest
    from rl_assets.registry.models import champion_step, get_latest_rl_model, list_models
    from rl_assets.registry.retention import needed_steps, pruned_steps
    from rl_assets.registry.rollout import open_rollout
    from rl_assets.store.ledger import IN_FLIGHT, batches

    area, line = "registry", settings.model_line
    step = champion_step(conn, line)
    if step is None:
        yield Finding(area, "champion", "warn", f"{line} has none yet", "rl-assets harness builds and registers step 0")
    else:
        live = get_latest_rl_model(conn, line)
        yield Finding(area, "champion", "pass", f"{live.model_line} step {live.step}: its checkpoint is whole")
        if settings.database_url is not None and step > 0 and not isinstance(live.checkpoint_path, RemoteCheckpoint):
            yield Finding(
                area,
                "the game's app",
                "warn",
                "plays what W&B serves, and this champion is on a disk",
                "set WANDB_API_KEY to train there, or let the app play another model",
            )
    rollout = open_rollout(conn, line)
    if rollout is not None and rollout.state == "staged":
        yield Finding(
            area,
            "rollout",
            "pass",
            f"step {rollout.step} is with {rollout.percentage} % of the agents: {rollout.reason}",
        )
    pruned, needed = pruned_steps(conn, line), needed_steps(conn, line)
    for model in list_models(conn, line):
        if model.step in pruned:
            continue
        # Steps that were turned down are deleted at W&B before the next training.
        unneeded = isinstance(model.checkpoint_path, RemoteCheckpoint) or model.step not in needed
        if model.step == step or (model.state == "rejected" and unneeded):
            continue
        try:
            if checkpoint_digest(model.checkpoint_path) == model.digest:
                continue
            lost = f"{model.checkpoint_path} is not what was registered"
        except MissingCheckpoint as error:
            lost = str(error)
        yield Finding(area, f"step {model.step}", "warn", lost, "restore it, or it cannot be rolled back to")
    for batch in batches(conn, model_line=line, states=(*IN_FLIGHT, "failed")):
        stuck = batch.state in ("unknown", "failed")
        yield Finding(
            area,
            batch.id,
            "warn" if stuck else "pass",
            f"{batch.state}, attempt {batch.attempt}" + (f": {batch.error}" if batch.error else ""),
            "read its run (make ui), then rl-assets batches retry, free or settle" if stuck else "",
        )


def _one(conn: psycopg.Connection, query: str, *parameters: object) -> object:
    row = conn.execute(query, parameters or None).fetchone()  # pyright: ignore[reportArgumentType, reportCallIssue]
    return None if row is None else row[0]

"""`rl-assets snapshots`: benchmark worlds on disk and in the registry."""

from __future__ import annotations

from pathlib import Path

import click

from rl_assets.commands.opened import opened

SPLIT = click.Choice(["train", "gate", "sealed"])
DIFFICULTY = click.Choice(["easy", "standard", "hard"])


@click.group()
def snapshots() -> None:
    """Benchmark snapshots: generate, import, list, audit."""


@snapshots.command()
@click.option("--split", type=SPLIT, default="train", show_default=True)
@click.option("--first", type=int, default=None, help="First seed; the first of the split if left out.")
@click.option("--count", type=click.IntRange(1, 10_000), default=16, show_default=True)
@click.option("--difficulty", type=DIFFICULTY, default="standard", show_default=True)
def generate(split: str, first: int | None, count: int, difficulty: str) -> None:
    """Write and register the snapshots of consecutive seeds. What is there already stays as it is."""
    from rl_assets.harness import provide
    from rl_assets.market.config import DIFFICULTIES
    from rl_assets.market.snapshot import SPLITS

    if split == "gate" and difficulty != "standard":
        raise click.UsageError("the gate plays standard worlds alone; choose --split train or sealed for others")
    start = SPLITS[split].start if first is None else first
    with opened() as (conn, settings):
        worlds = provide(conn, settings, split, range(start, start + count), DIFFICULTIES[difficulty])
    for snapshot, _ in worlds:
        click.echo(snapshot.id)


@snapshots.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
def import_(file: Path) -> None:
    """Import a snapshot FILE of Babylon (version 1.0.0), and say what a score on it is worth.

    It can be played, and no split holds it: neither training nor the gate ever chooses it by itself.
    """
    from rl_assets.commands.shown import show_table
    from rl_assets.market.babylon.audit import audit_imported, summary
    from rl_assets.market.babylon.importer import import_babylon
    from rl_assets.market.snapshot import save_snapshot
    from rl_assets.settings import Settings

    root = Settings.from_env().tree.snapshots
    snapshot, truth = import_babylon(file)
    save_snapshot(root, snapshot, truth)
    checks = audit_imported(snapshot, truth)
    click.echo(snapshot.id)
    show_table(
        "what a score on it would rest on",
        ("check", "", "detail"),
        [(check.name, "pass" if check.passed else "fail", check.detail) for check in checks],
    )
    click.echo(summary(checks))


@snapshots.command(name="list")
@click.option("--split", type=SPLIT, default=None)
def list_(split: str | None) -> None:
    """Registered snapshots, and whether Dagster has materialized them."""
    from rl_assets.commands.shown import show_table
    from rl_assets.store.snapshots import list_snapshots

    with opened() as (conn, _):
        rows = list_snapshots(conn, split=split)
    show_table(
        f"{len(rows)} snapshots",
        ("id", "split", "day", "materialized"),
        [(row.id, row.split, row.day, str(row.materialized_at) if row.materialized_at else None) for row in rows],
    )


@snapshots.command()
@click.argument("snapshot_ids", nargs=-1)
@click.option("--skill", is_flag=True, help="Also measure whether skill shows on these snapshots.")
@click.option("--leakage", is_flag=True, help="Also measure what public data tells of the truths; takes 200 snapshots.")
def audit(snapshot_ids: tuple[str, ...], skill: bool, leakage: bool) -> int:
    """Audit snapshots on disk, all of our own if none is named. Exit code 1 if a check fails."""
    from rl_assets.agents.skill import audit_skill
    from rl_assets.commands.shown import console, show_table
    from rl_assets.market.babylon.audit import audit_any
    from rl_assets.market.leakage import LEAST_WORLDS, audit_leakage
    from rl_assets.market.snapshot import IMPORTED, load_snapshot, load_truth
    from rl_assets.settings import Settings
    from rl_assets.tree import public_file

    root = Settings.from_env().tree.snapshots
    on_disk = sorted(path.parent.name for path in root.glob(public_file(Path(), "*").as_posix()))
    names = snapshot_ids or tuple(name for name in on_disk if not name.startswith(IMPORTED))
    if leakage and len(names) < LEAST_WORLDS:
        raise click.UsageError(f"--leakage finds nothing in {len(names)} snapshots; generate at least {LEAST_WORLDS}")
    # Not `load_world`: a truth that is another's is a failed check of this table, and stops no other.
    worlds = [(load_snapshot(root, name), load_truth(root, name)) for name in names]
    faults = [
        (world[0].id, check.name, check.detail) for world in worlds for check in audit_any(*world) if not check.passed
    ]
    if faults:
        show_table("failed checks", ("snapshot", "check", "detail"), faults)
    console().print(f"{len(worlds)} snapshots audited, {len(faults)} checks failed")
    if leakage:
        checks = audit_leakage(worlds)
        show_table("leakage", ("check", "passed", "detail"), [(c.name, str(c.passed), c.detail) for c in checks])
        faults += [("all", check.name, check.detail) for check in checks if not check.passed]
    if not skill or not worlds:
        return 1 if faults else 0
    report = audit_skill(worlds)
    show_table("expected PnL in dollars", list(report.rows[0]), [list(row.values()) for row in report.rows])
    console().print(report.detail)
    return 0 if report.passed and not faults else 1

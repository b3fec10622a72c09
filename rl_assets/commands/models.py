"""`rl-assets models`: the registry of a model line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rl_assets.commands.opened import opened
from rl_assets.registry.checkpoints import KEEP, checkpoints_of

if TYPE_CHECKING:
    from rl_assets.registry.lineage import Generation


@click.group()
def models() -> None:
    """Model versions: list, show, trace, restore, roll out and back, prune."""


@models.command(name="list")
def list_() -> None:
    """Every version of the line, newest first, with the champion marked."""
    from rl_assets.commands.shown import show_table
    from rl_assets.registry.models import champion_step, list_models

    with opened() as (conn, settings):
        champion = champion_step(conn, settings.model_line)
        rows = list_models(conn, settings.model_line)
    show_table(
        f"{settings.model_line}",
        ("", "step", "version", "state", "on top of", "batch", "created"),
        [
            (
                "*" if m.step == champion else "",
                m.step,
                m.version,
                m.state,
                m.parent_step,
                m.batch_id,
                str(m.created_at),
            )
            for m in rows
        ],
    )


@models.command()
@click.argument("step", type=click.IntRange(0), required=False)
def show(step: int | None) -> None:
    """One version and where it comes from; the champion if no step is given. Checks that its checkpoint is whole."""
    from rl_assets.commands.shown import show_table
    from rl_assets.registry.models import get_latest_rl_model, lineage

    with opened() as (conn, settings):
        if step is None:
            live = get_latest_rl_model(conn, settings.model_line)
            step = live.step
            click.echo(f"champion: {live.model_line} step {live.step}, version {live.version}, {live.checkpoint_path}")
        line = lineage(conn, settings.model_line, step)
    show_table(
        f"{settings.model_line}@{step}, and what it stands on",
        ("step", "version", "state", "batch", "checkpoint"),
        [(m.step, m.version, m.state, m.batch_id, str(m.checkpoint_path)) for m in line],
    )


@models.command()
@click.argument("step", type=click.IntRange(0))
def restore(step: int) -> None:
    """Bring a version's checkpoint back from W&B, if its files are those that were registered."""
    from rl_assets.registry.retention import restore as bring_back

    with opened() as (conn, settings):
        path = bring_back(conn, settings.model_line, step, settings.serverless)
    click.echo(f"{path} is what was registered as step {step} of {settings.model_line}")


@models.command()
@click.option("--reason", required=True, help="Why; it is kept in the history of champions.")
@click.option("--step", type=click.IntRange(0), default=None, help="The step to take back, if it is live still.")
def rollback(reason: str, step: int | None) -> None:
    """Make the previous champion live again; or, while a candidate is on its way, take that back."""
    from rl_assets.registry.by_hand import rollback_by_hand

    with opened() as (conn, settings):
        change = rollback_by_hand(conn, settings.model_line, reason, step)
    click.echo(f"champion of {settings.model_line}: {change}")


@models.command()
def rollout() -> None:
    """The candidate that is on its way, or the last that was: its stage, its evidence, and each decision."""
    from rl_assets.commands.shown import show_table
    from rl_assets.registry.rollout import events_of, last_rollout

    with opened() as (conn, settings):
        found = last_rollout(conn, settings.model_line)
        events = events_of(conn, found.id) if found else []
    if found is None:
        click.echo(f"no candidate of {settings.model_line} has been rolled out yet")
        return
    click.echo(
        f"step {found.step} beside step {found.champion_step}: {found.state}, {found.percentage} % of the agents"
    )
    stages = ", ".join(f"{stage} %" for stage in found.terms.stages)
    click.echo(f"stages {stages}; {found.figures.get('pairs', 0)} pairs of episodes looked at")
    show_table(
        "decisions",
        ("at", "decision", "%", "pairs", "why"),
        [(f"{e.at:%Y-%m-%d %H:%M}", e.decision, e.percentage, e.figures.get("pairs", 0), e.reason) for e in events],
    )


@models.command()
@click.argument("which", default="deployed", metavar="[STEP|deployed]")
@click.option("--episodes", is_flag=True, help="Name every episode, with its group, reward, hour and scenario.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, the model first and step 0 last.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Write it as a PNG, too.")
def lineage(which: str, episodes: bool, as_json: bool, picture: Path | None) -> None:
    """From a model to its checkpoint, batch, manifest, judgement sets, groups and episodes, down to step 0."""
    from rl_assets.commands.shown import show_table
    from rl_assets.registry.lineage import lineage_of
    from rl_assets.registry.rows import pointer

    if which != "deployed" and not which.isdecimal():
        raise click.BadParameter(f"{which!r} is neither a step nor `deployed`")
    with opened() as (conn, settings):
        line = settings.model_line
        found = lineage_of(conn, line, pointer(conn, line)[0] if which == "deployed" else int(which))
    if picture is not None:
        from rl_assets.reports.lineage import lineage_picture

        picture.write_bytes(lineage_picture(found))
    if as_json:
        click.echo(json.dumps([generation.to_json(episodes=episodes) for generation in found], indent=2))
        return
    show_table(
        f"{line}@{found[0].model.step}, and what it stands on",
        ("step", "version", "state", "batch", "sets", "groups", "episodes", "recorded", "checkpoint"),
        [
            (
                g.model.step,
                g.model.version,
                g.model.state,
                g.model.batch_id,
                len(g.judgement_sets),
                len(g.groups),
                len(g.sources),
                sum(source.recorded for source in g.sources),
                f"{g.model.checkpoint_path}{' (deleted)' if g.pruned else ''}",
            )
            for g in found
        ],
    )
    for generation in found:
        if generation.sources:
            _origins(generation, episodes=episodes)


def _origins(generation: Generation, *, episodes: bool) -> None:
    """Where the episodes of a model come from, in sum, and one by one if asked."""
    from rl_assets.commands.shown import show_table
    from rl_assets.reports.page import plain

    step = generation.model.step
    show_table(
        f"step {step}: digest {generation.model.digest}, judged in {', '.join(generation.judgement_sets)}",
        ("hour", "scenario", "groups", "episodes"),
        generation.by_origin(),
    )
    if episodes:  # a line each, which no table folds
        click.echo("episode\tgroup\treward\thour\tscenario\tjudgement set")
        for s in generation.sources:
            told = (s.trajectory_id, s.group_id, f"{s.reward:.4f}", s.window, s.scenario, s.judgement_set)
            click.echo("\t".join("-" if value is None else " ".join(plain(value).split()) for value in told))


@models.command()
@click.option("--keep", type=click.IntRange(1), default=KEEP, show_default=True, help="Newest steps that stay anyway.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
def prune(keep: int, dry_run: bool) -> None:
    """Delete checkpoints that nothing needs: not live, not live before, not on their way, and referenced by nothing."""
    from rl_assets.registry.retention import prune as delete
    from rl_assets.registry.retention import shown

    with opened() as (conn, settings):
        directory = checkpoints_of(settings.data_dir, settings.model_line)
        gone = delete(conn, settings.model_line, directory, keep=keep, dry_run=dry_run)
    for one in gone:
        click.echo(f"{one.path}: {one.bytes / 2**20:,.1f} MiB")
    click.echo(shown(gone, dry_run=dry_run))

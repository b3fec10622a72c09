"""`rl-assets models`: the registry of a model line."""

from __future__ import annotations

import click

from rl_assets.commands.opened import opened


@click.group()
def models() -> None:
    """Model versions: list, show, restore, roll back."""


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
    from rl_assets.errors import RlAssetsError
    from rl_assets.registry.checkpoints import Remote
    from rl_assets.registry.models import get_model, playable
    from rl_assets.tracking import fetch_checkpoint

    with opened() as (conn, settings):
        model = get_model(conn, settings.model_line, step)
    path = model.checkpoint_path
    if isinstance(path, Remote):
        raise RlAssetsError(f"{path} is kept at W&B and needs no copy here")
    if not path.exists():
        entity, project = settings.serverless.entity, settings.serverless.project
        place = f"{entity}/{project}" if entity else project
        fetch_checkpoint(f"{place}/{model.model_line}:step{step}", model.digest, path)
    playable(model)
    click.echo(f"{path} is what was registered as step {step} of {model.model_line}")


@models.command()
@click.option("--reason", required=True, help="Why; it is kept in the history of champions.")
def rollback(reason: str) -> None:
    """Make the previous champion live again."""
    from rl_assets.registry.models import rollback as roll_back

    with opened() as (conn, settings):
        change = roll_back(conn, settings.model_line, reason)
    click.echo(f"champion of {settings.model_line}: {change}")

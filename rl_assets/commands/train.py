"""`rl-assets train`: claim a batch now."""

from __future__ import annotations

import click

from rl_assets.commands.opened import opened


@click.command()
@click.option("--force", is_flag=True, help="Claim what is there, even below the threshold.")
@click.option("--model-line", default=None, help="Which model line; the configured one if left out.")
def train(force: bool, model_line: str | None) -> int:
    """Claim the fresh episodes for a training; the running daemon's sensor then starts it.

    Exit code 3: too few fresh episodes, and not forced.
    """
    from rl_assets.backends import check
    from rl_assets.settings import Settings
    from rl_assets.training.trigger import claim

    check(Settings.from_env())
    with opened() as (conn, settings):
        found = claim(
            conn,
            model_line=model_line or settings.model_line,
            minimum=settings.min_trajectories,
            forced_by="rl-assets train --force" if force else None,
            most_stale=settings.most_stale,
        )
    click.echo(found.reason)
    if found.batch is None:
        return 3
    if force:
        click.echo(f"the threshold TRAINING_MIN_TRAJECTORIES={settings.min_trajectories} was overridden by --force")
    click.echo("the training sensor requests its run at its next tick; without a daemon: make ui")
    return 0

"""`rl-assets batches`: what became of each claim, and what a person decides where the ledger asks for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rl_assets.commands.opened import opened

if TYPE_CHECKING:
    from rl_assets.store.ledger import Batch


@click.group()
def batches() -> None:
    """Training batches: list, retry, branch, free, reject, settle."""


@batches.command(name="list")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
def list_(limit: int) -> None:
    """Batches of the model line, newest first, each with what made it fail or why the gate decided as it did."""
    from rl_assets.commands.shown import show_table
    from rl_assets.store.ledger import batches as find

    with opened() as (conn, settings):
        rows = find(conn, model_line=settings.model_line, limit=limit)
    show_table(
        settings.model_line,
        ("batch", "state", "attempt", "episodes", "on top of", "forced by", "why", "created"),
        [
            (
                *(b.id, b.state, b.attempt, b.episodes, f"{b.base_step}{', a branch' if b.branch_of else ''}"),
                *(b.forced_by, _why(b), f"{b.created_at:%Y-%m-%d %H:%M}"),
            )
            for b in rows
        ],
    )


def _why(batch: Batch) -> str | None:
    """What made it fail, or the gate's reason for its decision."""
    return batch.error or (batch.result or {}).get("decision")


@batches.command()
@click.argument("batch_id")
def retry(batch_id: str) -> None:
    """Train a failed batch once more; the training sensor requests the run at its next tick."""
    from rl_assets.store.ledger import advance_batch

    with opened() as (conn, _):
        batch = advance_batch(conn, batch_id, "reserved")
    click.echo(f"{batch.id} is tried again, attempt {batch.attempt}")


@batches.command()
@click.argument("batch_id")
def branch(batch_id: str) -> None:
    """Make another model of a batch that was promoted or rejected, with the settings of now; the gate decides on it."""
    from rl_assets.training.trigger import branch as again

    with opened() as (conn, settings):
        found = again(conn, batch_id, model_line=settings.model_line, forced_by="rl-assets batches branch")
    click.echo(found.reason)


@batches.command()
@click.argument("batch_id")
def free(batch_id: str) -> None:
    """Give the episodes of a failed or reserved batch back, for the next claim; a branch has none to give."""
    from rl_assets.store.ledger import advance_batch

    with opened() as (conn, _):
        batch = advance_batch(conn, batch_id, "freed")
    kept = f"its episodes stay with {batch.branch_of}" if batch.branch_of else "its episodes wait again"
    click.echo(f"{batch.id} is freed; {kept}")


@batches.command()
@click.argument("batch_id")
@click.option("--reason", required=True, help="Why; it is kept with the batch.")
def reject(batch_id: str, reason: str) -> None:
    """Turn down a trained batch whose candidate cannot be played, so that its line goes on; its episodes stay used."""
    from rl_assets.registry.by_hand import turn_down

    with opened() as (conn, _):
        model = turn_down(conn, batch_id, reason)
    click.echo(f"{batch_id} is rejected, and step {model.step} of {model.model_line} with it; its episodes stay used")


@batches.command()
@click.argument("batch_id")
@click.option("--trained", "step", type=click.IntRange(min=1), help="The step at W&B that came of the batch.")
@click.option("--not-trained", is_flag=True, help="No training came of it, and none will: it may be submitted again.")
def settle(batch_id: str, step: int | None, not_trained: bool) -> None:
    """Say what became of a batch that is unknown, where W&B's own evidence does not decide."""
    from rl_assets.store.ledger import get_batch
    from rl_assets.training.reconcile import settle as enter

    if (step is not None) == not_trained:
        raise click.UsageError("give either --trained STEP or --not-trained")
    with opened() as (conn, _):
        click.echo(enter(conn, get_batch(conn, batch_id), step))

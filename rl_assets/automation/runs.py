"""What the instance knows of runs, in the words of the domain, and what follows from it for the next training."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from rl_assets.errors import ConfigurationError
from rl_assets.logs import PARTITION
from rl_assets.resources import Database, Trainer

if TYPE_CHECKING:
    from rl_assets.training.trigger import Look, Runs

RUN_KEY = "dagster/run_key"
ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
LIVE = [status for status in dg.DagsterRunStatus if status not in ENDED]


def live_partitions(instance: dg.DagsterInstance, job_name: str) -> set[str]:
    """Partition keys on which a run of a job waits or works."""
    runs = instance.get_runs(dg.RunsFilter(job_name=job_name, statuses=LIVE), limit=200)
    return {run.tags[PARTITION] for run in runs if PARTITION in run.tags}


def failures(instance: dg.DagsterInstance, job_name: str, partitions: Sequence[str]) -> Counter[str]:
    """How many runs of a job have failed on each of the partitions."""
    wanted = dg.RunsFilter(
        job_name=job_name, statuses=[dg.DagsterRunStatus.FAILURE], tags={PARTITION: list(partitions)}
    )
    return Counter(run.tags[PARTITION] for run in instance.get_runs(wanted))


def runs_of_batch(instance: dg.DagsterInstance, batch_id: str) -> "Runs":
    """The runs of a batch, whoever launched them."""
    from rl_assets.training.trigger import Runs

    runs = instance.get_runs(dg.RunsFilter(tags={PARTITION: batch_id}), limit=50)
    return Runs(
        live=next((run.run_id for run in runs if run.status not in ENDED), None),
        ended=frozenset(run.tags.get(RUN_KEY, run.run_id) for run in runs if run.status in ENDED),
    )


def next_training(instance: dg.DagsterInstance, database: Database, trainer: Trainer) -> "Look":
    """The look that the training sensor and the daily schedule share. It may claim a batch, if one can be trained."""
    from rl_assets.training.trigger import Look, look

    settings = trainer.settings  # a variable that cannot be read fails the tick
    try:
        trainer.check()
    except ConfigurationError as error:
        return Look(str(error))
    with database.connect() as conn:
        return look(
            conn,
            model_line=settings.model_line,
            minimum=settings.min_trajectories,
            most_stale=settings.most_stale,
            runs_of=lambda batch_id: runs_of_batch(instance, batch_id),
        )

"""What the instance knows of runs, in the words of the domain, and what follows from it for the next training."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from rl_assets.errors import ConfigurationError
from rl_assets.logs import PARTITION
from rl_assets.resources import Database, Trainer

if TYPE_CHECKING:
    from dagster_shared.error import SerializableErrorInfo

    from rl_assets.training.trigger import Look, Runs

RUN_KEY = "dagster/run_key"
ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
OURS = "rl_assets."
"""How the name of an error of ours begins, as Dagster records it."""
UNFINISHED = [status for status in dg.DagsterRunStatus if status not in ENDED]


def unfinished_partitions(instance: dg.DagsterInstance, job_name: str) -> set[str]:
    """Partition keys on which a run of a job waits or works."""
    runs = instance.get_runs(dg.RunsFilter(job_name=job_name, statuses=UNFINISHED), limit=200)
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


def error_of(instance: dg.DagsterInstance, run_id: str) -> str:
    """Why a run failed, in a line without secrets: in the words of the deepest cause that is an error of ours, else of
    the deepest there is. Of a run that never began, its monitor's reason."""
    from rl_assets.alerts import first_line

    logs = instance.all_logs(run_id, of_type={dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE})
    events = [entry.dagster_event for entry in logs if entry.dagster_event is not None]
    errors = (getattr(event.event_specific_data, "error", None) for event in events)
    said = next((_words(error) for error in errors if error is not None), None)
    return first_line(said or next((event.message for event in events if event.message), ""))


def _words(error: "SerializableErrorInfo") -> str:
    """What led to a failure, without the name of its class."""
    chain = list(_chain(error))
    # What a library said, from which ours was raised, tells nobody what to do.
    ours = [one for one in chain if one.message.startswith(OURS)]
    deepest = (ours or chain)[-1]
    kind, _, said = deepest.message.partition(": ")
    return said if deepest.cls_name and kind.endswith(deepest.cls_name) else deepest.message


def _chain(error: "SerializableErrorInfo | None") -> "Iterator[SerializableErrorInfo]":
    """The error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.cause


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

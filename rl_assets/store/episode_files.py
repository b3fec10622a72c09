"""Typed files of bulk data: episodes as Parquet, and small things as JSON. Those of a window are in `window_files`.

Whatever is written comes whole to its place, which may be in a store (`rl_assets.places`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from itertools import accumulate, chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl_assets.collector import paused_collector
from rl_assets.episodes import Episode, Policy, Sampling, Step
from rl_assets.errors import MalformedInput, reason_of
from rl_assets.places import Place, readable_file, whole_file
from rl_assets.store import bulk_json

ROWS_AT_ONCE = 1000
_TIME = pa.timestamp("us", tz="UTC")
_STEP = {
    "tick": pa.int64(),
    "observation": pa.string(),
    "response": pa.string(),
    "action": pa.string(),
    "valid": pa.bool_(),
    "reward": pa.float64(),
    "equity": pa.float64(),
    "credit": pa.float64(),
    "error": pa.string(),
    "token_ids": pa.list_(pa.int64()),
    "logprobs": pa.list_(pa.float64()),
    "prompt_tokens": pa.int64(),
    "latency_ms": pa.int64(),
}
EPISODES = pa.schema(
    {
        "trajectory_id": pa.string(),
        "agent_id": pa.string(),
        "policy": pa.struct({"name": pa.string(), "step": pa.int64()}),
        "scenario_id": pa.string(),
        "window_id": pa.string(),
        "started_at": _TIME,
        "ended_at": _TIME,
        "system": pa.string(),
        "steps": pa.list_(pa.struct(_STEP)),
        "prompt_version": pa.string(),
        "sampling": pa.struct(
            {"temperature": pa.float64(), "max_tokens": pa.int64(), "top_p": pa.float64(), "seed": pa.int64()}
        ),
        "snapshot_id": pa.string(),
        "sibling": pa.int64(),
        "realised_pnl": pa.float64(),
        "expected_pnl": pa.float64(),
        "max_drawdown": pa.float64(),
        "breaches": pa.int64(),
        "trades": pa.int64(),
        "fees": pa.float64(),
        "is_evaluation": pa.bool_(),
    }
)
"""A column per field of `Episode`, of the same name; an action is JSON."""


def write_episodes_parquet(path: Place, episodes: Sequence[Episode]) -> None:
    """Write episodes in the order given. Raises RlAssetsError if the disk is full or not writable."""
    with whole_file(path) as partial, pq.ParquetWriter(partial, EPISODES, compression="zstd") as writer:
        for start in range(0, len(episodes), ROWS_AT_ONCE):
            writer.write_table(episodes_table(episodes[start : start + ROWS_AT_ONCE]))


class GrowingFile:
    """A file of episodes that is whole after every `add`, so that a stopped run loses none that it has finished.

    episodes: all that it holds. Raises as `read_episodes_parquet` does where there is a file that cannot be read.
    """

    def __init__(self, path: Place) -> None:
        self._path = path
        self.episodes = read_episodes_parquet(path) if path.is_file() else []
        self._table = episodes_table(self.episodes)

    def add(self, episodes: Sequence[Episode]) -> None:
        """Raises RlAssetsError if the disk is full; the file is then as it was before."""
        table = pa.concat_tables([self._table, episodes_table(episodes)])
        with whole_file(self._path) as partial:
            pq.write_table(table, partial, row_group_size=ROWS_AT_ONCE, compression="zstd")
        self._table = table
        self.episodes = [*self.episodes, *episodes]


def read_episodes_parquet(path: Place) -> list[Episode]:
    """The episodes of a file, equal in every field to those written. Raises MalformedInput if it is not such a file."""
    with parquet_file(path, EPISODES) as file, readable(path):
        return [
            episode
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=EPISODES.names)
            for episode in episodes_of(pa.Table.from_batches([batch]))
        ]


@contextmanager
def parquet_file(path: Place, schema: pa.Schema) -> Iterator[pq.ParquetFile]:
    """A file that has at least these columns; read it in `readable`. Raises MalformedInput if it has not."""
    with ExitStack() as opened:
        with readable(path):
            file = opened.enter_context(pq.ParquetFile(opened.enter_context(readable_file(path))))
            there = file.schema_arrow
            if any(there.get_field_index(field.name) < 0 or there.field(field.name) != field for field in schema):
                raise MalformedInput(f"{path} does not hold what this version writes there; materialize it again")
        yield file


@contextmanager
def readable(path: Place) -> Iterator[None]:
    """Raises MalformedInput in place of the errors of reading a file that is not there or damaged."""
    try:
        yield
    except FileNotFoundError:
        raise MalformedInput(f"{path} is not there; materialize it") from None
    except (pa.ArrowException, OSError) as error:
        raise MalformedInput(
            f"{path} cannot be read ({reason_of(error)}); delete it and materialize it again"
        ) from error


def write_json(path: Place, value: object) -> None:
    """Write a value as indented JSON. Raises as `write_episodes_parquet` does."""
    text = json.dumps(value, indent=2, allow_nan=False)
    with whole_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


@paused_collector()
def episodes_table(episodes: Sequence[Episode]) -> pa.Table:
    """One row per episode, with the columns of EPISODES."""
    # By columns, for Arrow takes ten times as long to take nested rows apart.
    steps = [step for episode in episodes for step in episode.steps]
    columns: list[pa.Array] = []
    for name, kind in _STEP.items():
        values = [getattr(step, name) for step in steps]
        if name == "action":
            values = [bulk_json.encode(action) for action in values]
        columns.append(_lists(values, kind.value_type) if pa.types.is_list(kind) else pa.array(values, kind))
    rows = pa.StructArray.from_arrays(columns, fields=list(EPISODES.field("steps").type.value_type))
    alone = {
        "policy": [{"name": episode.policy.name, "step": episode.policy.step} for episode in episodes],
        "sampling": [episode.sampling and _fields(episode.sampling) for episode in episodes],
    }
    return pa.table(
        [
            _lists([episode.steps for episode in episodes], rows)
            if field.name == "steps"
            else pa.array(alone.get(field.name) or [getattr(one, field.name) for one in episodes], field.type)
            for field in EPISODES
        ],
        schema=EPISODES,
    )


@paused_collector()
def episodes_of(table: pa.Table) -> list[Episode]:
    """The episodes of rows with the columns of EPISODES."""
    if not table.num_rows:
        return []
    lists = pa.concat_arrays(table["steps"].chunks)
    columns = dict(zip(_STEP, (column.to_pylist() for column in lists.flatten().flatten()), strict=True))
    columns["action"] = map(bulk_json.decode, columns["action"])
    columns["token_ids"], columns["logprobs"] = map(tuple, columns["token_ids"]), map(tuple, columns["logprobs"])
    steps = map(Step, *columns.values())  # _STEP has the order of its fields
    return [
        Episode(
            **{
                **row,
                "policy": Policy(**row["policy"]),
                "sampling": row["sampling"] and Sampling(**row["sampling"]),
                "steps": tuple(islice(steps, length)),
            }
        )
        for row, length in zip(
            table.drop_columns(["steps"]).to_pylist(), lists.value_lengths().to_pylist(), strict=True
        )
    ]


def _lists(rows: Sequence[Sequence[Any]], values: pa.DataType | pa.Array) -> pa.ListArray:
    """Lists of as many elements as the rows have: those elements, or the values given."""
    offsets = pa.array(accumulate(map(len, rows), initial=0), pa.int32())
    if isinstance(values, pa.DataType):
        values = pa.array(list(chain.from_iterable(rows)), values)
    return pa.ListArray.from_arrays(offsets, values)


def _fields(sampling: Sampling) -> dict[str, Any]:
    return {field.name: getattr(sampling, field.name) for field in fields(Sampling)}

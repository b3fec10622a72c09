"""What the definitions say of columns is what is written."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl_assets.assets import columns
from rl_assets.definitions import ASSETS
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import save_snapshot
from rl_assets.store.episode_files import EPISODES
from rl_assets.store.window_files import GROUPS, RANKINGS, TRAJECTORIES
from rl_assets_tests.assets.test_pipeline import WINDOW_ASSETS, materialized, played_hour

pytestmark = pytest.mark.usefixtures("undrawn")

POSTGRES = {
    "text": "string",
    "character varying": "string",
    "timestamp without time zone": "timestamp",
    "timestamp with time zone": "timestamp",
    "numeric": "decimal",
    "double precision": "float",
    "integer": "int",
    "boolean": "bool",
    "jsonb": "json",
}


def said(schema: dg.TableSchema) -> dict[str, str]:
    return {column.name: column.type for column in schema.columns}


def definitions() -> dict[str, dict]:
    specs = [asset if isinstance(asset, dg.AssetSpec) else next(iter(asset.specs)) for asset in ASSETS]
    return {spec.key.to_user_string(): dict(spec.metadata) for spec in specs}


def words(schema: pa.Schema) -> dict[str, str]:
    return {field.name: word(field.type) for field in schema}


def word(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list[{word(kind.value_type)}]"
    known = {
        "struct": pa.types.is_struct,
        "timestamp": pa.types.is_timestamp,
        "float": pa.types.is_floating,
        "int": pa.types.is_integer,
        "bool": pa.types.is_boolean,
        "string": pa.types.is_string,
    }
    return next(name for name, of in known.items() if of(kind))


@pytest.mark.parametrize("name", ["EPISODES", "TRAJECTORIES", "GROUPS", "RANKINGS"])
def test_the_columns_of_a_file_are_those_it_is_written_with(name: str):
    written = {"EPISODES": EPISODES, "TRAJECTORIES": TRAJECTORIES, "GROUPS": GROUPS, "RANKINGS": RANKINGS}[name]
    assert said(getattr(columns, name)) == words(written)


def test_the_files_of_an_hour_are_where_the_assets_say_and_hold_what_they_say(
    conn: psycopg.Connection, postgres_url: str, tmp_path: Path
):
    window = played_hour(conn, tmp_path)
    with dg.DagsterInstance.ephemeral() as instance:
        assert materialized(WINDOW_ASSETS, window, instance, postgres_url, tmp_path).success
    for asset in WINDOW_ASSETS:
        told = definitions()[asset.key.to_user_string()]
        file = tmp_path / told["dagster/uri"].format(hour=window.replace(":", ""))
        assert said(told["dagster/column_schema"]) == words(pq.read_schema(file))


def test_a_snapshot_is_where_the_asset_says_and_holds_what_it_says(tmp_path: Path):
    snapshot, truth = generate("train", 5)
    save_snapshot(tmp_path / "snapshots", snapshot, truth)
    told = definitions()["benchmark_snapshots"]
    content = json.loads((tmp_path / told["dagster/uri"].format(snapshot=snapshot.id)).read_text(encoding="utf-8"))
    assert set(said(told["dagster/column_schema"])) == {*content, "whispers"}  # these in harder worlds alone


def test_the_tables_that_assets_name_are_there_with_the_columns_they_say(conn: psycopg.Connection):
    tables = {name: told for name, told in definitions().items() if "dagster/table_name" in told}
    assert len(tables) >= 9
    for name, told in tables.items():
        schema, _, table = told["dagster/table_name"].rpartition(".")
        rows = conn.execute(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = %s AND table_name = %s",
            [schema or "public", table],
        ).fetchall()
        assert rows, f"{name} names {told['dagster/table_name']}, which is not there"
        if "dagster/uri" not in told:
            assert said(told["dagster/column_schema"]) == {column: POSTGRES[kind] for column, kind in rows}

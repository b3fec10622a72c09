"""The assets of an hour with their files in a store, which are the bytes that a directory would hold."""

from __future__ import annotations

import uuid
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from rl_assets.places import Place, local_file, place_of
from rl_assets.settings import Settings
from rl_assets_tests.assets.test_pipeline import WINDOW_ASSETS, materialized, played_hour, why

pytestmark = pytest.mark.usefixtures("undrawn")

FILES = ("trajectories.parquet", "quarantine.parquet", "groups.parquet", "rankings.parquet")


def bytes_of(place: Place) -> bytes:
    with local_file(place) as file:
        return file.read_bytes()


def test_an_hour_in_a_store_is_the_bytes_of_one_on_disk(
    conn: psycopg.Connection, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = f"memory://test-{uuid.uuid4().hex}/data"
    monkeypatch.setenv("RL_ASSETS_STORE", url)
    window = played_hour(conn, tmp_path, Settings(tmp_path, store=place_of(url)))
    played_hour(conn, tmp_path)
    with dg.DagsterInstance.ephemeral() as instance:
        for data in (tmp_path, url):
            result = materialized(WINDOW_ASSETS, window, instance, postgres_url, data)
            assert result.success, why(result)
    here, there = (root / "windows" / window.replace(":", "") for root in (tmp_path, place_of(url)))
    assert {name: bytes_of(here / name) for name in FILES} == {name: bytes_of(there / name) for name in FILES}
    kept = sorted(place.name for place in (place_of(url) / "snapshots").iterdir())
    assert kept == sorted(path.name for path in (tmp_path / "snapshots").iterdir())

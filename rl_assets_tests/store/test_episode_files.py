from __future__ import annotations

import errno
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl_assets.episodes import Episode
from rl_assets.errors import MalformedInput, RlAssetsError
from rl_assets.store.episode_files import read_episodes_parquet, write_episodes_parquet, write_json
from rl_assets_tests.store.made import an_episode, episodes


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(episodes(), max_size=4))
def test_episodes_are_read_as_they_were_written(tmp_path: Path, some: list[Episode]):
    path = tmp_path / "window" / "trajectories.parquet"
    write_episodes_parquet(path, some)
    assert read_episodes_parquet(path) == some


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "manifest.json"
    write_json(path, {"batch": 1})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RlAssetsError, match="free disk space"):
        write_json(path, {"batch": 2})
    monkeypatch.undo()
    assert path.read_text() == '{\n  "batch": 1\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 and then something else PAR1"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, content: bytes):
    path = tmp_path / "trajectories.parquet"
    path.write_bytes(content)
    with pytest.raises(MalformedInput, match="materialize it again"):
        read_episodes_parquet(path)


def test_a_missing_file_and_a_foreign_one_are_named(tmp_path: Path):
    with pytest.raises(MalformedInput, match="is not there; materialize it"):
        read_episodes_parquet(tmp_path / "trajectories.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(MalformedInput, match="does not hold what this version writes"):
        read_episodes_parquet(tmp_path / "foreign.parquet")


def test_what_is_not_a_number_is_not_written_as_json(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "metrics.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_an_episode_without_steps_keeps_its_fields(tmp_path: Path):
    bare = an_episode(steps=(), sampling=None, snapshot_id=None, expected_pnl=None)
    write_episodes_parquet(tmp_path / "one.parquet", [bare])
    assert read_episodes_parquet(tmp_path / "one.parquet") == [bare]

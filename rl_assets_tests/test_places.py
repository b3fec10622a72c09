"""Places in stores: fsspec's own in-memory store stands for object stores, and its local one for stores that rename."""

from __future__ import annotations

import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from rl_assets.errors import ConfigurationError, MalformedInput, MissingCheckpoint, RlAssetsError
from rl_assets.places import (
    Place,
    bring_directory,
    keep_directory,
    local_directory,
    local_file,
    place_of,
    readable_file,
    whole_file,
)
from rl_assets.registry.archive import archive_of, bring, bring_newest, keep
from rl_assets.registry.checkpoints import checkpoint_digest
from rl_assets.settings import Settings

DRIVERS = {"memory": MemoryFileSystem, "file": LocalFileSystem}


@pytest.fixture(params=["memory", "file", "directory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "memory":
        place = place_of(f"memory://test-{uuid.uuid4().hex}/data/")
        yield place
        if place.exists():
            place.fs.rm(place.path, recursive=True)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        yield place_of(f"{'file://' if request.param == 'file' else ''}{tmp_path}/store")


def write(place: Place, text: str) -> None:
    with whole_file(place) as partial:
        partial.write_text(text, encoding="utf-8")


def test_what_is_written_is_read_again_and_replaced_as_a_whole(root: Place):
    place = root / "windows" / "2026-11-23T0800" / "groups.json"
    for text in ("first", "second and longer", "3"):
        write(place, text)
        with local_file(place) as file:
            assert file.read_text(encoding="utf-8") == text
        with local_directory(place.parent, place.name) as directory:
            assert (directory / "groups.json").read_text(encoding="utf-8") == text
        with readable_file(place) as found:
            assert (found.read_bytes() if isinstance(found, Path) else found.read()) == text.encode()
    assert [each.name for each in place.parent.iterdir()] == ["groups.json"]


def test_writing_that_fails_leaves_what_was_there(root: Place):
    place = root / "manifest.json"
    write(place, "whole")
    with pytest.raises(KeyError), whole_file(place) as partial:
        partial.write_text("ha", encoding="utf-8")
        raise KeyError
    with local_file(place) as file:
        assert file.read_text(encoding="utf-8") == "whole"
    assert [each.name for each in root.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("protocol", DRIVERS)
def test_a_store_that_refuses_is_told_in_one_sentence(protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = place_of(f"{protocol}://{tmp_path}/refused/rows.parquet")
    write(place, "whole")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("403\nForbidden")

    monkeypatch.setattr(DRIVERS[protocol], "put_file", refuse)
    monkeypatch.setattr(DRIVERS[protocol], "get_file", refuse)
    with pytest.raises(RlAssetsError, match="cannot be written \\(403 Forbidden\\); see that RL_ASSETS_STORE answers"):
        write(place, "half")
    with pytest.raises(RlAssetsError, match="cannot be read \\(403 Forbidden\\)"), local_file(place):
        pass
    monkeypatch.undo()
    with local_file(place) as file:
        assert file.read_text(encoding="utf-8") == "whole"


def test_what_is_not_there_is_a_missing_file(root: Place):
    with pytest.raises(FileNotFoundError), local_file(root / "nothing.json") as file:
        file.read_text(encoding="utf-8")


def test_a_store_without_its_driver_is_refused():
    with pytest.raises(ConfigurationError, match="cannot be used as a store"):
        place_of("nosuchstore://bucket/data")


def test_a_directory_goes_into_the_store_and_comes_back(root: Place, tmp_path: Path):
    (tmp_path / "0001" / "inner").mkdir(parents=True)
    (tmp_path / "0001" / "config.json").write_text("{}")
    (tmp_path / "0001" / "inner" / "weights").write_bytes(bytes(range(256)))
    keep_directory(tmp_path / "0001", root / "0001.tar")
    assert not bring_directory(root / "0002.tar", tmp_path / "0002")
    for _ in range(2):  # brought twice, it is brought once
        assert bring_directory(root / "0001.tar", tmp_path / "there" / "0001")
    assert checkpoint_digest(tmp_path / "there" / "0001") == checkpoint_digest(tmp_path / "0001")
    assert [each.name for each in (tmp_path / "there").iterdir()] == ["0001"]


def test_a_damaged_archive_and_one_that_leaves_its_directory_bring_nothing(root: Place, tmp_path: Path):
    write(root / "0001.tar", "no archive")
    with pytest.raises(MalformedInput, match="damaged archive"):
        bring_directory(root / "0001.tar", tmp_path / "there" / "0001")
    (tmp_path / "evil").write_text("x")
    with whole_file(root / "0002.tar") as partial, tarfile.open(partial, "w") as archive:
        archive.add(tmp_path / "evil", "../../escaped")
    with pytest.raises(MalformedInput, match="damaged archive"):
        bring_directory(root / "0002.tar", tmp_path / "there" / "0002")
    assert list((tmp_path / "there").iterdir()) == []
    assert not (tmp_path / "escaped").exists()


def test_a_checkpoint_that_another_machine_made_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RL_ASSETS_STORE", f"memory://test-{uuid.uuid4().hex}")
    monkeypatch.setenv("RL_ASSETS_DATA", str(tmp_path))
    steps = tmp_path / "art" / "rl-assets" / "models" / "line" / "checkpoints"
    digests = {}
    for step in ("0000", "0001", "0002"):
        (steps / step).mkdir(parents=True)
        (steps / step / "config.json").write_text(step)
        digests[step] = checkpoint_digest(steps / step)
        keep(steps / step)
    steps.rename(tmp_path / "lost")
    assert checkpoint_digest(steps / "0001") == digests["0001"]
    assert [each.name for each in steps.iterdir()] == ["0001"]
    bring_newest(steps)
    found = {each.name: checkpoint_digest(each) for each in steps.iterdir()}
    assert found == {step: digests[step] for step in ("0001", "0002")}
    assert not bring(steps / "0003")
    with pytest.raises(MissingCheckpoint):
        checkpoint_digest(steps / "0003")


def test_without_a_store_nothing_is_fetched_and_the_lake_is_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RL_ASSETS_STORE", raising=False)
    monkeypatch.setenv("RL_ASSETS_DATA", str(tmp_path))
    assert archive_of(tmp_path / "art" / "0001") is None
    assert not bring(tmp_path / "art" / "0001")
    assert Settings.from_env().lake == tmp_path
    assert Settings.from_env({"RL_ASSETS_STORE": "memory://b/c/"}).tree.snapshots == place_of("memory://b/c/snapshots")

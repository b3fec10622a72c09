"""What Weights & Biases is told of a training, without Weights & Biases: read from what `wandb sync` would send."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from wandb.proto import wandb_internal_pb2 as records

from rl_assets import cli
from rl_assets.episodes import digest
from rl_assets.errors import MissingCheckpoint
from rl_assets.registry.checkpoints import RemoteCheckpoint, checkpoint_digest
from rl_assets.resources import Tracking
from rl_assets.store.episode_files import write_episodes_parquet, write_json
from rl_assets.tracking import fetch_checkpoint
from rl_assets.training.manifest import Manifest, ManifestGroup
from rl_assets.training.result import TrainingResult
from rl_assets_tests.registry.made import LINE, a_base, a_checkpoint
from rl_assets_tests.store.made import an_episode

BATCH = "batch-0123456789abcdef"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with the files of a batch of two episodes, and no key for W&B."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb" / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb" / "cache"))
    group = ManifestGroup("group-1", ("t0", "t1"), (0.0, 1.0))
    manifest = Manifest(BATCH, LINE, 0, ("judgements-1",), ("2026-11-23T08:00",), (group,))
    write_json(tmp_path / "batches" / BATCH / "manifest.json", manifest.to_json())
    episodes = [an_episode(trajectory_id=name) for name in group.trajectory_ids]
    write_episodes_parquet(tmp_path / "batches" / BATCH / "episodes.parquet", episodes)
    return tmp_path


def a_result(data: Path, path: Path | RemoteCheckpoint | None = None) -> TrainingResult:
    checkpoint = path or a_checkpoint(data / "checkpoints", 1)
    known = "d" * 64 if isinstance(checkpoint, RemoteCheckpoint) else checkpoint_digest(checkpoint)
    curve = [{"update": float(n), "loss/train": 0.5 - n / 10} for n in range(2)]
    return TrainingResult(BATCH, LINE, 0, 1, checkpoint, known, {"loss/train": 0.45}, curve, 3.0, "cpu")


def recorded(data: Path) -> list[Any]:
    """The records of the one offline run that there is, once its last is on disk: wandb writes beside this process."""
    (path,) = (data / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60
    while True:
        found = list(_records(path.read_bytes()))
        if found and found[-1].HasField("exit"):
            return found
        assert time.monotonic() < deadline, "wandb did not write its last record"
        time.sleep(0.05)


def _records(log: bytes) -> Iterator[Any]:
    whole = b""
    for kind, part in _chunks(log):
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):
            record = records.Record()  # pyright: ignore[reportAttributeAccessIssue]
            record.ParseFromString(whole)
            yield record


def _chunks(log: bytes) -> Iterator[tuple[int, bytes]]:
    """Parts of records: 1 whole, 2 first, 3 middle, 4 last. The format is LevelDB's log, after 7 bytes of W&B's."""
    at = 7
    while at + 7 <= len(log):
        size, kind = struct.unpack_from("<HB", log, at + 4)
        if at + 7 + size > len(log):  # still being written
            return
        if kind == 0:
            at = (at // 32768 + 1) * 32768
            continue
        yield kind, log[at + 7 : at + 7 + size]
        at += 7 + size
        if 32768 - at % 32768 < 7:
            at = (at // 32768 + 1) * 32768


def artifacts(data: Path) -> dict[str, dict[str, Any]]:
    """By name: type, metadata, names of files, aliases."""
    found = {}
    for record in recorded(data):
        artifact = record.request.log_artifact.artifact if record.HasField("request") else record.artifact
        if artifact.name:
            found[artifact.name] = {
                "type": artifact.type,
                "metadata": json.loads(artifact.metadata),
                "files": sorted(entry.path for entry in artifact.manifest.contents),
                "aliases": sorted(artifact.aliases),
            }
    return found


def test_a_run_that_is_tracked_offline_holds_the_curve_and_the_lineage_from_model_to_episodes(data: Path):
    result = a_result(data)
    where = Tracking(mode="offline").log_training(result, data / "batches" / BATCH, data)
    assert Path(where).is_dir()
    assert len([r for r in recorded(data) if r.HasField("history")]) == 2
    found = artifacts(data)
    model, batch = found[LINE], found[BATCH]
    groups, episodes = found[f"{BATCH}-groups"], found[f"{BATCH}-episodes"]
    assert [a["type"] for a in (model, batch, groups, episodes)] == ["model", "batch", "groups", "episodes"]
    assert model["metadata"]["digest"] == result.checkpoint_digest
    assert (model["aliases"], model["files"]) == (["latest", "step1"], ["config.json"])
    manifest = json.loads((data / "batches" / BATCH / "manifest.json").read_text(encoding="utf-8"))
    assert batch["metadata"]["digest"] == digest(manifest)
    for made, of, name in (
        (model, batch, BATCH),
        (batch, groups, f"{BATCH}-groups"),
        (groups, episodes, f"{BATCH}-episodes"),
    ):
        assert made["metadata"]["made_of"] == {name: of["metadata"]["digest"]}
    assert episodes["files"] == ["episodes.parquet"]


def test_a_checkpoint_at_wandb_is_named_and_not_logged_again(data: Path):
    path = RemoteCheckpoint(f"wandb-artifact:///market-agents/rl-assets/{LINE}:step1")
    Tracking(mode="offline").log_training(a_result(data, path), data / "batches" / BATCH, data)
    assert LINE not in artifacts(data)
    said = [item.value_json for r in recorded(data) if r.HasField("run") for item in r.run.config.update]
    assert any("market-agents/rl-assets/babylon-agent:step1" in value for value in said)


@pytest.mark.parametrize(
    ("mode", "words"), [("disabled", "not tracked"), ("online", "WANDB_API_KEY is not set"), ("loud", "no W&B mode")]
)
def test_what_is_not_tracked_says_why_and_stops_nothing(data: Path, mode: str, words: str):
    assert words in Tracking(mode=mode).log_training(a_result(data), data / "batches" / BATCH, data)
    assert not (data / "wandb").exists()


def test_an_artifact_is_used_only_with_the_digest_that_was_registered(tmp_path: Path):
    original = a_checkpoint(tmp_path / "original", 1)
    known, target = checkpoint_digest(original), tmp_path / "restored" / "0001"

    def download(text: str) -> Any:
        def into(name: str, directory: Path) -> None:
            (directory / "config.json").write_text(text, encoding="utf-8")

        return into

    with pytest.raises(MissingCheckpoint, match="is not what was registered"):
        fetch_checkpoint("e/p/line:step1", known, target, download('{"step": 2}'))
    assert list(target.parent.iterdir()) == []
    fetch_checkpoint("e/p/line:step1", known, target, download('{"step": 1}'))
    assert checkpoint_digest(target) == known


def test_a_broken_manifest_is_not_tracked(data: Path):
    (data / "batches" / BATCH / "manifest.json").write_text("{", encoding="utf-8")
    assert "not tracked: the manifest is not JSON" in Tracking(mode="offline").log_training(
        a_result(data), data / "batches" / BATCH, data
    )


def test_a_lost_checkpoint_is_asked_of_wandb_and_a_whole_one_is_left_alone(
    conn: psycopg.Connection, postgres_url: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    for name, value in {
        "DATABASE_URL": postgres_url,
        "DAGSTER_PG_URL": postgres_url,
        "WANDB_PROJECT": "markets",
    }.items():
        monkeypatch.setenv(name, value)
    base = a_base(conn, data)
    assert isinstance(base.checkpoint_path, Path)
    assert cli.run(["models", "restore", "0"]) == 0
    assert "is what was registered as step 0" in capsys.readouterr().out
    kept = base.checkpoint_path.rename(data / "kept")
    assert cli.run(["models", "restore", "0"]) == cli.FAILED
    assert f"artifact markets/{LINE}:step0 cannot be had from W&B" in capsys.readouterr().err

    def download(name: str, directory: Path) -> None:
        shutil.copytree(kept, directory, dirs_exist_ok=True)

    monkeypatch.setattr("rl_assets.tracking._download", download)
    assert cli.run(["models", "restore", "0"]) == 0
    assert checkpoint_digest(base.checkpoint_path) == base.digest

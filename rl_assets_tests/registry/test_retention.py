from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psycopg
import pytest

from rl_assets.errors import MissingCheckpoint
from rl_assets.registry import archive, retention
from rl_assets.registry.models import get_model, promote, reject, rollback
from rl_assets.registry.partial import STILL_SECONDS, abandoned, partial_directory, sweep
from rl_assets.registry.retention import forget_pruning, needed_steps, prunable, prune, pruned_steps
from rl_assets_tests.registry.made import LINE, a_base, a_batch, a_candidate, a_checkpoint, evaluated
from rl_assets_tests.registry.played import begun


def rejected(conn: psycopg.Connection, root: Path, *steps: int) -> None:
    for step in steps:
        evaluated(conn, a_candidate(conn, root, step), promote=False)
        reject(conn, LINE, step)


def left(root: Path) -> list[str]:
    return sorted(path.name for path in (root / LINE).iterdir())


def test_what_nothing_needs_goes_and_the_newest_stay(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    rejected(conn, tmp_path, 1, 2, 3, 4)
    size = (tmp_path / LINE / "0001" / "config.json").stat().st_size
    told = prune(conn, LINE, tmp_path / LINE, keep=2, dry_run=True)
    assert [(p.step, p.bytes) for p in told] == [(1, size), (2, size)]
    assert left(tmp_path) == ["0000", "0001", "0002", "0003", "0004"]
    assert prune(conn, LINE, tmp_path / LINE, keep=2) == told
    assert left(tmp_path) == ["0000", "0003", "0004"]
    assert pruned_steps(conn, LINE) == {1, 2}
    assert prune(conn, LINE, tmp_path / LINE, keep=2) == []
    # The number of the next step follows the newest on disk, so that one stays whatever is asked for.
    assert [p.step for p in prune(conn, LINE, tmp_path / LINE, keep=0)] == [3]


def test_what_is_live_was_live_is_on_its_way_or_is_referenced_stays(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    for step in (1, 2):
        evaluated(conn, a_candidate(conn, tmp_path, step), promote=True)
        promote(conn, LINE, step)
    rollback(conn, LINE, "a test")  # step 2 is taken back, 1 is live on top of 0
    a_batch(conn, "again", 2, state="rejected")  # a batch was trained on step 2 all the same
    rejected(conn, tmp_path, 3)
    a_candidate(conn, tmp_path, 4)
    rejected(conn, tmp_path, 5)
    assert needed_steps(conn, LINE) == {0, 1, 2, 4}
    assert [m.step for m in prunable(conn, LINE, tmp_path / LINE, 1)] == [3]


def test_both_models_of_a_rollout_stay(conn: psycopg.Connection, tmp_path: Path):
    begun(conn, tmp_path)
    rejected(conn, tmp_path, 2)
    assert prune(conn, LINE, tmp_path / LINE, keep=1) == []
    assert left(tmp_path) == ["0000", "0001", "0002"]


class Killed(BaseException):
    """In place of a SIGKILL."""


@pytest.mark.parametrize("point", ["before it is moved", "before it is deleted", "while it is deleted"])
def test_a_killed_prune_is_finished_by_the_next(
    conn: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
):
    a_base(conn, tmp_path)
    rejected(conn, tmp_path, 1, 2, 3)

    def killed(*_: object) -> None:
        if point == "while it is deleted":
            (tmp_path / LINE / ".pruned-0001" / "config.json").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        place, name = (retention.os, "replace") if point == "before it is moved" else (retention.shutil, "rmtree")
        patch.setattr(place, name, killed)
        with pytest.raises(Killed):
            prune(conn, LINE, tmp_path / LINE, keep=1)
    assert [p.step for p in prune(conn, LINE, tmp_path / LINE, keep=1, dry_run=True)] == [1, 2]
    assert [p.step for p in prune(conn, LINE, tmp_path / LINE, keep=1)] == [1, 2]
    assert left(tmp_path) == ["0000", "0003"]
    assert conn.execute("SELECT count(*) FROM rl_assets.pruned_checkpoints WHERE gone_at IS NULL").fetchone() == (0,)


def test_a_step_that_is_needed_again_before_it_was_moved_stays(
    conn: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    a_base(conn, tmp_path)
    rejected(conn, tmp_path, 1, 2)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(retention, "_finish", lambda *_: (_ for _ in ()).throw(Killed()))
        prune(conn, LINE, tmp_path / LINE, keep=1)
    a_batch(conn, "later", 1, state="reserved")
    assert prune(conn, LINE, tmp_path / LINE, keep=1) == []
    assert left(tmp_path) == ["0000", "0001", "0002"]
    assert pruned_steps(conn, LINE) == set()


def test_a_row_that_names_another_place_deletes_nothing(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    rejected(conn, tmp_path, 1, 2)
    precious = a_checkpoint(tmp_path / "elsewhere", 1)
    conn.execute("UPDATE rl_assets.models SET checkpoint_path = %s WHERE step = 1", [str(precious)])
    assert prune(conn, LINE, tmp_path / LINE, keep=1) == []
    conn.execute(
        "INSERT INTO rl_assets.pruned_checkpoints (model_line, step, path, bytes) VALUES (%s, 1, %s, 0)",
        [LINE, str(precious)],
    )
    assert prune(conn, LINE, tmp_path / LINE, keep=1) == []
    assert (precious / "config.json").is_file()


@pytest.mark.parametrize("store", ["memory://test-{}", "file://{}/store", "{}/store"])
def test_what_is_pruned_goes_from_the_store_and_from_the_disks_of_other_machines(
    conn: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
):
    monkeypatch.setenv("RL_ASSETS_STORE", store.format(uuid.uuid4().hex if "memory" in store else tmp_path))
    monkeypatch.setenv("RL_ASSETS_DATA", str(tmp_path))
    a_base(conn, tmp_path)
    rejected(conn, tmp_path, 1, 2, 3)
    steps = tmp_path / LINE
    for step in sorted(steps.iterdir()):
        archive.keep(step)
    another = tmp_path / "another"
    shutil.copytree(steps, another)
    shutil.rmtree(steps / "0002")  # the machine that prunes never had it
    told = prune(conn, LINE, steps, keep=1, dry_run=True)
    assert [p.step for p in told] == [1, 2] and all(p.bytes > 0 for p in told)
    assert prune(conn, LINE, steps, keep=1) == told
    assert left(tmp_path) == ["0000", "0003"]
    assert [archive.kept_bytes(steps / f"{n:04d}") is not None for n in range(4)] == [True, False, False, True]
    assert not archive.bring(steps / "0001")
    assert prune(conn, LINE, steps, keep=1) == []
    shutil.rmtree(steps)
    another.rename(steps)
    a_batch(conn, "later", 2, state="reserved")  # needs what this machine alone still has
    assert [p.step for p in prune(conn, LINE, steps, keep=1)] == [1]
    assert left(tmp_path) == ["0000", "0002", "0003"]
    assert archive.kept_bytes(steps / "0002") is not None
    assert pruned_steps(conn, LINE) == {1}


def test_what_was_deleted_says_so_when_it_is_wanted_and_may_come_back(conn: psycopg.Connection, tmp_path: Path):
    from rl_assets.registry.models import playable

    a_base(conn, tmp_path)
    rejected(conn, tmp_path, 1, 2)
    prune(conn, LINE, tmp_path / LINE, keep=1)
    with pytest.raises(MissingCheckpoint, match="is missing or empty; restore it"):
        playable(get_model(conn, LINE, 1))
    forget_pruning(conn, LINE, 1)
    assert pruned_steps(conn, LINE) == set()


FILLS = """
import sys, time
from pathlib import Path
from rl_assets.registry.partial import partial_directory
with partial_directory(Path(sys.argv[1]) / "0007") as partial:
    (partial / "model.safetensors").write_bytes(b"half")
    print(partial, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_save_left_is_swept_and_what_a_live_one_fills_is_not(conn: psycopg.Connection, tmp_path: Path):
    checkpoints = tmp_path / LINE
    a_base(conn, tmp_path)
    command = [sys.executable, "-c", FILLS, str(checkpoints)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as saving:
        assert saving.stdout is not None
        partial = Path(saving.stdout.readline().strip())
        later = time.time() + 2 * STILL_SECONDS
        assert abandoned(checkpoints, later) == []
        assert not sweep(partial)
        os.kill(saving.pid, signal.SIGKILL)
        saving.wait()
    assert partial.is_dir()
    # Fresh ones wait: the file system may know no locks.
    assert abandoned(checkpoints) == []
    assert abandoned(checkpoints, later) == [partial]
    for path in (partial / "model.safetensors", partial):
        os.utime(path, (0, 0))
    assert [(p.step, p.path, p.bytes) for p in prune(conn, LINE, checkpoints)] == [(None, partial, 4)]
    assert left(tmp_path) == ["0000"]


def test_a_directory_in_the_making_is_moved_or_gone(tmp_path: Path):
    with partial_directory(tmp_path / "0001") as partial:
        (partial / "a").write_text("b", encoding="utf-8")
        partial.rename(tmp_path / "0001")
    assert [path.name for path in tmp_path.iterdir()] == ["0001"]
    with pytest.raises(RuntimeError), partial_directory(tmp_path / "0002"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["0001"]

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from rl_assets import cli
from rl_assets.errors import ConfigurationError, LedgerConflict, MalformedInput, RlAssetsError


@pytest.fixture
def failing() -> Iterator[Callable[[Exception], list[str]]]:
    """Gives a command line whose command raises the given error."""
    name = "fail-for-a-test"

    def line(error: Exception) -> list[str]:
        def callback() -> None:
            raise error

        cli.cli.add_command(click.Command(name, callback=callback))
        return [name]

    yield line
    cli.cli.commands.pop(name, None)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DATABASE_URL", "DAGSTER_PG_URL", "TRAINING_MIN_TRAJECTORIES", "TRAINING_GROUP_SIZE"):
        monkeypatch.setenv(name, "")  # counts as unset, and what a command puts there is taken away again
    monkeypatch.setenv("RL_ASSETS_DATA", str(tmp_path))
    return tmp_path


def test_help_answers_without_loading_what_takes_long():
    heavy = "{'numpy', 'torch', 'dagster', 'psycopg', 'rich', 'transformers', 'art'}"
    code = f"import sys, rl_assets.cli; print(sorted({heavy} & set(sys.modules)))"
    began = time.monotonic()
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.strip() == "[]"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "error, code",
    [
        (ConfigurationError("set it to 5"), cli.BAD_INPUT),
        (MalformedInput("regenerate it"), cli.BAD_INPUT),
        (LedgerConflict("wait for it"), cli.FAILED),
    ],
)
def test_an_error_is_one_sentence_and_a_code(failing, capsys: pytest.CaptureFixture[str], error: Exception, code: int):
    assert cli.run(failing(error)) == code
    assert capsys.readouterr().err == f"rl-assets: {error}\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/data/x"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_as_such_wherever_it_comes_from(
    failing, capsys: pytest.CaptureFixture[str], error: Exception
):
    wrapped = MalformedInput("could not write")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        assert cli.run(failing(each)) == cli.FAILED
        assert capsys.readouterr().err == f"rl-assets: {cli.DISK_FULL}\n"


def test_an_error_of_ours_is_not_hidden(failing):
    with pytest.raises(ZeroDivisionError):
        cli.run(failing(ZeroDivisionError()))


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nope"], "No such command 'nope'"),
        (["harness", "--siblings", "many"], "'many' is not a valid integer"),
        (["harness", "--siblings", "0"], "siblings=0 is outside 1..512"),
        (["harness", "--seed", "-1"], "seed=-1 is outside"),
        (["harness", "--agents", "model,zeus"], "there is no agent zeus"),
        (["harness", "--force"], "--force needs --train"),
        (["harness", "--threshold", "0"], "TRAINING_MIN_TRAJECTORIES='0'"),
    ],
)
def test_bad_options_end_before_anything_begins(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
):
    assert cli.run(arguments) == cli.BAD_INPUT
    assert said in capsys.readouterr().err
    assert list(data.iterdir()) == []


def test_a_bad_threshold_ends_every_command(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TRAINING_MIN_TRAJECTORIES", "abc")
    for arguments in (["harness"], ["demo"], ["verify"], ["train"], ["db", "status"], ["ui"]):
        assert cli.run(arguments) == cli.BAD_INPUT
        assert "TRAINING_MIN_TRAJECTORIES='abc'" in capsys.readouterr().err
    assert list(data.iterdir()) == []


def test_a_database_that_does_not_answer_is_said_without_its_password(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hunter2@127.0.0.1:1/babylon")
    monkeypatch.setenv("DAGSTER_PG_URL", "postgresql://me:hunter2@127.0.0.1:1/dagster")
    for arguments in (["db", "status"], ["db", "migrate"], ["models", "list"], ["train"], ["harness"]):
        assert cli.run(arguments) == cli.FAILED
        said = capsys.readouterr().err
        assert said.startswith("rl-assets: ")
        assert said.count("\n") == 1
        assert "hunter2" not in said


def test_one_database_url_alone_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@127.0.0.1:1/babylon")
    assert cli.run(["demo"]) == cli.BAD_INPUT
    assert "DAGSTER_PG_URL" in capsys.readouterr().err


def test_a_port_in_use_is_said_before_anything_starts(data: Path, capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.run(["ui", "--port", str(port)]) == cli.BAD_INPUT
    assert f"port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err
    assert list(data.iterdir()) == []


def test_a_malformed_snapshot_is_named(data: Path, capsys: pytest.CaptureFixture[str]):
    name = "train-000001-0123456789ab"
    (data / "snapshots" / name).mkdir(parents=True)
    (data / "snapshots" / name / "public.json").write_text('{"format": "rl-assets.snapshot/1"')
    assert cli.run(["snapshots", "audit"]) == cli.BAD_INPUT
    said = capsys.readouterr().err
    assert name in said
    assert "regenerate" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk small enough to fill")
def test_a_disk_that_fills_leaves_nothing_half_written(data: Path, capsys: pytest.CaptureFixture[str]):
    from rl_assets.market.generate import generate
    from rl_assets.market.snapshot import load_snapshot, load_truth, save_snapshot

    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(data)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"this machine does not mount: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(RlAssetsError, match="No space left"):
            for seed in range(1000):
                save_snapshot(data / "snapshots", *generate("train", seed))
        names = [path.parent.name for path in (data / "snapshots").glob("*/public.json")]
        assert names
        for name in names:
            load_snapshot(data / "snapshots", name)
            load_truth(data / "snapshots", name)
        assert not [path for path in data.rglob(".*") if path.is_file()]
    finally:
        subprocess.run(["umount", str(data)], check=True)

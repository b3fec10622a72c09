import json
import logging
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from rl_assets.errors import ConfigurationError
from rl_assets.logs import JsonFormatter, JsonLines, install, log_file
from rl_assets.settings import REPOSITORY


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["batch-1"]))
def quick(context: dg.AssetExecutionContext) -> None:
    logging.getLogger("rl_assets.training.service").warning("step %d with %s", 3, "judge-key-1")
    context.log.info("two\nlines")


@dg.asset
def broken() -> None:
    raise ValueError("no such thing")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RL_ASSETS_JSON_LOG", str(tmp_path / "log.jsonl"))
    monkeypatch.setenv("RULER_JUDGE_API_KEY", "judge-key-1")
    return tmp_path / "log.jsonl"


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def materialized(*assets: dg.AssetsDefinition, partition: str | None = None) -> dg.ExecuteInProcessResult:
    """In an instance that logs as dagster.yaml says."""
    python_logs = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())["python_logs"]
    with dg.instance_for_test(overrides={"python_logs": python_logs}) as instance:
        return dg.materialize(assets, instance=instance, partition_key=partition, raise_on_error=False)


def test_a_run_writes_one_object_per_record_with_where_it_belongs(file: Path):
    run_id = materialized(quick, partition="batch-1").run_id
    found = lines(file)
    ours = next(line for line in found if line["logger"] == "rl_assets.training.service")
    assert ours["message"] == "step 3 with ***"
    assert (ours["level"], ours["run_id"], ours["asset"]) == ("WARNING", run_id, "quick")
    assert (ours["partition"], ours["batch"]) == ("batch-1", "batch-1")
    assert [line["message"] for line in found].count("two\nlines") == 1
    assert any(line.get("event") == "ASSET_MATERIALIZATION" for line in found)


def test_a_failure_comes_with_its_traceback(file: Path):
    materialized(broken)
    (failed,) = [line for line in lines(file) if line.get("event") == "STEP_FAILURE"]
    assert "no such thing" in failed["error"]
    assert failed["level"] == "ERROR"


def test_nothing_is_written_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RL_ASSETS_JSON_LOG", "")
    monkeypatch.chdir(tmp_path)
    before = list(logging.getLogger("rl_assets").handlers)
    install()
    JsonLines().emit(logging.makeLogRecord({"msg": "x"}))
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger("rl_assets").handlers == before


def test_what_is_logged_outside_runs_is_there_once(file: Path):
    code = (
        "import logging; from rl_assets.logs import install; install(); install();"
        "logging.getLogger('rl_assets.a2a').error('gone')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
    assert [(line["logger"], line["message"]) for line in lines(file)] == [("rl_assets.a2a", "gone")]


def test_stderr_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("RL_ASSETS_JSON_LOG", "-")
    JsonLines().emit(logging.makeLogRecord({"msg": "here", "levelname": "INFO"}))
    assert json.loads(capsys.readouterr().err)["message"] == "here"


def test_a_directory_that_is_not_there_is_said():
    with pytest.raises(ConfigurationError, match="RL_ASSETS_JSON_LOG"):
        log_file({"RL_ASSETS_JSON_LOG": "/no/such/directory/log"})


def test_a_line_is_one_line_whatever_is_in_it():
    said = JsonFormatter().format(logging.makeLogRecord({"msg": "a\nb\u2028\x00c"}))
    assert "\n" not in said
    assert json.loads(said)["message"] == "a\nb\u2028\x00c"

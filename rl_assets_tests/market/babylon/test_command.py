"""`rl-assets snapshots import`: what a person sees, and what is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl_assets import cli
from rl_assets.market.snapshot import load_snapshot, load_truth
from rl_assets_tests.market.babylon.made import generated, written


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RL_ASSETS_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "snapshots"


def test_a_file_is_imported_and_judged(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = written(tmp_path, generated())
    assert cli.run(["snapshots", "import", str(path)]) == 0
    name, *said = capsys.readouterr().out.splitlines()
    assert load_truth(data, name).digest == load_snapshot(data, name).truth_digest
    assert said[-1].startswith("verdict: ")
    assert "future_is_hidden" in said[-1]
    files = {file: file.read_bytes() for file in data.rglob("*.json")}
    assert len(files) == 2
    assert cli.run(["snapshots", "import", str(path)]) == 0
    assert {file: file.read_bytes() for file in data.rglob("*.json")} == files


def test_a_malformed_file_is_one_sentence_and_leaves_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = generated()
    file["ticks"][2]["state"]["perpetualMarkets"][0]["price"] = None
    assert cli.run(["snapshots", "import", str(written(tmp_path, file))]) == cli.BAD_INPUT
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "ticks[2].state.perpetualMarkets[0].price" in said.err
    assert not data.exists()


def test_an_imported_snapshot_is_audited_by_name_and_left_out_otherwise(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cli.run(["snapshots", "import", str(written(tmp_path, generated()))])
    name = capsys.readouterr().out.splitlines()[0]
    assert cli.run(["snapshots", "audit"]) == 0
    assert "0 snapshots audited" in capsys.readouterr().out
    assert cli.run(["snapshots", "audit", name]) == 1
    assert "1 snapshots audited" in capsys.readouterr().out

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from rl_assets.commands.models import models
from rl_assets.registry.checkpoints import base_path
from rl_assets.registry.models import champion_step
from rl_assets.settings import REPOSITORY
from rl_assets_tests.registry.made import LINE
from rl_assets_tests.registry.played import begun
from rl_assets_tests.registry.test_lineage import trained
from rl_assets_tests.registry.test_retention import rejected


@pytest.fixture
def root(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where steps of the line are, for commands on a database of their own."""
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("DAGSTER_PG_URL", postgres_url)
    monkeypatch.setenv("RL_ASSETS_DATA", str(tmp_path))
    monkeypatch.setenv("TRAINING_MODEL_LINE", LINE)
    steps = tmp_path / "elsewhere"
    (steps / LINE).mkdir(parents=True)
    checkpoints = base_path(tmp_path, LINE).parent
    checkpoints.parent.mkdir(parents=True)
    checkpoints.symlink_to(steps / LINE)
    return steps


def said(*arguments: str) -> Result:
    return CliRunner().invoke(models, arguments, catch_exceptions=False)


def test_the_lineage_of_what_is_deployed_is_told_drawn_and_given_as_json(
    conn: psycopg.Connection, root: Path, tmp_path: Path
):
    begun(conn, root)
    assert "base policy" not in said("lineage").output
    trained(conn, root, 2)
    told = said("lineage", "2", "--picture", str(tmp_path / "lineage.png"))
    assert told.exit_code == 0
    assert "2026-11-23T09:00" in told.output
    assert "benchmark-train" in told.output
    assert Image.open(tmp_path / "lineage.png").width == 900
    newest, base = json.loads(said("lineage", "2", "--json", "--episodes").output)
    assert (newest["step"], newest["episodes"], newest["groups"], base["step"]) == (2, 40, 4, 0)
    one = newest["sources"][0]
    assert one["trajectory_id"] in said("lineage", "2", "--episodes").output
    assert "sources" not in json.loads(said("lineage", "2", "--json").output)[0]
    (only,) = json.loads(said("lineage", "deployed", "--json").output)
    assert only["step"] == 0
    assert said("lineage", "newest").exit_code == 2


def test_a_rollout_is_shown_and_rolled_back_in_one_command(conn: psycopg.Connection, root: Path):
    assert "no candidate of babylon-agent has been rolled out yet" in said("rollout").output
    begun(conn, root)
    assert "step 1 beside step 0: staged, 10 % of the agents" in said("rollout").output
    assert "step 0, version v1.0.0 (before: step 1" in said("rollback", "--reason", "it looks odd").output
    assert champion_step(conn, LINE) == 0
    shown = said("rollout").output
    assert "rolled_back, 0 % of the agents" in shown
    assert "it looks odd" in shown


def test_pruning_says_what_it_would_do_and_does_it(conn: psycopg.Connection, root: Path):
    begun(conn, root)
    rejected(conn, root, 2, 3)
    would = said("prune", "--keep", "1", "--dry-run").output
    assert "would delete steps 2: 0.0 MiB" in would
    assert (root / LINE / "0002").is_dir()
    assert said("prune").output == "deleted steps none: 0.0 MiB\n"
    assert "deleted steps 2" in said("prune", "--keep", "1").output
    assert sorted(path.name for path in (root / LINE).iterdir()) == ["0000", "0001", "0003"]
    assert "(deleted)" in said("lineage", "2").output


def test_pruning_loads_nothing_that_trains(conn: psycopg.Connection, root: Path):
    code = (
        "import sys; from rl_assets.cli import run; run(['models', 'prune', '--dry-run']); "
        "print([m for m in ('torch', 'transformers', 'art') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["would delete steps none: 0.0 MiB", "[]"]

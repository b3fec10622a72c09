"""Commands on a database in which nothing is yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl_assets.cli import FAILED, run


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["models", "list"], 0, "babylon-agent"),
        (["models", "show"], FAILED, "has no model yet; materialize base_policy, or run `rl-assets harness`"),
        (["models", "rollback", "--reason", "a test"], FAILED, "has no champion yet; materialize base_policy"),
        (["models", "restore", "1"], FAILED, "has no step 1"),
        (["batches", "list"], 0, "babylon-agent"),
        (["snapshots", "list"], 0, "0 snapshots"),
        (["train"], 3, "has no champion yet; materialize base_policy"),
        (["verify"], FAILED, "rl-assets db migrate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_not_there_yet_is_said_in_words(
    empty_postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
):
    for name in ("DATABASE_URL", "DAGSTER_PG_URL"):
        monkeypatch.setenv(name, empty_postgres_url)
    monkeypatch.setenv("RL_ASSETS_DATA", str(tmp_path))
    monkeypatch.setenv("RL_ASSETS_DAGSTER_DIR", str(tmp_path / "dagster"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert run(arguments) == code
    seen = capsys.readouterr()
    assert said in seen.out + seen.err
    assert "LINE 1" not in seen.out

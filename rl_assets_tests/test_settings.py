from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.errors import ConfigurationError
from rl_assets.settings import REPOSITORY, Settings, prepare_environment


def test_defaults_need_no_environment():
    settings = Settings.from_env({})
    assert settings.data_dir == REPOSITORY / "data"
    assert settings.database_url is None
    assert (settings.min_trajectories, settings.group_size) == (1000, 8)


def test_a_data_directory_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert Settings.from_env({"RL_ASSETS_DATA": "here"}).data_dir == tmp_path / "here"


@pytest.mark.parametrize("value", ["0", "abc", "-1", "1.5", "1e3", "１", "10_0", "99999999999"])
def test_a_threshold_that_cannot_be_used_is_named_with_its_remedy(value: str):
    with pytest.raises(ConfigurationError) as raised:
        Settings.from_env({"TRAINING_MIN_TRAJECTORIES": value})
    message = str(raised.value)
    assert "TRAINING_MIN_TRAJECTORIES" in message
    assert repr(value) in message
    assert "unset it for 1000" in message


@given(st.integers(1, 10_000_000))
def test_every_other_threshold_is_taken_as_it_is(value: int):
    assert Settings.from_env({"TRAINING_MIN_TRAJECTORIES": f" {value} "}).min_trajectories == value


def test_a_group_of_one_compares_nothing():
    with pytest.raises(ConfigurationError, match="TRAINING_GROUP_SIZE='1'"):
        Settings.from_env({"TRAINING_GROUP_SIZE": "1"})


def test_a_database_url_of_another_kind_is_refused_without_showing_its_password():
    with pytest.raises(ConfigurationError) as raised:
        Settings.from_env({"DATABASE_URL": "mysql://me:hunter2@host/db"})
    assert "DATABASE_URL" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_what_a_person_has_set_stays():
    env = {"HF_HUB_OFFLINE": "0", "WANDB_MODE": "online"}
    prepare_environment(env)
    assert env["HF_HUB_OFFLINE"] == "0"
    assert env["WANDB_MODE"] == "online"
    assert env["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
    assert env["DAGSTER_HOME"] == str(REPOSITORY)


def test_tracking_is_off_unless_there_is_a_key():
    without, with_key = {}, {"WANDB_API_KEY": "k"}
    prepare_environment(without)
    prepare_environment(with_key)
    assert without["WANDB_MODE"] == "disabled"
    assert "WANDB_MODE" not in with_key


def test_a_model_makes_ruler_the_judge_and_its_key_is_never_shown():
    env = {
        "RULER_JUDGE_MODEL": "openai/qwen",
        "RULER_JUDGE_BASE_URL": "http://127.0.0.1:8000/v1/",
        "RULER_JUDGE_API_KEY": "k-123",
        "RULER_JUDGE_DOLLARS_PER_DAY": "2.5",
        "RULER_JUDGE_OUTCOME_WEIGHT": "0",
    }
    assert Settings.from_env({}).judge == "outcome"
    settings = Settings.from_env(env)
    assert settings.judge == "ruler"
    assert (settings.ruler.model, settings.ruler.base_url) == ("openai/qwen", "http://127.0.0.1:8000/v1")
    assert (settings.ruler.dollars_per_day, settings.ruler.outcome_weight, settings.ruler.passes) == (2.5, 0.0, 3)
    assert "k-123" not in repr(settings)


@pytest.mark.parametrize(
    "name, value",
    [
        ("RULER_JUDGE_PASSES", "0"),
        ("RULER_JUDGE_PASSES", "6"),  # more than the passes where they disagree
        ("RULER_JUDGE_OUTCOME_WEIGHT", "0.6"),
        ("RULER_JUDGE_DOLLARS_PER_DAY", "nan"),
        ("RULER_JUDGE_DOLLARS_PER_WINDOW", "-1"),
        ("RULER_JUDGE_INPUT_PRICE", "1"),  # without the other price
        ("RULER_JUDGE_TOKENS_PER_DAY", "1e6"),
        ("RULER_JUDGE_BASE_URL", "localhost:8000"),
        ("RULER_JUDGE_BASE_URL", "https://me:hunter2@judge/v1"),
        ("RULER_JUDGE_BASE_URL", "https://judge/v1?key=hunter2"),
    ],
)
def test_a_setting_of_the_judge_that_cannot_be_used_is_named(name: str, value: str):
    with pytest.raises(ConfigurationError, match=name) as raised:
        Settings.from_env({name: value})
    assert "hunter2" not in str(raised.value)


def test_a_key_for_wandb_makes_it_the_backend_of_a_line_of_its_own_unless_told_otherwise():
    def chosen(**env: str) -> tuple[str, str]:
        settings = Settings.from_env(env)
        return settings.backend, settings.model_line

    assert chosen() == ("cpu", "babylon-agent")
    assert chosen(WANDB_API_KEY="k") == ("serverless", "babylon-agent-serverless")
    assert chosen(WANDB_API_KEY="k", TRAINING_BACKEND="cpu") == ("cpu", "babylon-agent")
    assert chosen(WANDB_API_KEY="k", TRAINING_MODEL_LINE="mine") == ("serverless", "mine")
    assert "k-secret" not in repr(Settings.from_env({"WANDB_API_KEY": "k-secret"}))
    with pytest.raises(ConfigurationError, match="TRAINING_BACKEND='tpu' is unknown"):
        chosen(TRAINING_BACKEND="tpu")
    with pytest.raises(ConfigurationError, match="SERVERLESS_BASE_URL is not the URL"):
        chosen(SERVERLESS_BASE_URL="api.training.wandb.ai")


def test_every_variable_that_is_read_is_in_the_table_of_operations():
    named = re.compile(r'"((?:RL_ASSETS|TRAINING|RULER|SERVERLESS|LOCAL|LIVE|BABYLON|DATABASE|DAGSTER_PG)_[A-Z_]+)"')
    sources = (path.read_text("utf-8") for path in (REPOSITORY / "rl_assets").rglob("*.py"))
    read = {name for source in sources for name in named.findall(source)}
    assert {"DATABASE_URL", "LIVE_MARKET_URL", "TRAINING_MOST_STALE"} <= read
    told = (REPOSITORY / "docs" / "operations.md").read_text("utf-8")
    assert sorted(name for name in read if f"`{name}`" not in told) == []

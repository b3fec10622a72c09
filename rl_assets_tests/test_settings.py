from __future__ import annotations

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

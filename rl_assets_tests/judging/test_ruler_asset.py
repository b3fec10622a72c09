"""`judged_rankings` with an LLM as its judge: from files and the database to the queue and the metadata."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import psycopg
import pytest

from rl_assets.assets.rankings import judged_rankings
from rl_assets.errors import ConfigurationError
from rl_assets.judging.parts import Chosen, Judging, Part
from rl_assets.resources import Database, Judge, Lake
from rl_assets.store.database import connect
from rl_assets.store.episode_files import write_episodes_parquet
from rl_assets.store.judge_calls import spent
from rl_assets.store.window_files import write_groups
from rl_assets_tests.judging import judge_server as modes
from rl_assets_tests.judging.judge_server import LoopbackJudge
from rl_assets_tests.judging.ruler_made import episode, grouped, settings
from rl_assets_tests.store.made import WINDOW

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A window with three groups of five."""
    made = [[episode(f"{name}{n}", 20 * n + 10, system=name) for n in range(5)] for name in ("one", "two", "bad")]
    lake = Lake(directory=str(tmp_path))
    directory = lake.tree.window(WINDOW).directory
    directory.mkdir(parents=True)
    write_episodes_parquet(directory / "trajectories.parquet", [e for members in made for e in members])
    groups = [grouped(members, like=members[0].system, planted=members is made[0]) for members in made]
    write_groups(directory / "groups.parquet", groups)
    return lake


def judged(url: str, lake: Lake, judge: Judge) -> dg.ExecuteInProcessResult:
    resources = {"database": Database(url=url), "lake": lake, "judge": judge}
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize([judged_rankings], partition_key=WINDOW, resources=resources, instance=instance)


def metadata(result: dg.ExecuteInProcessResult) -> dict:
    (event,) = result.asset_materializations_for_node("judged_rankings")
    return {name: value.value for name, value in event.metadata.items()}


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}


def test_a_window_is_judged_once_and_its_judging_is_told(
    postgres_url: str, lake: Lake, server: LoopbackJudge, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RULER_JUDGE_API_KEY", "k-123")
    judge = Judge(model="openai/judge", base_url=server.url, outcome_weight=0.0)
    server.mode = lambda asked: (modes.says("?") if "bad" in asked.prompt else modes.by_quality)(asked)
    first = judged(postgres_url, lake, judge)
    assert checks(first) == {"scores_are_whole": True, "judge_repeats_itself": True, "praise_does_not_pay": True}
    told = metadata(first)
    assert told["judge"].startswith("ruler:openai/judge ruler-2-k3-")
    assert told["groups_trainable"] == 2
    assert [row.data for row in told["not_trainable_by_reason"].records] == [{"reason": "judge_parse", "count": 1}]
    assert told["judge_requests"] == len(server.calls) == 12
    assert [row.data for row in told["quarantined_by_class"].records] == [{"class": "parse", "count": 1}]
    assert [row.data for row in told["passes_by_number"].records] == [{"passes": "3", "count": 2}]
    assert (told["canaries"], told["canaries_that_won"]) == (1, 0)
    assert told["tau_between_passes"] == 1.0
    with connect(postgres_url) as conn:
        counts = "SELECT count(*), count(*) FILTER (WHERE judged_in IS NULL) FROM rl_assets.groups"
        assert conn.execute(counts).fetchone() == (3, 1)

    server.mode = modes.by_quality  # what was quarantined is asked again, what was judged is not
    told = metadata(judged(postgres_url, lake, judge))
    assert (told["judge_requests"], told["judge_answers_from_cache"], told["groups_trainable"]) == (3, 6, 3)
    (earlier,) = told["agreement_with_earlier_sets"].records
    assert (earlier.data["groups"], earlier.data["tau"], earlier.data["pairs_flipped"]) == (2, 1.0, 0.0)

    assert "data:image/png;base64" in told["agreement_between_sets"]

    told = metadata(judged(postgres_url, lake, Judge(kind="outcome")))  # another judge keeps the sets of the first
    assert len(told["agreement_with_earlier_sets"].records) == 2
    with connect(postgres_url) as conn:
        assert conn.execute("SELECT count(*) FROM rl_assets.judgement_sets").fetchone() == (3,)


def test_a_judge_that_praise_sways_is_an_alarm(
    postgres_url: str, lake: Lake, server: LoopbackJudge, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RULER_JUDGE_API_KEY", "k-123")
    server.mode = lambda asked: modes.Reply(modes.answer({n: 1.0 - s for n, s in asked.scores.items()}))
    result = judged(postgres_url, lake, Judge(model="openai/judge", base_url=server.url))
    assert checks(result)["praise_does_not_pay"] is False
    (why,) = metadata(result)["not_trainable_by_reason"].records
    assert why.data == {"reason": "judge_canary", "count": 1}


def test_what_a_judge_takes_beside_its_scores_is_asked_once_and_told(
    postgres_url: str, server: LoopbackJudge, tmp_path: Path
):
    members = [episode(f"e{n}", 20 * n + 10, said="because ") for n in range(5)]
    write_episodes_parquet(tmp_path / "trajectories.parquet", members)
    # Without the agents' words, nothing is answered that can be read.
    server.mode = lambda asked: modes.by_quality(asked) if "because" in asked.prompt else modes.says("?")(asked)
    chosen = Chosen("ruler", settings(server))
    group = grouped(members, ablated=True)
    part = Part([group], range(len(members)))
    found = Judging(chosen, tmp_path / "trajectories.parquet", postgres_url)(part)
    assert found.report is not None
    assert found.report.usage.requests == len(server.calls)
    assert len(found.report.seen) == 1
    used = found.report.usage
    with connect(postgres_url) as conn:
        assert spent(conn, group.window_id).window_tokens == used.tokens_in + used.tokens_out


def test_the_environment_chooses_the_judge_and_a_field_overrides_it(
    conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
):
    assert Judge().build(conn).name == "outcome"
    monkeypatch.setenv("RULER_JUDGE_MODEL", "openai/of-the-environment")
    monkeypatch.setenv("RULER_JUDGE_PASSES", "5")
    assert Judge().build(conn).name == "ruler:openai/of-the-environment"
    chosen = Judge(model="openai/mine", passes=1, outcome_weight=0.0).build(conn)
    assert (chosen.name, chosen.criteria["passes"], chosen.criteria["outcome_weight"]) == ("ruler:openai/mine", 1, 0.0)
    assert Judge(kind="outcome").build(conn).name == "outcome"
    with pytest.raises(ConfigurationError, match="use `outcome` or `ruler`"):
        Judge(kind="oracle").build(conn)
    with pytest.raises(ConfigurationError, match="RULER_JUDGE_MOST_PASSES"):
        Judge(passes=7).build(conn)

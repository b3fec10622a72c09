"""Reports of runs and comparisons, the files beside them, and the pictures of how policies play."""

from __future__ import annotations

import csv
import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from rl_assets.episodes import Episode, Policy
from rl_assets.errors import MalformedInput, RlAssetsError
from rl_assets.market.metrics import METRICS, market_day, measure
from rl_assets.reports.behaviour import (
    action_timeline,
    calibration,
    days_by_policy,
    equity_curves,
    price_calibration,
)
from rl_assets.reports.runs import write_comparison_report, write_run_report
from rl_assets.reports.summary import by_policy, paired_difference, summarise
from rl_assets.store.episode_files import read_episodes_parquet
from rl_assets_tests.reports.pages import HOSTILE, Page, played, worlds
from rl_assets_tests.reports.test_plots import opened

FILES = ["episodes.csv", "episodes.parquet", "report.html"]
LEARNER = Policy("babylon-agent", 3)
WORLDS = {snapshot.id: (snapshot, truth) for snapshot, truth in worlds(12)}
RULES = {"news_follower": LEARNER, "random": Policy("random"), "hold": Policy("hold")}
EPISODES = played(list(WORLDS.values()), RULES, siblings=2)
BY_POLICY = by_policy(EPISODES)


def with_logprobs(episode: Episode) -> Episode:
    return replace(
        episode, steps=tuple(replace(s, token_ids=(1, 2), logprobs=(-0.1 * s.tick, -0.5)) for s in episode.steps)
    )


def live(episode: Episode, **changes) -> Episode:
    """An episode as Babylon's app records one: no snapshot, no latent value, its own schema of actions."""
    steps = tuple(replace(s, action={"actionType": "TRADE", "parameters": {}}, credit=None) for s in episode.steps)
    return replace(episode, steps=steps, snapshot_id=None, expected_pnl=None, max_drawdown=None, **changes)


def test_a_run_is_told_in_one_page_with_all_its_episodes_beside_it(tmp_path: Path):
    mine = [with_logprobs(episode) for episode in BY_POLICY[str(LEARNER)]]
    path = write_run_report(tmp_path, mine)
    assert path == tmp_path / "report.html" and sorted(p.name for p in tmp_path.iterdir()) == FILES
    page = Page(path)
    assert not page.faults and len(page.images) == 5 and all(image["alt"] for image in page.images)
    best = max(mine, key=lambda episode: episode.expected_pnl or 0.0)
    for said in ("Run of babylon-agent@3", best.trajectory_id, best.steps[0].observation, best.steps[0].response):
        assert said in page.text
    assert read_episodes_parquet(tmp_path / "episodes.parquet") == mine
    with (tmp_path / "episodes.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["trajectory_id"] for row in rows] == [episode.trajectory_id for episode in mine]
    assert [float(row["expected_pnl"]) for row in rows] == [episode.expected_pnl for episode in mine]
    assert rows[0]["policy"] == "babylon-agent@3" and rows[0]["market_day"] == "200000" and rows[0]["ticks"] == "6"


def test_a_comparison_pairs_each_policy_with_the_first(tmp_path: Path):
    order = {name: BY_POLICY[name] for name in ("hold", "random", str(LEARNER))}
    page = Page(write_comparison_report(tmp_path, order))
    assert not page.faults and sorted(p.name for p in tmp_path.iterdir()) == FILES
    assert "Comparison of hold, random, babylon-agent@3" in page.text
    assert "PnL less that of hold" in page.text and "baseline" in page.text
    assert pq.read_table(tmp_path / "episodes.parquet").num_rows == len(EPISODES)


def test_with_the_worlds_at_hand_orders_are_measured_by_what_they_turned_out_to_be_worth(tmp_path: Path):
    named = {"the baseline": BY_POLICY["hold"], "the learner": BY_POLICY[str(LEARNER)]}
    for path, policy in (
        (write_run_report(tmp_path / "run", BY_POLICY[str(LEARNER)], worlds=WORLDS), "babylon-agent@3"),
        (write_comparison_report(tmp_path / "both", named, worlds=WORLDS), "the learner"),
    ):
        page = Page(path)
        assert not page.faults
        assert all(name.replace("_", " ") in page.text and meaning in page.text for name, meaning in METRICS.items())
        measured = measure({str(LEARNER): BY_POLICY[str(LEARNER)]}, WORLDS)[str(LEARNER)].values["hit_rate"]
        assert measured is not None
        assert f"{measured.mean:.3f}" in page.text and policy in page.text
    with pytest.raises(MalformedInput, match="is not given; load it first"):
        write_run_report(tmp_path / "none", EPISODES[:1], worlds={})
    assert not (tmp_path / "none").exists()


def test_a_paired_difference_is_over_shared_snapshots_and_their_days():
    mine, hold = BY_POLICY[str(LEARNER)], BY_POLICY["hold"]
    difference = paired_difference(mine, hold)
    assert difference is not None and difference.clusters == 3
    mean = sum(episode.expected_pnl or 0.0 for episode in mine) / len(mine)
    assert difference.mean == pytest.approx(mean)
    richer = [replace(episode, expected_pnl=(episode.expected_pnl or 0.0) + 7.0) for episode in mine]
    shifted = paired_difference(richer, mine)
    assert shifted is not None
    assert (shifted.mean, shifted.low, shifted.high) == pytest.approx((7.0, 7.0, 7.0))
    assert paired_difference(mine, [live(episode) for episode in hold]) is None


def test_intervals_are_over_market_days_and_absent_where_there_is_one():
    rows = {row.policy: row for row in summarise(BY_POLICY)}
    row = rows[str(LEARNER)]
    assert row.days == 3 and row.expected is not None and row.expected.clusters == 3
    one = summarise({"hold": BY_POLICY["hold"][:2]})[0].expected
    assert one is not None and one.clusters == 1 and one.low != one.low
    assert market_day(EPISODES[0]) == "200000"
    assert market_day(replace(EPISODES[0], snapshot_id="babylon-7")) == "babylon-7"
    assert market_day(replace(EPISODES[0], snapshot_id=None)) == EPISODES[0].ended_at.date().isoformat()


def test_skill_is_one_number_in_a_report_whatever_was_played(tmp_path: Path):
    rules = {name: Policy(name) for name in ("hold", "oracle", "news_follower", "random")}
    episodes = by_policy(played(list(WORLDS.values()), rules, siblings=2))
    some = {
        "holding": episodes["hold"],
        "oracle": episodes["oracle"],
        "news_follower": [e for e in episodes["news_follower"] if e.snapshot_id != next(iter(WORLDS))],
        "random": [e for place, e in enumerate(episodes["random"]) if place % 4],
    }
    assert len({e.snapshot_id for e in some["random"]}) == len(WORLDS)
    measured = measure(some, WORLDS)
    for row in summarise(some):
        skill = measured[row.policy].values["skill"]
        assert skill is not None and row.skill == skill.mean


def test_live_episodes_without_latent_values_are_reported_by_realised_pnl(tmp_path: Path):
    mine = [live(episode) for episode in EPISODES[:6]]
    mine += [replace(mine[0], steps=(), realised_pnl=None, trajectory_id="nothing-happened")]
    page = Page(write_run_report(tmp_path, mine))
    assert not page.faults
    assert market_day(mine[0]) in (tmp_path / "episodes.csv").read_text(encoding="utf-8")
    both = {"a": mine, "b": [live(episode) for episode in EPISODES[6:12]]}
    compared = Page(write_comparison_report(tmp_path, both))
    assert not compared.faults and "no shared snapshot" in compared.text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_every_field_of_an_episode_stays_text(tmp_path: Path, text: str):
    text = text.replace("\ud800", "")
    first = EPISODES[0]
    spoilt = replace(
        first,
        trajectory_id=text,
        agent_id=text,
        policy=Policy(text),
        scenario_id=text,
        window_id=text,
        snapshot_id=text,
        prompt_version=text,
        system=text,
        steps=tuple(
            replace(s, observation=text, response=text, error=text, action={"do": text, "market": text})
            for s in first.steps
        ),
    )
    page = Page(write_run_report(tmp_path / "run", [spoilt]))
    assert not page.faults
    assert not set("\x00\x1b\u202e\u200b") & set(page.text)
    assert str(1337 * 7919) not in page.text
    assert len(page.text) < 100_000
    if text.isascii() and len(text) < 1000:
        assert page.text.count(text) >= 20
    assert read_episodes_parquet(tmp_path / "run" / "episodes.parquet") == [spoilt]
    if text == HOSTILE[0]:
        assert not Page(write_comparison_report(tmp_path / "both", {text: [spoilt], f"{text} again": [first]})).faults


def test_a_cell_that_a_spreadsheet_would_run_is_text(tmp_path: Path):
    evil = [replace(EPISODES[0], agent_id=f"{sign}cmd|' /C calc'!A0", realised_pnl=-1.5) for sign in "=+-@\t\r"]
    write_run_report(tmp_path, evil)
    with (tmp_path / "episodes.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["agent_id"] for row in rows] == [f"'{episode.agent_id}" for episode in evil]
    assert {row["realised_pnl"] for row in rows} == {"-1.5"}


def test_what_cannot_be_reported_is_refused_before_anything_is_written(tmp_path: Path):
    first, *rest = EPISODES[:3]
    nan = float("nan")
    for wrong, said in (
        ([], "the run holds no episode; play some"),
        ([replace(first, expected_pnl=nan), *rest], "expected_pnl of episode episode-000000 is nan"),
        ([replace(first, expected_pnl=None, realised_pnl=nan), *rest], "realised_pnl of episode episode-000000 is nan"),
        ([replace(first, max_drawdown=nan), *rest], "max_drawdown of episode episode-000000 is nan"),
        ([replace(first, fees=nan), *rest], "a number of the report is nan"),
        ([replace(first, steps=(replace(first.steps[0], equity=nan),)), *rest], "the equity of an episode holds nan"),
        (
            [replace(first, steps=(first.steps[0], replace(first.steps[1], reward=nan)))],
            "a number of the report is nan",
        ),
    ):
        with pytest.raises(MalformedInput, match=said):
            write_run_report(tmp_path, wrong)
    for groups, said in (
        ({}, "needs two policies, got 0"),
        ({"hold": EPISODES[:1]}, "needs two policies, got 1; use write_run_report"),
        ({"hold": EPISODES[:1], "random": []}, "policy 'random' has no episode"),
    ):
        with pytest.raises(MalformedInput, match=said):
            write_comparison_report(tmp_path, groups)
    assert list(tmp_path.iterdir()) == []


def test_the_same_episodes_give_the_same_files(tmp_path: Path):
    for name in "ab":
        write_run_report(tmp_path / name, EPISODES[:2])
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_report_on_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = write_run_report(tmp_path, EPISODES[:2]).read_bytes()

    def disk_is_full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", disk_is_full)
    with pytest.raises(RlAssetsError, match="free disk space"):
        write_run_report(tmp_path, EPISODES[:4])
    assert (tmp_path / "report.html").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


PLOTS: dict[str, Callable[[], bytes]] = {
    "equity of nobody": lambda: equity_curves({}),
    "equity without steps": lambda: equity_curves({"hold": [replace(EPISODES[0], steps=())]}),
    "equity of one": lambda: equity_curves({"hold": EPISODES[:1]}),
    "equity of episodes of different length": lambda: equity_curves(
        {"hold": [EPISODES[0], replace(EPISODES[1], steps=EPISODES[1].steps[:2])]}
    ),
    "equity of many": lambda: equity_curves({f"policy {i}": EPISODES[i : i + 3] for i in range(12)}),
    "actions of nobody": lambda: action_timeline([], "hold"),
    "actions of another schema": lambda: action_timeline([live(e) for e in EPISODES[:3]], "a"),
    "actions of more kinds than colours": lambda: action_timeline(
        [
            replace(e, steps=tuple(replace(s, action={"do": f"kind {n}"}) for s in e.steps))
            for n, e in enumerate(EPISODES[:20])
        ],
        "a",
    ),
    "calibration of nobody": lambda: calibration([], "hold"),
    "calibration without tokens": lambda: calibration(BY_POLICY[str(LEARNER)], "a"),
    "calibration with tokens": lambda: calibration([with_logprobs(e) for e in BY_POLICY[str(LEARNER)]], "a"),
    "prices of nobody": lambda: price_calibration({"hold": []}),
    "prices of one": lambda: price_calibration({"a": [{"trades": 3, "paid": 0.4, "latent": 0.5, "came_true": 1.0}]}),
    "days of nobody": lambda: days_by_policy({}),
    "days of one episode": lambda: days_by_policy({"hold": EPISODES[:1]}),
    "days of several": lambda: days_by_policy(BY_POLICY),
}


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_of_play_is_a_picture_whatever_was_played(name: str):
    picture: Image.Image = opened(PLOTS[name]())
    assert picture.format == "PNG" and picture.width == 900 and not picture.info

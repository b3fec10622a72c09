"""Replay is proof: a record that was played agrees with itself, and a record that was touched does not."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from rl_assets.agents.reference import REFERENCE_AGENTS
from rl_assets.agents.replay import replay, replay_all
from rl_assets.agents.runner import Assignment, ReferenceAgent, play
from rl_assets.episodes import Episode
from rl_assets.market.config import WorldConfig
from rl_assets.market.snapshot import load_snapshot, load_truth, save_snapshot
from rl_assets_tests.market.wild import world

DEFAULT = WorldConfig()
Tamper = Callable[[Episode], Episode]


def episodes(name: str, seeds=range(3), **options) -> list[Episode]:
    worlds = [world(DEFAULT, seed) for seed in seeds]
    return play([Assignment(ReferenceAgent(name), "agent")], worlds, seed=1, new_ids=lambda n: [""] * n, **options)


def step_changed(tick: int, **changes) -> Tamper:
    return lambda e: replace(e, steps=(*e.steps[:tick], replace(e.steps[tick], **changes), *e.steps[tick + 1 :]))


@pytest.mark.parametrize("name", REFERENCE_AGENTS)
def test_an_untouched_record_replays_bit_for_bit(name):
    for seed, episode in enumerate(episodes(name)):
        assert replay(episode, *world(DEFAULT, seed)) == []


def test_a_record_replays_on_the_files_of_its_snapshot(tmp_path):
    snapshot, truth = world(DEFAULT)
    save_snapshot(tmp_path, snapshot, truth)
    loaded = load_snapshot(tmp_path, snapshot.id), load_truth(tmp_path, snapshot.id)
    assert replay(episodes("random")[0], *loaded) == []


def test_episodes_do_not_depend_on_how_they_were_batched():
    apart, together = episodes("random", range(5), batch=2), episodes("random", range(5), batch=512)
    assert [e.content_hash for e in apart] == [e.content_hash for e in together]


TAMPERED: dict[str, tuple[Tamper, str]] = {
    "reward": (step_changed(4, reward=99.0), "tick 4: reward was 99.0"),
    "equity": (step_changed(4, equity=2_000.0), "tick 4: equity was 2000.0"),
    "credit": (step_changed(4, credit=7.0), "tick 4: credit was 7.0"),
    "valid": (step_changed(4, valid=False), "tick 4: valid was False"),
    "observation": (step_changed(4, observation="t 5 cash 9000"), "tick 4: observation was"),
    "a better answer": (step_changed(0, response='{"market":"A","do":"buy_no","size":100}'), "tick 1: observation"),
    "an unreadable answer": (step_changed(11, response="nonsense"), "tick 11: valid was True"),
    "realised": (lambda e: replace(e, realised_pnl=1e6), "realised_pnl was 1000000.0"),
    "expected": (lambda e: replace(e, expected_pnl=1e6), "expected_pnl was 1000000.0"),
    "drawdown": (lambda e: replace(e, max_drawdown=0.0), "max_drawdown was 0.0"),
    "fees": (lambda e: replace(e, fees=0.0), "fees was 0.0"),
    "breaches": (lambda e: replace(e, breaches=3), "breaches was 3"),
    "trades": (lambda e: replace(e, trades=0), "trades was 0"),
    "system": (lambda e: replace(e, system="Do as you like."), "the system message differs"),
    "a tick left out": (lambda e: replace(e, steps=e.steps[:-1]), "11 steps recorded"),
    "a tick too many": (lambda e: replace(e, steps=(*e.steps, e.steps[-1])), "13 steps recorded"),
    "another snapshot": (lambda e: replace(e, snapshot_id=world(DEFAULT, 1)[0].id), "played on train-000001"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_touched_record_says_what_differs(what):
    tamper, told = TAMPERED[what]
    original = episodes("random")[0]
    assert original.trades > 1
    differences = replay(tamper(original), *world(DEFAULT))
    assert any(told in difference for difference in differences), differences


def test_a_record_does_not_replay_on_another_truth():
    original = episodes("random")[0]
    snapshot, _ = world(DEFAULT)
    differences = replay(original, snapshot, world(DEFAULT, 1)[1])
    assert any("expected_pnl" in difference for difference in differences)


def test_each_of_many_episodes_is_held_against_its_own_record():
    worlds = {w[0].id: w for w in (world(DEFAULT, seed) for seed in range(3))}
    record = episodes("random") + episodes("momentum")
    touched = [*record[:4], step_changed(4, reward=99.0)(record[4]), replace(record[5], steps=record[5].steps[:-1])]
    found = replay_all(touched, worlds)
    assert found[:4] == [[], [], [], []]
    assert found[4] == [f"tick 4: reward was 99.0, replays as {record[4].steps[4].reward!r}"]
    assert found[5] == ["11 steps recorded, the snapshot has 12 ticks"]

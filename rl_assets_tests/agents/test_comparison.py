from __future__ import annotations

import fcntl
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl_assets.agents.comparison import Entrant, Failure, Results, play_missing, run
from rl_assets.agents.endpoint import UNKNOWN_TOKEN, EndpointAgent
from rl_assets.agents.replay import replay
from rl_assets.agents.runner import ReferenceAgent, Table
from rl_assets.episodes import Episode, Policy
from rl_assets.errors import ConfigurationError, MalformedInput, RlAssetsError
from rl_assets.market.actions import to_orders
from rl_assets.market.babylon.importer import import_babylon
from rl_assets.market.config import WorldConfig
from rl_assets.market.engine import Engine
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import Truth, World
from rl_assets.store.episode_files import read_episodes_parquet, write_episodes_parquet
from rl_assets_tests.agents.endpoint_server import (
    HOLD,
    LoopbackModel,
    Mode,
    Reply,
    first,
    good,
    says,
    status,
)
from rl_assets_tests.market.babylon.made import generated, written
from rl_assets_tests.reports.pages import worlds

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = worlds(3)
SECRET = "sk-hunter2"


def an_entrant(name: str, siblings: int = 1) -> Entrant:
    return Entrant(ReferenceAgent(name), {"kind": "reference"}, siblings)


def an_endpoint(model: LoopbackModel, siblings: int = 1, **options: Any) -> Entrant:
    agent = EndpointAgent(model.url, "m", **{"timeout": 5.0, "retries": 1, "api_key": SECRET, **options})
    return Entrant(agent, {"kind": "openai"}, siblings)


def compared(directory: Path, *entrants: Entrant, on: list[World] = SMALL, seed: int = 0) -> Results:
    results, page = run(directory, entrants, on, seed=seed, on_progress=lambda name, done, total: None)
    assert page is not None
    assert page.is_file()
    return results


def played(*entrants: Entrant, on: list[World] = SMALL, known: Sequence[Episode] = ()) -> Results:
    return play_missing(
        entrants, on, seed=0, known=known, keep=lambda episodes: None, on_progress=lambda name, done, total: None
    )


def test_everybody_plays_every_snapshot_and_it_replays(model: LoopbackModel, tmp_path: Path):
    results = compared(tmp_path, an_entrant("random", 2), an_endpoint(model), an_entrant("hold"))
    name = f"m@{model.host}"
    assert results.failures == []
    assert list(results.episodes) == ["random", name, "hold"]
    assert [(e.snapshot_id, e.sibling) for e in results.episodes["random"]] == [
        (snapshot.id, n) for snapshot, _ in SMALL for n in range(2)
    ]
    everybody = [episode for mine in results.episodes.values() for episode in mine]
    assert read_episodes_parquet(tmp_path / "episodes.parquet") == everybody
    assert len({episode.trajectory_id for episode in everybody}) == len(everybody)
    known = {world[0].id: world for world in SMALL}
    assert [replay(episode, *known[str(episode.snapshot_id)]) for episode in everybody] == [[]] * len(everybody)

    asked, *_ = results.episodes[name]
    assert (asked.trades, asked.is_evaluation, asked.not_trainable) == (1, True, "is_evaluation")
    assert asked.steps[0].token_ids == (7, UNKNOWN_TOKEN)
    assert asked.steps[0].logprobs == (-0.5, -0.25)
    assert asked.steps[0].prompt_tokens == 100
    body = model.calls[-1]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 1.0, 256)
    assert [m["content"] for m in body["messages"][2::2]] == [s.response for s in asked.steps[:-1]]
    assert len({call["seed"] for call in model.calls}) == len(model.calls)
    assert set(model.keys) == {f"Bearer {SECRET}"}

    board = results.ranking()
    assert board is not None
    assert {standing.policy for standing in board.standings} == set(results.episodes)


@pytest.mark.parametrize(
    "mode, reason",
    [
        (status(500, f"down, your key is {SECRET}"), "500"),
        (status(401, f"bad key {SECRET}"), "401"),
        (status(429), "429"),
        (says(HOLD, finish_reason="length"), "cut off; allow more with --max-tokens"),
        (says(None, refusal="I will not"), "the model refused: I will not"),
        (says("", finish_reason="content_filter"), "refused"),
        (says(HOLD, raw=b"<html>hello</html>", headers={"content-type": "text/html"}), "not a chat completion"),
        (says(HOLD, raw=b"{}"), "not a chat completion"),
        (says(HOLD, raw=b"{"), "Expecting"),
        (says(7), "not text"),
    ],
)
def test_what_is_no_answer_fails_its_episode_with_the_reason_and_nobody_elses(
    model: LoopbackModel, mode: Mode, reason: str
):
    model.mode = mode
    results = played(an_endpoint(model), an_entrant("hold"))
    assert len(results.episodes["hold"]) == len(results.failures) == len(SMALL)
    assert results.episodes[f"m@{model.host}"] == []
    assert {failure.snapshot_id for failure in results.failures} == {snapshot.id for snapshot, _ in SMALL}
    for failure in results.failures:
        assert reason in failure.reason
        assert SECRET not in failure.reason
    assert len(model.calls) <= 2 * len(SMALL)
    board = results.ranking()
    assert board is not None
    assert [standing.policy for standing in board.standings] == ["hold"]


def test_a_server_that_hangs_or_is_not_there_fails_its_episodes(model: LoopbackModel):
    never = threading.Event()
    model.mode = says(HOLD, wait_for=never)
    try:
        results = played(an_endpoint(model, timeout=0.2, retries=0))
    finally:
        never.set()
    assert ["timed out" in failure.reason for failure in results.failures] == [True] * 3
    nowhere = Entrant(EndpointAgent("http://127.0.0.1:1/v1", "m", retries=0), {})
    assert "Connection error" in played(nowhere).failures[0].reason


@pytest.mark.parametrize("code", [429, 500, 503])
def test_what_passes_is_tried_again(model: LoopbackModel, code: int):
    model.mode = first(status(code), times=2)
    results = played(an_endpoint(model, retries=2, concurrency=1))
    assert results.failures == []
    assert len(model.calls) == 2 + sum(len(e.steps) for e in results.episodes[f"m@{model.host}"])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no idea",
        "{",
        '{"do":"\ud800"}',
        "\ud800\x00",
        f'{{"market":"A","do":"buy_yes","size":{"9" * 400}}}',
        "{" * 9999,
    ],
)
def test_an_answer_that_cannot_be_read_is_an_invalid_action(model: LoopbackModel, tmp_path: Path, content: str):
    model.mode = says(content)
    results = played(an_endpoint(model), on=SMALL[:1])
    (episode,) = results.episodes[f"m@{model.host}"]
    assert episode.breaches == len(episode.steps)
    write_episodes_parquet(tmp_path / "episodes.parquet", [episode])
    assert read_episodes_parquet(tmp_path / "episodes.parquet") == [episode]


def test_a_size_that_no_float_holds_is_not_an_amount():
    for size in ("9" * 400, "-" + "9" * 400, "1e999", "NaN", "true"):
        text = f'{{"market":"A","do":"buy_yes","size":{size}}}'
        assert to_orders([text], WorldConfig())[2] == ["`size` is not an amount of dollars"]


def test_what_a_server_refuses_by_name_is_left_out(model: LoopbackModel):
    def choosy(asked) -> Reply:
        for name in ("logprobs", "seed"):
            if name in asked.body:
                return status(400, f"unknown parameter {name}")(asked)
        if "max_tokens" in asked.body:
            return status(400, "use max_completion_tokens")(asked)
        return good(asked)

    model.mode = choosy
    results = played(an_endpoint(model, concurrency=1))
    assert results.failures == []
    assert {step.logprobs for e in results.episodes[f"m@{model.host}"] for step in e.steps} == {()}
    assert model.calls[-1]["max_completion_tokens"] == 256
    assert len(model.calls) == 3 + 3 * 6


def test_who_fails_again_and_again_is_not_asked_any_more(model: LoopbackModel):
    model.mode = says(HOLD, finish_reason="length")
    results = played(an_endpoint(model, siblings=4, concurrency=2))
    assert len(results.failures) == 12
    assert 5 <= model.episodes() <= 6
    reasons = [failure.reason for failure in results.failures]
    assert reasons.count("not asked, since 5 episodes in a row had failed") == 12 - model.episodes()


def test_no_more_episodes_are_in_play_than_allowed(model: LoopbackModel):
    everybody_is_here = threading.Barrier(3)

    def meet(asked) -> Reply:
        if asked.number < 3:
            everybody_is_here.wait(30)
        return good(asked)

    model.mode = meet
    assert played(an_endpoint(model, siblings=2, concurrency=3)).failures == []
    assert model.peak == 3


def test_what_is_played_is_not_played_again(model: LoopbackModel, tmp_path: Path):
    model.mode = lambda asked: (good if asked.number < 8 else status(400))(asked)
    entrants = an_entrant("random"), an_endpoint(model, concurrency=1)
    before = compared(tmp_path, *entrants)
    assert len(before.failures) == 2
    model.mode, asked = good, len(model.calls)
    after = compared(tmp_path, *entrants)
    assert after.failures == []
    assert len(model.calls) == asked + 2 * 6
    assert model.calls[asked]["seed"] == model.calls[8 - 2]["seed"]
    name = f"m@{model.host}"
    assert after.episodes["random"] == before.episodes["random"]
    assert after.episodes[name][0] == before.episodes[name][0]


def test_a_directory_holds_one_comparison(tmp_path: Path):
    directory = tmp_path / "one"
    compared(directory, an_entrant("random"))
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    for entrants, on, seed, differs in (
        ([an_entrant("random", 2)], SMALL, 0, "agents"),
        ([an_entrant("hold")], SMALL[:2], 0, "snapshots and agents"),
        ([an_entrant("random")], SMALL, 1, "seed"),
    ):
        with pytest.raises(ConfigurationError, match=f"a comparison with other {differs}; repeat its options"):
            compared(directory, *entrants, on=on, seed=seed)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    with pytest.raises(ConfigurationError, match="holds other files; choose a new directory"):
        compared(tmp_path, an_entrant("random"))
    with pytest.raises(ConfigurationError, match="random is named twice"):
        compared(tmp_path / "two", an_entrant("random"), an_entrant("random"))
    (directory / "comparison.json").write_text("[]")
    with pytest.raises(MalformedInput, match=r"comparison\.json cannot be read"):
        compared(directory, an_entrant("random"))
    with (tmp_path / "one" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RlAssetsError, match="another comparison is writing"):
            compared(directory, an_entrant("random"))


def test_a_full_disk_is_no_failure_of_an_agent(model: LoopbackModel):
    def full(episodes) -> None:
        raise RlAssetsError("the disk is full")

    for entrant in (an_entrant("hold"), an_endpoint(model)):
        with pytest.raises(RlAssetsError, match="the disk is full"):
            play_missing([entrant], SMALL, seed=0, known=[], keep=full, on_progress=lambda name, done, total: None)


def test_snapshots_of_several_kinds_are_compared_together(tmp_path: Path):
    imported = import_babylon(written(tmp_path, generated()))
    on = [*SMALL, generate("gate", 800_100), imported]
    results = compared(tmp_path / "all", an_entrant("hold"), an_entrant("random"), an_entrant("oracle"), on=on)
    assert results.failures == []
    board = results.ranking()
    assert board is not None
    assert (board.snapshots, board.days) == (5, 3)
    assert board.standings[0].policy == "oracle"


def test_nobody_is_ranked_on_what_others_have_not_played():
    failed = Results({"a": []}, [Failure("a", "gate-1", 0, "it is down")])
    assert failed.ranking() is None


class Faulty:
    """An agent with a fault of its own."""

    sampling = None
    policy = Policy("faulty")

    def sit(self, engine: Engine, rows: np.ndarray, truths: list[Truth], seeds: list[tuple[int, ...]]) -> Table:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\n(a long story)")


def test_a_fault_of_an_agent_fails_its_own_episodes_alone(caplog: pytest.LogCaptureFixture):
    results = played(Entrant(Faulty(), {"kind": "faulty"}, 2), an_entrant("hold"))
    assert len(results.episodes["hold"]) == len(SMALL)
    assert not results.episodes["faulty"]
    assert {failure.agent for failure in results.failures} == {"faulty"}
    assert {f.reason for f in results.failures} == {"RuntimeError: mat1 and mat2 shapes cannot be multiplied"}
    assert "a long story" in caplog.text

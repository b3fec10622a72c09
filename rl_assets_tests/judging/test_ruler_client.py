from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import psycopg
import pytest

from rl_assets.agents.runner import Assignment, ReferenceAgent, play
from rl_assets.errors import ConfigurationError
from rl_assets.judging import ruler_transport
from rl_assets.judging.ruler import RulerJudge
from rl_assets.judging.ruler_answer import JudgeFailure, Scored
from rl_assets.judging.ruler_client import JudgeClient
from rl_assets.judging.ruler_endpoint import estimated_tokens
from rl_assets.judging.ruler_prompt import RUBRIC, Question, question_seed, questions
from rl_assets.judging.ruler_view import view
from rl_assets.market.generate import generate
from rl_assets.store.episodes import new_ids
from rl_assets.store.judge_calls import spent
from rl_assets_tests.judging import judge_server as modes
from rl_assets_tests.judging.judge_server import Asked, LoopbackJudge, Reply
from rl_assets_tests.judging.ruler_made import episode, grouped, ladder, settings
from rl_assets_tests.store.made import WINDOW


def question(text: str = "") -> Question:
    shown = '<episode f id="kkkkk">size 90</episode>\n<episode f id="zzzzz">size 10</episode>'
    messages = ({"role": "system", "content": "Judge."}, {"role": "user", "content": f"{shown}{text}"})
    return Question(("a", "b"), ("kkkkk", "zzzzz"), messages)


def ask(client: JudgeClient, *questions: Question) -> list[Any]:
    """Answers or failures, in order."""

    async def all_of_them() -> list[Any]:
        try:
            return await client.ask(WINDOW, questions)
        finally:
            await client.close()

    return asyncio.run(all_of_them())


def estimated(asked: Question) -> int:
    return estimated_tokens(*(message["content"] for message in asked.messages))


@pytest.mark.parametrize(
    "mode",
    [
        modes.status(429, Retry_After="0.05"),
        modes.status(500),
        modes.status(503),
        lambda asked: Reply(raw=b"<html>busy</html>"),
        lambda asked: Reply(raw=b'{"no": "choices"}'),
    ],
    ids=["429", "500", "503", "not JSON", "wrong JSON"],
)
def test_what_may_pass_is_tried_again(conn: psycopg.Connection, server: LoopbackJudge, mode: modes.Mode):
    server.mode = modes.first(mode, times=3)
    client = JudgeClient(settings(server), conn)
    assert ask(client, question())[0]["kkkkk"] == Scored(0.9, "it is kkkkk")
    assert client.usage.requests == len(server.calls) == 4
    assert client.usage.repairs == 0


def test_a_judge_that_says_how_long_is_left_alone_for_that_long(conn: psycopg.Connection, server: LoopbackJudge):
    arrived: list[float] = []

    def busy(asked: Asked) -> Reply:
        arrived.append(time.monotonic())
        return modes.first(modes.status(429, Retry_After="0.4"))(asked)

    server.mode = busy
    client = JudgeClient(settings(server, concurrency=1), conn)
    ask(client, question(), question("another"))
    assert len(arrived) == 3
    assert arrived[1] - arrived[0] >= 0.39


def test_a_judge_that_asks_for_an_hour_is_not_waited_for(conn: psycopg.Connection, server: LoopbackJudge):
    server.mode = modes.status(429, Retry_After="3600")
    (failure,) = ask(JudgeClient(settings(server), conn), question())
    assert isinstance(failure, JudgeFailure)
    assert (failure.failure, str(failure)) == ("transport", "the judge is out of reach (status 429 after 1 attempts)")
    assert spent(conn, WINDOW).window_tokens == 0


def test_a_judge_that_hangs_is_given_up_and_counted_as_if_it_had_answered(
    conn: psycopg.Connection, server: LoopbackJudge, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ruler_transport, "ATTEMPTS", 2)
    never = threading.Event()
    server.mode = lambda asked: Reply("{}", wait_for=never)
    (failure,) = ask(JudgeClient(settings(server, timeout_seconds=1, answer_tokens=700), conn), question())
    never.set()
    assert isinstance(failure, JudgeFailure)
    assert str(failure) == "the judge is out of reach (no answer after 2 attempts)"
    assert len(server.calls) == 2
    assert spent(conn, WINDOW).window_tokens == 2 * (estimated(question()) + 700)


def test_an_attempt_on_top_of_one_that_may_be_billed_needs_a_budget_of_its_own(
    conn: psycopg.Connection, server: LoopbackJudge
):
    never = threading.Event()
    server.mode = lambda asked: Reply("{}", wait_for=never)
    each = estimated(question()) + 700
    given = settings(server, timeout_seconds=1, answer_tokens=700, tokens_per_window=2 * each - 1)
    (failure,) = ask(JudgeClient(given, conn), question())
    never.set()
    assert isinstance(failure, JudgeFailure)
    assert (failure.failure, len(server.calls)) == ("budget", 1)
    assert spent(conn, WINDOW).window_tokens == each


def test_what_a_server_does_not_count_is_estimated(conn: psycopg.Connection, server: LoopbackJudge):
    text = modes.answer({"kkkkk": 0.9, "zzzzz": 0.1})
    said = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    server.mode = lambda asked: Reply(raw=json.dumps(said).encode())
    client = JudgeClient(settings(server), conn)
    ask(client, question())
    assert (client.usage.tokens_in, client.usage.tokens_out) == (estimated(question()), int(len(text) / 1.6))
    assert spent(conn, WINDOW).window_tokens == client.usage.tokens_in + client.usage.tokens_out


def test_a_reservation_outlasts_the_wait_for_a_turn(conn: psycopg.Connection, server: LoopbackJudge):
    ask(JudgeClient(settings(server, concurrency=64, requests_per_minute=2), conn), question())
    ((seconds,),) = conn.execute(
        "SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM rl_assets.judge_spending"
    ).fetchall()
    assert seconds > 64 / 2 * 60


def test_a_judge_that_is_down_is_not_asked_for_ever_and_costs_nothing(conn: psycopg.Connection, server: LoopbackJudge):
    client = JudgeClient(settings(server, base_url="http://127.0.0.1:9/v1", concurrency=1), conn)
    failures = ask(client, *(question(str(number)) for number in range(10)))
    assert [failure.failure for failure in failures] == ["transport"] * 10
    assert client.usage.requests == ruler_transport.GIVE_UP_AFTER * ruler_transport.ATTEMPTS
    assert spent(conn, WINDOW).window_tokens == 0


@pytest.mark.parametrize(
    "code, remedy",
    [(401, "RULER_JUDGE_API_KEY"), (404, "RULER_JUDGE_MODEL"), (402, "top it up")],
)
def test_what_a_person_must_mend_ends_the_run_without_the_key(
    conn: psycopg.Connection, server: LoopbackJudge, code: int, remedy: str
):
    server.mode = modes.status(code)
    members = ladder(3)
    with pytest.raises(ConfigurationError) as raised:
        RulerJudge(settings(server), conn).rank(grouped(members), {m.trajectory_id: m for m in members})
    assert remedy in str(raised.value)
    assert "sk-secret" not in str(raised.value)
    assert "k-123" not in str(raised.value)


def test_a_prompt_that_a_filter_refuses_does_not_end_the_run(conn: psycopg.Connection, server: LoopbackJudge):
    server.mode = lambda asked: (modes.status(403) if "flagged" in asked.prompt else modes.by_quality)(asked)
    refused, answered = ask(JudgeClient(settings(server, concurrency=1), conn), question("flagged"), question())
    assert refused.failure == "refusal"
    assert answered["kkkkk"].score == 0.9


def test_a_request_that_is_turned_down_is_not_repeated(conn: psycopg.Connection, server: LoopbackJudge):
    server.mode = modes.status(400)
    (failure,) = ask(JudgeClient(settings(server), conn), question())
    assert (failure.failure, len(server.calls)) == ("transport", 1)


@pytest.mark.parametrize("name", ["response_format", "temperature"])
def test_a_server_that_lacks_a_parameter_is_asked_without_it(
    conn: psycopg.Connection, server: LoopbackJudge, name: str
):
    def picky(asked: Asked) -> Reply:
        if name in asked.body:
            return Reply(f'{{"error": {{"message": "{name} is not supported"}}}}', status=400)
        return modes.by_quality(asked)

    server.mode = picky
    client = JudgeClient(settings(server), conn)
    answers = ask(client, *(question(str(number)) for number in range(6)))  # on their way before the first is refused
    assert [one["zzzzz"].score for one in answers] == [0.1] * 6
    before = len(server.calls)
    ask(client := JudgeClient(settings(server, concurrency=1), conn), question("7"), question("8"))
    assert client.usage.requests == len(server.calls) - before == 3


def test_no_more_requests_are_made_at_once_than_is_allowed(conn: psycopg.Connection, server: LoopbackJudge):
    together = threading.Barrier(4)

    def in_step(asked: Asked) -> Reply:
        together.wait(30)  # four are there at the same time, or this breaks
        return modes.by_quality(asked)

    server.mode = in_step
    answers = ask(JudgeClient(settings(server, concurrency=4), conn), *(question(str(number)) for number in range(12)))
    assert all(one["kkkkk"].score == 0.9 for one in answers)
    assert server.peak == 4


def test_requests_are_spread_over_the_minute(conn: psycopg.Connection, server: LoopbackJudge):
    client = JudgeClient(settings(server, requests_per_minute=600), conn)
    began = time.monotonic()
    ask(client, *(question(str(number)) for number in range(4)))
    assert time.monotonic() - began >= 0.29


def test_a_used_up_budget_stops_before_the_request_and_says_so(conn: psycopg.Connection, server: LoopbackJudge):
    client = JudgeClient(settings(server, tokens_per_window=6000, concurrency=1), conn)
    first, second, third = ask(client, question("1"), question("2"), question("3"))
    assert first["kkkkk"].score == 0.9
    assert second["kkkkk"].score == 0.9
    assert isinstance(third, JudgeFailure)
    assert third.failure == "budget"
    assert "2,200 of 6,000 tokens" in str(third)
    assert "RULER_JUDGE_TOKENS_PER_WINDOW" in str(third)
    assert len(server.calls) == 2
    assert ask(JudgeClient(settings(server, tokens_per_window=0), conn), question("1"))[0]["kkkkk"].score == 0.9


def test_dollars_are_counted_at_the_price_that_is_set(conn: psycopg.Connection, server: LoopbackJudge):
    priced = settings(server, input_price=2.0, output_price=10.0, dollars_per_day=0.042, concurrency=1)
    client = JudgeClient(priced, conn)
    found = ask(client, question("1"), question("2"))
    assert client.usage.dollars == pytest.approx(0.003)
    assert spent(conn, WINDOW).day_dollars == pytest.approx(0.003)
    assert isinstance(found[1], JudgeFailure)
    assert "RULER_JUDGE_DOLLARS_PER_DAY" in str(found[1])


def test_a_known_model_has_its_price_and_an_unknown_one_none(conn: psycopg.Connection, server: LoopbackJudge):
    known = JudgeClient(settings(server, model="openai/gpt-4o-mini", dollars_per_day=1.0), conn)
    ask(known, question())
    assert known.usage.dollars == pytest.approx(1000 * 0.15e-6 + 100 * 0.6e-6)
    with pytest.raises(ConfigurationError, match="RULER_JUDGE_INPUT_PRICE"):
        JudgeClient(settings(server, dollars_per_window=1.0), conn)


def test_a_key_of_the_environment_does_not_go_to_a_server_of_ones_own(
    conn: psycopg.Connection, server: LoopbackJudge, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    ask(JudgeClient(settings(server, api_key=None, model="Qwen/Qwen3-32B"), conn), question())
    assert server.keys == ["Bearer none"]
    assert server.calls[0]["model"] == "Qwen/Qwen3-32B"


def test_a_provider_that_litellm_knows_is_asked_where_it_is(
    conn: psycopg.Connection, server: LoopbackJudge, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    server.mode = modes.first(modes.status(429, Retry_After="0.05"))
    client = JudgeClient(settings(server, base_url="", model="openai/gpt-4o-mini"), conn)
    assert ask(client, question())[0]["kkkkk"] == Scored(0.9, "it is kkkkk")
    assert server.keys == ["Bearer k-123"] * 2
    assert (client.usage.requests, client.usage.tokens_in, client.usage.tokens_out) == (2, 1000, 100)
    assert server.calls[0]["model"] == "gpt-4o-mini"
    assert server.calls[0]["response_format"]["type"] == "json_schema"


def test_a_provider_that_takes_no_key_ends_the_run(
    conn: psycopg.Connection, server: LoopbackJudge, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    server.mode = modes.status(401)
    with pytest.raises(ConfigurationError, match="RULER_JUDGE_API_KEY"):
        ask(JudgeClient(settings(server, base_url=""), conn), question())


@pytest.mark.parametrize("model, name", [("gpt-5", "max_completion_tokens"), ("qwen", "max_tokens")])
def test_a_model_is_told_how_long_its_answer_may_be_in_its_own_words(
    conn: psycopg.Connection, server: LoopbackJudge, model: str, name: str
):
    ask(JudgeClient(settings(server, model=model, answer_tokens=700), conn), question())
    assert {key: value for key, value in server.calls[0].items() if key.startswith("max_")} == {name: 700}


@pytest.mark.parametrize(
    "said, failure",
    [
        ({"choices": []}, "parse"),
        ({"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}, "refusal"),
        ({"choices": [{"message": {"content": ["{}"]}, "finish_reason": 7}], "usage": None}, "parse"),
    ],
)
def test_a_completion_of_an_odd_shape_is_refused_and_counted(
    conn: psycopg.Connection, server: LoopbackJudge, said: dict[str, Any], failure: str
):
    server.mode = lambda asked: Reply(raw=json.dumps(said).encode())
    (found,) = ask(JudgeClient(settings(server), conn), question())
    assert isinstance(found, JudgeFailure)
    assert (found.failure, len(server.calls)) == (failure, 2)
    assert spent(conn, WINDOW).window_tokens > 0


def test_a_prompt_that_is_too_long_for_the_judge_says_what_to_lower(conn: psycopg.Connection, server: LoopbackJudge):
    too_long = {"error": {"message": "This model's maximum context length is 8192 tokens", "code": "context"}}
    server.mode = lambda asked: Reply(json.dumps(too_long), status=400)
    (found,) = ask(JudgeClient(settings(server), conn), question())
    assert isinstance(found, JudgeFailure)
    assert (found.failure, len(server.calls)) == ("too_long", 1)
    assert "RULER_JUDGE_PROMPT_TOKENS" in str(found)


def test_what_is_reserved_for_a_prompt_of_this_market_is_not_too_little():
    import litellm

    worlds = [generate("train", 5)]
    members = play([Assignment(ReferenceAgent("random"), "agent", 8)], worlds, seed=1, new_ids=new_ids)
    seen = view(members, room=10**6)
    assert seen is not None
    names = [member.trajectory_id for member in members]
    (asked,) = questions(question_seed("g", names, seen), names, seen, 1, 1, RUBRIC)
    reserved = estimated(asked)
    for model in ("gpt-4", "gpt-4o"):
        assert litellm.token_counter(model=model, messages=list(asked.messages)) < reserved


def test_without_a_model_there_is_no_judge(conn: psycopg.Connection, server: LoopbackJudge):
    with pytest.raises(ConfigurationError, match="RULER_JUDGE_MODEL"):
        JudgeClient(settings(server, model=""), conn)


def test_what_was_answered_before_an_interruption_is_not_paid_again(conn: psycopg.Connection, server: LoopbackJudge):
    groups = [[episode(f"{name}{n}", 20 * n + 20, system=name) for n in range(4)] for name in ("one", "two")]
    server.mode = lambda asked: (modes.status(401) if "two" in asked.prompt else modes.by_quality)(asked)
    by_id = {e.trajectory_id: e for members in groups for e in members}
    asked = [grouped(members, like=members[0].system) for members in groups]
    with pytest.raises(ConfigurationError):
        RulerJudge(settings(server, concurrency=1), conn).rank_all(asked, by_id)
    server.mode = modes.by_quality
    judge = RulerJudge(settings(server), conn)
    assert all(ranking.trainable for ranking in judge.rank_all(asked, by_id))
    assert (judge.report.usage.cached, judge.report.usage.requests) == (3, 3)

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_assets.a2a.command import Command
from rl_assets.a2a.operations import OPERATIONS, run
from rl_assets.a2a.session import Refused, Room, Session
from rl_assets.a2a.views import clock
from rl_assets.agents.replay import replay
from rl_assets.market.engine import Do
from rl_assets_tests.a2a.sdk import WORLD


def seated(room: Room, name: str = "agent", fast_forward: bool = False) -> Session:
    session = Session(name, name, room, len(room.sessions), fast_forward, 0.0, trajectory_id=f"t-{name}")
    room.sit(session)
    return session


def ask(session: Session, operation: str, **params):
    return run(session, Command(operation, params))


def play_out(session: Session) -> None:
    while not session.room.finished:
        session.act()


orders = st.one_of(
    st.builds(
        lambda market, outcome, amount: ("buyShares", {"marketId": market, "outcome": outcome, "amount": amount}),
        st.sampled_from("ABC"),
        st.sampled_from(["YES", "NO"]),
        st.floats(0.5, 600) | st.integers(1, 600),
    ),
    st.builds(
        lambda side, amount: ("openPosition", {"ticker": "P", "side": side, "amount": amount}),
        st.sampled_from(["LONG", "SHORT"]),
        st.floats(0.5, 600),
    ),
    st.builds(
        lambda position, shares: ("sellShares", {"positionId": position, "shares": shares}),
        st.sampled_from(["A-yes", "A-no", "B-yes", "B-no", "C-yes"]),
        st.floats(0.01, 900),
    ),
    st.builds(
        lambda position: ("closePosition", {"positionId": position}),
        st.sampled_from(["A-yes", "B-no", "C-yes", "P"]),
    ),
    st.just(("advance", {})),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(orders, max_size=30), st.booleans())
def test_whatever_is_ordered_the_record_replays_and_fills_are_what_was_told(said, fast_forward: bool):
    session = seated(Room(WORLD), fast_forward=fast_forward)
    for operation, params in said:
        if session.room.finished:
            break
        cash, tick, liquidated = session.cash, session.room.tick, session.engine.breaches[0]
        try:
            told = ask(session, operation, **params)
        except Refused:
            assert (session.cash, session.room.tick) == (cash, tick)
            continue
        if operation != "advance":
            if not fast_forward:
                assert session.cash == cash
                session.act()
            assert session.room.tick == tick + 1
            if session.engine.breaches[0] == liquidated:
                assert session.cash == pytest.approx(cash + told["cashChange"], abs=2e-6)
    play_out(session)
    (episode,) = session.room.episodes({"agent": "id"})
    assert replay(episode, *WORLD) == []
    assert episode.breaches == sum(step.error == "liquidated" for step in episode.steps)


def test_shares_and_prices_are_those_of_the_fill():
    session = seated(Room(WORLD))
    bought = ask(session, "buyShares", marketId="A", outcome="YES", amount=50)
    assert bought["avgPrice"] == pytest.approx(50 / bought["shares"])
    assert bought["fee"] == 0.5
    session.act()
    (position,) = ask(session, "getPositions")["predictionPositions"]
    assert position["shares"] == bought["shares"]
    assert position["entryPrice"] == pytest.approx(bought["avgPrice"], abs=1e-6)
    half = ask(session, "sellShares", marketId="A", shares=bought["shares"] / 2)
    assert half["shares"] == pytest.approx(bought["shares"] / 2, abs=1e-5)
    assert half["pnl"] == pytest.approx(half["proceeds"] - 25.0, abs=1e-5)
    session.act()
    rest = ask(session, "closePosition", positionId="A-yes")
    session.act()
    assert rest["shares"] + half["shares"] == pytest.approx(bought["shares"], abs=1e-5)
    assert ask(session, "getPositions") == {"predictionPositions": [], "perpPositions": []}
    assert session.equity - 1000 == pytest.approx(half["pnl"] + rest["pnl"], abs=1e-5)


def test_a_perpetual_opened_and_closed_costs_what_was_told():
    session = seated(Room(WORLD))
    opened = ask(session, "openPosition", ticker="P", side="long", size=100, leverage=10)
    session.act()
    (position,) = ask(session, "getPositions")["perpPositions"]
    assert position["entryPrice"] == opened["entryPrice"]
    assert position["side"] == "LONG"
    closed = ask(session, "closePosition", positionId="P")
    session.act()
    assert session.cash == pytest.approx(1000 + opened["cashChange"] + closed["cashChange"], abs=1e-5)
    paid = (closed["exitPrice"] - opened["entryPrice"]) * position["units"]
    assert closed["pnl"] == pytest.approx(paid - closed["fee"], abs=1e-2)


def test_one_order_per_tick_and_a_refused_one_is_not_placed():
    session = seated(Room(WORLD))
    with pytest.raises(Refused, match="not enough cash"):
        ask(session, "buyShares", marketId="A", outcome="YES", amount=5000)
    ask(session, "buyShares", marketId="A", outcome="YES", amount=50)
    with pytest.raises(Refused, match=r"one order per tick.*call advance"):
        ask(session, "buyShares", marketId="B", outcome="YES", amount=50)
    session.act()
    ask(session, "buyShares", marketId="B", outcome="YES", amount=50)
    play_out(session)
    (episode,) = session.room.episodes({"agent": "id"})
    assert [s.response for s in episode.steps[:3]] == [
        '{"market":"A","do":"buy_yes","size":50}',
        '{"market":"B","do":"buy_yes","size":50}',
        '{"do":"hold"}',
    ]
    assert (episode.breaches, episode.trades) == (0, 2)
    assert str(episode.policy) == "agent"
    assert episode.not_trainable == "no_logprobs"


def test_advance_for_a_tick_that_is_over_does_nothing():
    session = seated(Room(WORLD))
    ask(session, "advance", tick=1)
    ask(session, "advance", tick=1)
    assert session.room.tick == 1
    ask(session, "advance", tick=2)
    assert session.room.tick == 2
    with pytest.raises(Refused, match="this is tick 3"):
        ask(session, "advance", tick=4)
    assert session.room.tick == 2


def test_the_clock_moves_when_all_agents_have_acted_and_accounts_are_apart():
    room = Room(WORLD, seats=2)
    first = seated(room, "first", fast_forward=True)
    with pytest.raises(Refused, match="opens when all 2 agents have joined"):
        ask(first, "advance")
    second = seated(room, "second")
    before = ask(second, "getPredictions")
    ask(first, "buyShares", marketId="A", outcome="YES", amount=500)
    assert (room.tick, clock(first)["waitingFor"]) == (0, 1)
    assert ask(second, "getPredictions") == before
    ask(second, "advance")
    assert room.tick == 1
    assert (first.cash, second.cash) == (500.0, 1000.0)
    assert ask(second, "getPositions")["predictionPositions"] == []
    while not room.finished:
        first.act()
        second.act()
    episodes = room.episodes({"first": "1", "second": "2"})
    assert [e.agent_id for e in episodes] == ["1", "2"]
    assert all(replay(e, *WORLD) == [] for e in episodes)
    assert [e.trades for e in episodes] == [1, 0]


def test_nobody_waits_for_an_agent_that_has_left_and_its_episode_is_not_recorded():
    room = Room(WORLD, seats=2)
    stays, leaves = seated(room, "stays"), seated(room, "leaves")
    stays.act()
    assert room.tick == 0
    room.leave(leaves)
    assert room.tick == 1
    play_out(stays)
    assert [e.policy.name for e in room.episodes({"stays": "1", "leaves": "2"})] == ["stays"]


def test_no_operation_tells_what_is_sealed():
    """Neither the seed, from which the whole day can be generated, nor any latent value is in an answer."""
    snapshot, truth = WORLD
    session = seated(Room(WORLD))
    while not session.room.finished:
        told = [clock(session)]
        told += [ask(session, name) for name in OPERATIONS if name.startswith("get")]
        text = str(told)
        assert snapshot.id not in text
        assert snapshot.truth_digest not in text
        for latent in truth.latents()[-1]:
            assert f"{latent:.6f}" not in text
        session.act()


def test_posts_of_later_ticks_are_not_told_yet():
    session = seated(Room(WORLD))
    everything = len(WORLD[0].posts)
    assert ask(session, "getFeed", limit=100)["total"] == sum(p.tick == 0 for p in WORLD[0].posts)
    play_out(session)
    feed = ask(session, "getFeed", limit=5, offset=1)
    assert feed["total"] == everything
    assert [p["id"] for p in feed["posts"]] == [f"post-{everything - 1 - n}" for n in range(5)]


@pytest.mark.parametrize(
    "operation, params, reason",
    [
        ("buyShares", {"marketId": "A", "outcome": "MAYBE", "amount": 5}, "outcome"),
        ("buyShares", {"marketId": "Z", "outcome": "YES", "amount": 5}, "'Z' is no prediction market here"),
        ("buyShares", {"marketId": "P", "outcome": "YES", "amount": 5}, "'P' is no prediction market here"),
        ("buyShares", {"marketId": "A", "outcome": "YES", "amount": -5}, "amount"),
        ("buyShares", {"marketId": "A", "outcome": "YES", "amount": float("nan")}, "amount"),
        ("buyShares", {"marketId": "A", "outcome": "YES", "amount": "50"}, "amount"),
        ("buyShares", {"marketId": "A", "outcome": "YES", "amount": True}, "amount"),
        ("buyShares", {"marketId": "A", "outcome": "YES", "amount": 0.5}, "size below"),
        ("buyShares", {"marketId": "A", "outcome": "YES", "amount": 5, "x": 1}, "x"),
        ("buyShares", {}, "marketId: Field required"),
        ("sellShares", {"marketId": "A", "shares": 5}, "you hold no shares of A"),
        ("sellShares", {"positionId": "A-yes", "shares": 5}, "you hold no YES shares of A"),
        ("sellShares", {"shares": 5}, "say what to sell"),
        ("openPosition", {"ticker": "A", "side": "LONG", "amount": 5}, "'A' is no perpetual here"),
        ("openPosition", {"ticker": "P", "side": "LONG"}, "say the margin"),
        ("openPosition", {"ticker": "P", "side": "LONG", "amount": 5, "size": 5}, "say the margin"),
        ("openPosition", {"ticker": "P", "side": "LONG", "amount": 5, "leverage": 100}, "10x leverage"),
        ("closePosition", {"positionId": "P"}, "no position to close"),
        ("closePosition", {"positionId": "pos-17"}, "not a position id"),
        ("createPost", {"content": "<script>"}, "posts are not taken"),
        ("joinGroup", {"groupId": "g"}, "no group chats"),
        ("getFeed", {"limit": 101}, "limit"),
        ("advance", {"wait": 1e9}, "wait"),
        ("nope\x1b[2J", {}, "Unsupported operation: nope\ufffd"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words_and_changes_nothing(operation: str, params: dict, reason: str):
    session = seated(Room(WORLD))
    with pytest.raises(Refused) as refusal:
        ask(session, operation, **params)
    assert reason in str(refusal.value)
    assert (session.order, session.acted, session.room.tick) == (None, False, 0)


def test_a_closed_market_takes_no_orders():
    session = seated(Room(WORLD))
    play_out(session)
    with pytest.raises(Refused, match="closed"):
        ask(session, "buyShares", marketId="A", outcome="YES", amount=5)
    assert ask(session, "getPredictions") == {"predictions": []}
    assert clock(session)["result"]["trades"] == 0


def test_an_engine_quotes_without_being_changed():
    session = seated(Room(WORLD))
    before = (session.engine.cash.copy(), session.engine.prices.copy(), session.engine.yes.copy())
    session.place(Do.BUY_YES, 0, 500.0)
    after = (session.engine.cash, session.engine.prices, session.engine.yes)
    assert all((a == b).all() for a, b in zip(before, after, strict=True))

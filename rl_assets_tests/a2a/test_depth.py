"""Chats, paid sources and posts over A2A, in worlds that have them."""

import pytest

from rl_assets.a2a.command import Command
from rl_assets.a2a.operations import run
from rl_assets.a2a.session import Refused, Room, Session
from rl_assets.agents.replay import replay
from rl_assets.market.config import DIFFICULTIES
from rl_assets.market.generate import generate

HARD = generate("train", 0, DIFFICULTIES["hard"])


def seated(room: Room, name: str = "agent") -> Session:
    session = Session(name, name, room, len(room.sessions), True, 0.0, trajectory_id=f"t-{name}")
    room.sit(session)
    return session


def ask(session: Session, operation: str, **params):
    return run(session, Command(operation, params))


def test_who_joins_reads_what_the_prompt_tells_and_nobody_else_does():
    room = Room(HARD, seats=2)
    insider, outsider = seated(room, "insider"), seated(room, "outsider")
    offered = {chat["id"]: chat for chat in ask(insider, "getChats")["chats"]}
    assert {name: chat["price"] for name, chat in offered.items()} == {"den": 0.0, "inn": 0.0, "gem": 20.0, "orb": 20.0}
    assert not any(chat["joined"] or chat["messages"] for chat in offered.values())
    assert ask(insider, "joinGroup", groupId="gem")["cashChange"] == -20.0
    outsider.act()
    heard = 0
    while not room.finished:
        gem = next(chat for chat in ask(insider, "getChats")["chats"] if chat["id"] == "gem")
        assert gem["joined"]
        lines = [line for line in room.observation(insider).split("\n") if line.startswith("#")]
        assert [f"#gem {message['content']}" for message in gem["messages"]] == lines
        assert not any(chat["messages"] for chat in ask(outsider, "getChats")["chats"])
        heard += len(lines)
        insider.act()
        outsider.act()
    assert heard > 10
    for episode in room.episodes({"insider": "a", "outsider": "b"}):
        assert replay(episode, *HARD) == []


def test_a_post_moves_the_price_of_its_own_market():
    room = Room(HARD)
    session = seated(room)
    silent = seated(Room(HARD))
    assert ask(session, "createPost", content="up and away", marketId="A")["direction"] == "up"
    silent.act()
    assert session.engine.prices[0, 0] > silent.engine.prices[0, 0]
    assert session.cash == silent.cash


@pytest.mark.parametrize(
    ("operation", "params", "reason"),
    [
        ("joinGroup", {"groupId": "gym\x1b"}, "is no group chat here; choose from den, inn, gem, orb"),
        ("createPost", {"content": "buy it", "marketId": "A"}, "begin content with up or down"),
        ("createPost", {"content": "up"}, "say marketId"),
        ("createPost", {"content": "up", "marketId": "P"}, "is no prediction market here"),
    ],
)
def test_what_cannot_be_joined_or_said_is_refused_and_costs_nothing(operation: str, params: dict, reason: str):
    session = seated(Room(HARD))
    with pytest.raises(Refused, match=reason):
        ask(session, operation, **params)
    assert (session.order, session.room.tick, session.cash) == (None, 0, 1000.0)


def test_joining_twice_is_refused():
    session = seated(Room(HARD))
    ask(session, "joinGroup", groupId="den")
    with pytest.raises(Refused, match="joined already"):
        ask(session, "joinGroup", groupId="den")

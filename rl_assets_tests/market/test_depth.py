"""Worlds above the usual difficulty: what they add, that it pays to use it, and that plain worlds do not change."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings

from rl_assets import cli
from rl_assets.agents import prompt
from rl_assets.agents.replay import replay
from rl_assets.agents.reply import Reply
from rl_assets.agents.runner import ReferenceAgent
from rl_assets.agents.skill import audit_skill
from rl_assets.commands.snapshots import DIFFICULTY
from rl_assets.episodes import Policy
from rl_assets.errors import ConfigurationError, MalformedInput
from rl_assets.market.actions import to_orders
from rl_assets.market.audit import audit_snapshot
from rl_assets.market.config import DIFFICULTIES, WorldConfig
from rl_assets.market.depth import NEWS_JUMP
from rl_assets.market.engine import Do, Engine
from rl_assets.market.generate import generate
from rl_assets.market.leakage import audit_leakage
from rl_assets.market.metrics import measure
from rl_assets.market.snapshot import Truth, load_snapshot, load_truth, parse_snapshot, save_snapshot
from rl_assets.reports.summary import by_policy
from rl_assets_tests.market.wild import Scripted, by_id, episodes_of, one, orders, played, side_by_side, world

HARD = DIFFICULTIES["hard"]
PLAIN = WorldConfig()
JOIN_DEN, JOIN_GEM = (Do.JOIN, 0, 0.0), (Do.JOIN, 2, 0.0)


def test_the_standard_world_is_the_plain_one_and_keeps_its_bytes():
    assert DIFFICULTIES["standard"] == PLAIN
    assert set(PLAIN.to_json()) == set(asdict(PLAIN)) - {
        "common", "news_rate", "news_lead", "chats", "paid_sources", "source_price", "post_influence",
    }  # fmt: skip
    assert "whispers" not in world(PLAIN)[0].to_json()
    for word in ("join", "wire", "sways", "chat"):
        assert word not in prompt.system_message(PLAIN)
    assert len(prompt.legal_actions(PLAIN)) == 1 + 4 * 7


@pytest.mark.parametrize("name", DIFFICULTIES)
def test_on_every_difficulty_skill_shows_and_nothing_leaks(name):
    worlds = [world(DIFFICULTIES[name], seed) for seed in range(200)]
    assert [c for w in worlds[:20] for c in audit_snapshot(*w) if not c.passed] == []
    report = audit_skill(worlds[:64])
    assert report.passed, report.detail
    assert [check for check in audit_leakage(worlds) if not check.passed] == []


@pytest.mark.parametrize("name", DIFFICULTIES)
def test_a_world_of_every_difficulty_is_read_as_it_was_written(tmp_path, name):
    snapshot, truth = world(DIFFICULTIES[name])
    path = save_snapshot(tmp_path, snapshot, truth)
    loaded = load_snapshot(tmp_path, snapshot.id)
    assert loaded.config == DIFFICULTIES[name]
    assert loaded.whispers == snapshot.whispers
    assert loaded.to_json() == snapshot.to_json() == json.loads(path.read_text())
    assert load_truth(tmp_path, snapshot.id).digest == truth.digest


def test_adding_instruments_changes_no_number_of_the_others_in_a_hard_world():
    snapshot, truth = world(HARD)
    wider, wider_truth = generate("train", 0, replace(HARD, markets=6, perps=3))
    np.testing.assert_array_equal(wider.crowd[:, :4], snapshot.crowd)
    np.testing.assert_array_equal(wider.perp[:, :2], snapshot.perp)
    np.testing.assert_array_equal(wider_truth.latent[:, :4], truth.latent)
    of_markets = [p for p in snapshot.whispers if p.instrument < 4]
    assert [p for p in wider.whispers if p.instrument < 4] == of_markets


def test_a_common_factor_makes_markets_move_together():
    def correlation(common: float) -> float:
        worlds = [generate("train", seed, WorldConfig(ticks=24, common=common))[1].latents() for seed in range(150)]
        moves = np.concatenate([np.diff(np.log(x / (1.0 - x)), axis=0) for x in worlds])
        return float(np.corrcoef(moves.T)[0, 1])

    assert abs(correlation(0.0)) < 0.06
    assert 0.5 < correlation(0.8) < 0.95


def test_the_wire_tells_of_a_jump_before_the_index_moves():
    config = WorldConfig(ticks=40, markets=0, perps=1, news_rate=0.1, news_lead=2)
    right, moved = [], []
    for seed in range(150):
        snapshot, _ = generate("train", seed, config)
        log_price = np.log(snapshot.perp_prices()[:, 0])
        for post in snapshot.posts:
            if post.source == "wire" and post.tick + config.news_lead <= config.ticks:
                move = log_price[post.tick + config.news_lead] - log_price[post.tick + config.news_lead - 1]
                right.append((move > 0.0) == post.up)
                moved.append(abs(move))
    assert 0.82 < np.mean(right) < 0.95
    assert 0.8 * NEWS_JUMP < np.median(moved) < 1.2 * NEWS_JUMP


def test_only_who_has_joined_reads_what_is_said_there():
    snapshot, _ = world(HARD)
    engine = Engine([snapshot, snapshot, snapshot])
    engine.step(side_by_side([JOIN_DEN, JOIN_GEM, (Do.HOLD, 0, 0.0)]))
    heard = {"den": [], "gem": []}
    while not engine.done:
        den, gem, nobody = prompt.observations(engine)
        assert "#" not in nobody
        assert "\nin " not in nobody
        assert "\nin den" in den
        assert "#gem" not in den
        assert "#den" not in gem
        for name, text in (("den", den), ("gem", gem)):
            heard[name] += [line for line in text.split("\n") if line.startswith("#")]
        engine.step(side_by_side([(Do.HOLD, 0, 0.0)] * 3))
    names = HARD.instruments
    for channel, lines in heard.items():
        assert lines == [
            f"#{channel} {'up' if p.up else 'down'} {names[p.instrument]}"
            for p in snapshot.whispers
            if p.source == channel and p.tick >= 1
        ]
        assert lines


def test_joining_costs_what_it_says_once():
    engine = Engine([world(HARD)[0]])
    assert engine.step(one(JOIN_DEN)).valid[0]
    assert engine.cash[0] == HARD.start_cash
    assert engine.step(one(JOIN_GEM)).reward[0] == -HARD.source_price
    assert engine.fees[0] == HARD.source_price
    fills = engine.step(one(JOIN_GEM))
    assert fills.error[0] == "joined already"
    assert engine.cash[0] == HARD.start_cash - HARD.source_price - HARD.breach_fee
    assert engine.step(one((Do.JOIN, 4, 0.0))).error[0] == "nothing of that name to join"
    assert engine.trades[0] == 0
    poor = Engine([world(replace(HARD, start_cash=10.0))[0]])
    assert poor.step(one(JOIN_GEM)).error[0] == "not enough cash"
    assert not poor.joined.any()


def test_a_post_sways_the_crowd_less_each_time_and_fades():
    config = replace(HARD, post_influence=0.5)
    snapshot, _ = world(config)
    spoken, silent = Engine([snapshot]), Engine([snapshot])
    gaps = []
    for order in [(Do.POST_UP, 0, 0.0)] + [(Do.HOLD, 0, 0.0)] * 12:
        assert spoken.step(one(order)).valid[0]
        silent.step(one((Do.HOLD, 0, 0.0)))
        gaps.append(spoken.prices[0, 0] - silent.prices[0, 0])
    assert max(gaps) > 0.01
    assert gaps[-1] < 0.2 * max(gaps)
    np.testing.assert_array_equal(spoken.prices[0, 1:], silent.prices[0, 1:])
    again = Engine([snapshot])
    again.step(one((Do.POST_DOWN, 1, 0.0)))
    assert again._voice[0].tolist() == [0.5, 0.25, 0.5, 0.5]
    assert again.cash[0] == config.start_cash


@given(script=orders(HARD))
@settings(max_examples=25, deadline=None)
def test_no_order_in_a_hard_world_leaves_debt_or_a_price_that_is_none(script):
    engine, fills = played(HARD, script)
    assert engine.cash[0] >= 0.0
    assert ((engine.prices >= 0.01 - 1e-9) & (engine.prices <= 0.99 + 1e-9)).all()
    assert sum(float(f.reward[0]) for f in fills) == pytest.approx(engine.equity[0] - HARD.start_cash, abs=1e-6)


@pytest.mark.parametrize("do", [Do.JOIN, Do.POST_UP, Do.POST_DOWN])
def test_plain_worlds_have_nothing_to_join_and_nobody_who_reads(do):
    engine = Engine([world(PLAIN)[0]])
    fills = engine.step(one((do, 0, 0.0)))
    assert not fills.valid[0]
    assert engine.cash[0] == PLAIN.start_cash - PLAIN.breach_fee
    text = {Do.JOIN: '{"chat":"den","do":"join"}'}.get(do, f'{{"market":"A","do":"{do.name.lower()}"}}')
    _, _, errors = to_orders([text], PLAIN)
    assert errors == ["`do` is not one of the schema"]


def test_every_legal_action_of_a_hard_world_is_read_as_it_was_meant():
    texts = prompt.legal_actions(HARD)
    assert len(set(texts)) == len(texts) == 1 + 6 * 7 + 4 * 2 + 4
    read, _, errors = to_orders(texts, HARD)
    assert errors == [None] * len(texts)
    assert prompt.render_orders(read, HARD) == texts


@pytest.mark.parametrize(
    "text",
    ['{"chat":"gym","do":"join"}', '{"chat":3,"do":"join"}', '{"do":"join"}', '{"market":"Z","do":"post_up"}'],
)
def test_what_cannot_be_joined_or_spoken_of_says_so(text):
    read, _, errors = to_orders([text], HARD)
    assert read.do[0] == Do.INVALID
    assert errors[0] is not None
    assert "is not one of this world" in errors[0]


class Insider:
    """Joins a channel at the start and then trades what it says; without one it trades what oak says."""

    sampling = None

    def __init__(self, channel: str | None) -> None:
        self.policy = Policy(f"insider of {channel}")
        self._channel = channel

    def sit(self, engine: Engine, rows: np.ndarray, truths: list[Truth], seeds: list[tuple[int, ...]]) -> "Insider":
        return self

    def reply(self, observations: Sequence[str]) -> list[Reply]:
        return [Reply(self._answer(text)) for text in observations]

    def _answer(self, text: str) -> str:
        if self._channel and f"in {self._channel}" not in text:
            return f'{{"chat":"{self._channel}","do":"join"}}'
        mark = f"#{self._channel}" if self._channel else "@oak"
        said = [line.split() for line in text.split("\n") if line.startswith(mark)]
        cash = int(text.split("\n")[0].split()[-1])
        if not said or cash < 75:
            return prompt.HOLD_TEXT
        _, way, name = said[0]
        kinds = {"up": "long", "down": "short"} if name in "PQ" else {"up": "buy_yes", "down": "buy_no"}
        return f'{{"market":"{name}","do":"{kinds[way]}","size":50}}'


def test_a_good_paid_source_is_worth_its_price_and_a_bad_one_is_not():
    earned = {
        channel: np.mean([e.expected_pnl or 0.0 for e in episodes_of([Insider(channel)], range(48), HARD)])
        for channel in (None, "gem", "den", "orb")
    }
    assert earned["gem"] > earned["den"] > earned["orb"]
    assert earned["gem"] > 2.0 * earned[None] + HARD.source_price


def test_talking_a_market_up_to_sell_into_it_does_not_pay():
    buy, close, up = (
        '{"market":"A","do":"buy_yes","size":100}',
        '{"market":"A","do":"close"}',
        '{"market":"A","do":"post_up"}',
    )
    pump, plain = [buy, up, up, close], [buy, prompt.HOLD_TEXT, prompt.HOLD_TEXT, close]
    pumped, held = (
        np.array([e.expected_pnl or 0.0 for e in episodes_of([Scripted("it", lines * 6)], range(128), HARD)])
        for lines in (pump, plain)
    )
    assert pumped.mean() > held.mean()
    assert pumped.mean() < 0.0


def test_hard_episodes_replay_bit_for_bit_and_metrics_measure_them():
    lines = ['{"chat":"gem","do":"join"}', '{"market":"B","do":"post_down"}', '{"market":"P","do":"long","size":50}']
    episodes = episodes_of([Scripted("it", lines), ReferenceAgent("news_follower")], range(3), HARD)
    for place, episode in enumerate(episodes):
        assert replay(episode, *world(HARD, place % 3)) == []
    measured = measure(by_policy(episodes), by_id(range(3), HARD))
    trades = measured["it"].values["trades"]
    assert trades is not None
    assert trades.mean == 1.0
    touched = replace(
        episodes[0],
        steps=(replace(episodes[0].steps[0], response=prompt.HOLD_TEXT), *episodes[0].steps[1:]),
    )
    assert replay(touched, *world(HARD)) != []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"whispers": [[0, 0, "oak", True]]}, "whispers of others"),
        ({"whispers": [[0, 0, "gem", True], [0, 0, "den", True]]}, "whispers are not in order"),
        ({"whispers": [[99, 0, "gem", True]]}, "post at tick 99"),
    ],
    ids=str,
)
def test_malformed_whispers_are_refused(change, fault):
    with pytest.raises(MalformedInput, match=fault):
        parse_snapshot(world(HARD)[0].to_json() | change, "here.json")


def test_a_plain_snapshot_has_no_whispers():
    with pytest.raises(MalformedInput, match="whispers of others"):
        parse_snapshot(world(PLAIN)[0].to_json() | {"whispers": [[0, 0, "den", True]]}, "here.json")


@pytest.mark.parametrize(
    "wrong",
    [{"common": 1.0}, {"chats": 3}, {"paid_sources": -1}, {"news_rate": 2.0}, {"post_influence": -0.1}],
    ids=str,
)
def test_depth_beyond_its_limits_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="choose one inside"):
        WorldConfig(**wrong)


def test_the_command_line_knows_every_difficulty_and_keeps_the_gate_standard(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RL_ASSETS_DATA", str(tmp_path))
    assert tuple(DIFFICULTY.choices) == tuple(DIFFICULTIES)
    assert cli.run(["snapshots", "generate", "--split", "gate", "--difficulty", "hard"]) == cli.BAD_INPUT
    assert "the gate plays standard worlds alone" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_agents_are_compared_on_hard_worlds_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RL_ASSETS_DATA", str(tmp_path))
    line = ["compare", "hold", "oracle", "--split", "train", "--count", "2", "--difficulty", "hard"]
    assert cli.run([*line, "--out", str(tmp_path / "out")]) == 0
    assert "leaderboard on 2 snapshots of 1 market days" in capsys.readouterr().out

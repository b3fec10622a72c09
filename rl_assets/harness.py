"""Making experience: agents play train snapshots and what they did is recorded, as Babylon would record it.

What becomes of the record (judging, training, the gate) is the pipeline's business; `rl_assets.follow` watches it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rl_assets.agents.reference import REFERENCE_AGENTS
from rl_assets.agents.runner import Assignment, ReferenceAgent, play
from rl_assets.episodes import Episode, Policy, digest
from rl_assets.errors import ConfigurationError
from rl_assets.market.config import WorldConfig
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import SNAPSHOTS_PER_DAY, SPLITS, World, save_snapshot
from rl_assets.registry.models import get_latest_rl_model, register_base
from rl_assets.registry.rollout import has_candidate, staged_rollout
from rl_assets.settings import Settings
from rl_assets.store.agents import provision_agents
from rl_assets.store.episodes import new_ids, write_episodes
from rl_assets.store.ledger import Readiness, readiness
from rl_assets.store.snapshots import list_snapshots, register_snapshots

if TYPE_CHECKING:
    import psycopg

    from rl_assets.registry.models import PlayableModel

MODEL = "model"
"""Name under which the champion plays; every other agent is a reference agent."""
AGENTS = (MODEL, *REFERENCE_AGENTS)

SEEDS_PER_RUN = 1000
"""Snapshot seeds that belong to one harness seed, so that two harness seeds play different market days."""
PLAYABLE = range(SPLITS["train"].start, SPLITS["train"].stop - 20_000)
"""Train seeds that a harness plays; the others are kept for the base policy to imitate."""
MARGIN = 1.15
"""Episodes played per episode wanted: groups in which all do equally well cannot be trained on."""
WORLDS_AT_ONCE = 32
"""Snapshots that are played, and then recorded in one transaction, together."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of it are done, and how many there are."""


@dataclass(frozen=True)
class Plan:
    """snapshots: train snapshots, None for as many as the threshold needs. siblings: the model's episodes on each;
    a reference agent plays each once. seed: None for the next one that nobody has played. gate_snapshots: how many
    snapshots of the gate there should be."""

    snapshots: int | None = None
    siblings: int = 16
    seed: int | None = None
    agents: tuple[str, ...] = AGENTS
    gate_snapshots: int = 64

    def __post_init__(self) -> None:
        unknown = sorted(set(self.agents) - set(AGENTS))
        if unknown or not self.agents:
            raise ConfigurationError(
                f"there is no agent {', '.join(unknown) or '(none given)'}; choose from {', '.join(AGENTS)}"
            )
        for name, value, least, most in (
            ("snapshots", 1 if self.snapshots is None else self.snapshots, 1, SEEDS_PER_RUN),
            ("siblings", self.siblings, 1, 512),
            ("seed", 0 if self.seed is None else self.seed, 0, len(PLAYABLE) // SEEDS_PER_RUN - 1),
            ("gate_snapshots", self.gate_snapshots, 0, len(SPLITS["gate"])),
        ):
            if not least <= value <= most:
                raise ConfigurationError(f"{name}={value} is outside {least}..{most}; choose one inside")


@dataclass(frozen=True)
class Played:
    """What a harness run recorded. `digest` is over what was played: equal for equal seeds and champions."""

    seed: int
    model: PlayableModel
    snapshots: int
    trajectory_ids: tuple[str, ...]
    trainable_ids: tuple[str, ...]
    rows: tuple[AgentRow, ...]
    digest: str


@dataclass(frozen=True)
class AgentRow:
    """Means per episode of one agent; money in dollars."""

    agent: str
    policy: str
    episodes: int
    expected_pnl: float
    realised_pnl: float
    trades: float
    breaches: float


def live_model(conn: psycopg.Connection, settings: Settings, on_progress: Progress) -> PlayableModel:
    """The champion; where there is none yet, the base policy is built, registered and becomes it."""

    def built(done: int, total: int) -> None:
        on_progress("building the base policy", done, total)

    from rl_assets.training.lines import base_of

    base = base_of(settings, settings.data_dir, built)
    register_base(conn, settings.model_line, base.path, base.digest, metrics=base.metrics)
    return get_latest_rl_model(conn, settings.model_line)


def snapshots_for(ready: Readiness, minimum: int, siblings: int) -> int:
    """How many snapshots bring what waits to `minimum` trainable episodes: whole market days, at least one."""
    missing = max(minimum - ready.fresh, 0) * MARGIN
    days = math.ceil(missing / (siblings * SNAPSHOTS_PER_DAY))
    return min(max(days, 1) * SNAPSHOTS_PER_DAY, SEEDS_PER_RUN)


def next_seed(conn: psycopg.Connection) -> int:
    """The harness seed after the highest whose snapshots are registered."""
    taken = [row.seed for row in list_snapshots(conn, split="train") if row.seed in PLAYABLE]
    seed = max(taken) // SEEDS_PER_RUN + 1 if taken else 0
    if (seed + 1) * SEEDS_PER_RUN > len(PLAYABLE):
        raise ConfigurationError("every seed of the train split has been played; choose one to play again with --seed")
    return seed


def provide(
    conn: psycopg.Connection, settings: Settings, split: str, seeds: Sequence[int], config: WorldConfig | None = None
) -> list[World]:
    """Generate worlds, write their files and register them; those that are there already stay as they are."""
    worlds = [generate(split, seed, config) for seed in seeds]
    for snapshot, truth in worlds:
        save_snapshot(settings.tree.snapshots, snapshot, truth)
    register_snapshots(conn, [snapshot for snapshot, _ in worlds])
    return worlds


def run(
    conn: psycopg.Connection, settings: Settings, plan: Plan, model: PlayableModel, on_progress: Progress
) -> Played:
    """Provide agents and snapshots, play, and record. Nothing of an episode is recorded before its end."""
    ready = readiness(conn, settings.model_line, model.step, settings.most_stale)
    seed = next_seed(conn) if plan.seed is None else plan.seed
    count = plan.snapshots or snapshots_for(ready, settings.min_trajectories, plan.siblings)
    first = PLAYABLE.start + seed * SEEDS_PER_RUN
    worlds = provide(conn, settings, "train", range(first, first + count))
    gate = SPLITS["gate"]
    provide(conn, settings, "gate", gate[: plan.gate_snapshots])
    assignments = _assignments(conn, plan, model)

    total = sum(a.siblings for a in assignments) * len(worlds)
    ids: list[str] = []
    trainable: list[str] = []
    hashes: list[str] = []
    tally: dict[str, list[Episode]] = {}
    for start in range(0, len(worlds), WORLDS_AT_ONCE):
        part = worlds[start : start + WORLDS_AT_ONCE]
        done = len(ids)
        episodes = play(
            assignments,
            part,
            seed=seed,
            new_ids=new_ids,
            on_progress=lambda more, _, done=done: on_progress("playing", done + more, total),
        )
        write_episodes(conn, episodes)
        ids += [episode.trajectory_id for episode in episodes]
        trainable += [episode.trajectory_id for episode in episodes if episode.not_trainable is None]
        hashes += [episode.content_hash for episode in episodes]
        for episode in episodes:
            tally.setdefault(str(episode.policy), []).append(episode)
    rows = tuple(_row(policy, episodes) for policy, episodes in tally.items())
    return Played(seed, model, len(worlds), tuple(ids), tuple(trainable), rows, digest(sorted(hashes)))


def _assignments(conn: psycopg.Connection, plan: Plan, model: PlayableModel) -> list[Assignment]:
    from rl_assets.agents.line_player import agent_of

    agent_ids = provision_agents(conn, plan.agents)
    assignments = []
    for name in dict.fromkeys(plan.agents):
        if name != MODEL:
            assignments.append(Assignment(ReferenceAgent(name), agent_ids[name]))
            continue
        for live, agent_id, siblings in _sides(conn, plan, model, agent_ids[name]):
            agent = agent_of(live.checkpoint_path, Policy(live.model_line, live.step))
            assignments.append(Assignment(agent, agent_id, siblings))
    return assignments


def _sides(
    conn: psycopg.Connection, plan: Plan, champion: PlayableModel, agent_id: str
) -> list[tuple[PlayableModel, str, int]]:
    """Who plays for the line, and how many siblings: the champion; while a candidate is on its way, an agent with it
    as well, with its share of the episodes, so that the two can be compared on the same snapshots."""
    rollout = staged_rollout(conn, champion.model_line)
    if rollout is None:
        return [(champion, agent_id, plan.siblings)]
    found: dict[bool, str] = {}
    names = (MODEL if number == 0 else f"{MODEL}-{number}" for number in itertools.count())
    while len(found) < 2:  # of agents with names in a row, the first on either side
        name = next(names)
        one = provision_agents(conn, [name])[name]
        found.setdefault(has_candidate(rollout, one), one)
    candidate = get_latest_rl_model(conn, champion.model_line, found[True])
    share = max(1, round(plan.siblings * rollout.percentage / 100))
    return [(champion, found[False], max(1, plan.siblings - share)), (candidate, found[True], share)]


def _row(policy: str, episodes: Sequence[Episode]) -> AgentRow:
    def mean(name: str) -> float:
        return math.fsum(getattr(episode, name) for episode in episodes) / len(episodes)

    return AgentRow(
        agent=episodes[0].policy.name,
        policy=policy,
        episodes=len(episodes),
        expected_pnl=mean("expected_pnl"),
        realised_pnl=mean("realised_pnl"),
        trades=mean("trades"),
        breaches=mean("breaches"),
    )

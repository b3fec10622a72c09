"""Playing the gate: candidate, champion and reference agents on the same snapshots, and what they are worth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from rl_assets.agents.runner import Assignment, ReferenceAgent, play
from rl_assets.agents.skill import audit_kind_skill
from rl_assets.episodes import Episode, Policy
from rl_assets.errors import MalformedInput
from rl_assets.market.audit import Check, audit_snapshot
from rl_assets.market.leakage import audit_kind
from rl_assets.market.snapshot import World, load_world
from rl_assets.places import Place
from rl_assets.registry.decisions import Evaluation, latest_evaluation, look_number, record_evaluation
from rl_assets.registry.gate import Decision, Play, compare
from rl_assets.registry.models import PlayableModel, champion_step, get_model, model_of_batch, playable
from rl_assets.store.episode_files import read_episodes_parquet, write_episodes_parquet
from rl_assets.store.snapshots import list_snapshots

if TYPE_CHECKING:
    import psycopg

    from rl_assets.store.ledger import Batch

REFERENCES = ("hold", "random", "momentum", "news_follower", "oracle")
"""Reference agents that play the gate as well, so that its results can be told as skill."""


def evaluate(
    conn: psycopg.Connection,
    batch: Batch,
    snapshots: Place,
    record: Place,
    *,
    most_snapshots: int,
    siblings: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Evaluation, list[Episode]]:
    """The gate's decision on a batch's candidate, recorded, and everybody's episodes, written to the Parquet `record`.

    snapshots: the directory of snapshot files, of which the first `most_snapshots` that are registered are played. A
    decision against the champion of now stands: a candidate is not given two tries at it. Raises LedgerConflict where
    the batch has made no model, MissingCheckpoint, and MalformedInput where there are no snapshots or they are broken.
    """
    candidate = model_of_batch(conn, batch.id)
    line, champion_now = candidate.model_line, champion_step(conn, candidate.model_line)
    known = latest_evaluation(conn, batch.id)
    if known is not None and candidate.state == "candidate" and known.champion_step != champion_now:
        known = None
    if known is not None and record.is_file():
        return known, read_episodes_parquet(record)
    opponent = champion_now if known is None else known.champion_step
    assert opponent is not None  # a candidate stands on a registered step, and the first of these is champion
    models = playable(candidate), playable(get_model(conn, line, opponent))
    worlds = gate_worlds(conn, snapshots, most_snapshots)
    episodes = play_gate(worlds, *models, siblings=siblings, seed=seed, on_progress=on_progress)
    write_episodes_parquet(record, episodes)
    if known is None:
        look = look_number(conn, line, opponent, candidate.step)
        decision = decide(worlds, episodes, Policy(line, candidate.step), Policy(line, opponent), look=look)
        known = record_evaluation(
            conn, batch_id=batch.id, candidate_step=candidate.step, champion_step=opponent, decision=decision
        )
    return known, episodes


def gate_worlds(conn: psycopg.Connection, snapshots: Place, most: int) -> list[World]:
    """The first `most` registered gate snapshots, audited once more, each of them and their kind of world: where one
    leaks, its seed did not make it or skill does not show, nothing is decided and nobody is ranked.

    snapshots: the directory of snapshot files. Raises MalformedInput where there are none, or they are broken.
    """
    ids = [row.id for row in list_snapshots(conn, split="gate")[:most]]
    if not ids:
        raise MalformedInput("no gate snapshot is registered; run `rl-assets snapshots generate --split gate`")
    return [_sound(load_world(snapshots, key)) for key in ids]


def _sound(world: World) -> World:
    snapshot, truth = world
    skill = audit_kind_skill(snapshot.config)
    shows = Check("skill_is_measurable", skill.passed, skill.detail)
    for check in (*audit_snapshot(snapshot, truth), *audit_kind(snapshot.config), shows):
        if not check.passed:
            raise MalformedInput(
                f"gate snapshot {snapshot.id} fails its audit ({check.name}: {check.detail}); generate it again with "
                "`rl-assets snapshots generate --split gate`, or delete its registration"
            )
    return world


def play_gate(
    worlds: Sequence[World],
    candidate: PlayableModel,
    champion: PlayableModel,
    *,
    siblings: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Episode]:
    """Episodes of both models, paired by snapshot and sibling, then one per snapshot of each reference agent.

    They are evaluations: nothing learns from them. Raises MissingCheckpoint where a model is not on disk.
    """
    from rl_assets.agents.line_player import agent_of

    models = [agent_of(m.checkpoint_path, Policy(m.model_line, m.step)) for m in (candidate, champion)]
    assignments = [Assignment(agent, str(agent.policy), siblings) for agent in models]
    assignments += [Assignment(ReferenceAgent(name), name) for name in REFERENCES]
    numbers = itertools.count()
    return play(
        assignments,
        worlds,
        seed=seed,
        new_ids=lambda n: [f"gate-{candidate.model_line}-{candidate.step}-{next(numbers):06d}" for _ in range(n)],
        is_evaluation=True,
        on_progress=on_progress,
    )


def decide(
    worlds: Sequence[World],
    episodes: Sequence[Episode],
    candidate: Policy,
    champion: Policy,
    *,
    look: int,
) -> Decision:
    """The gate's decision on episodes that `play_gate` has played. Raises MalformedInput where pairs are missing."""
    snapshots = [snapshot.id for snapshot, _ in worlds]
    days = np.array([snapshot.day for snapshot, _ in worlds], dtype=np.int64)
    ours, theirs = (play_of(episodes, policy, snapshots) for policy in (candidate, champion))
    return compare(days, ours, theirs, look=look)


def play_of(episodes: Sequence[Episode], policy: Policy, snapshots: Sequence[str]) -> Play:
    """The numbers of a policy's episodes, by snapshot and sibling. Raises MalformedInput where one is missing."""
    mine = {(e.snapshot_id, e.sibling): e for e in episodes if e.policy == policy}
    siblings = max((sibling for _, sibling in mine), default=0) + 1
    table = [[mine.get((snapshot, sibling)) for sibling in range(siblings)] for snapshot in snapshots]
    for snapshot, row in zip(snapshots, table, strict=True):
        if any(episode is None or episode.expected_pnl is None for episode in row):
            raise MalformedInput(f"{policy} has not played {snapshot} to its end; play the gate again")
    return Play(**{f.name: np.array([[getattr(e, f.name) for e in row] for row in table], float) for f in fields(Play)})

"""Every version of a model line and the reference agents on the same gate snapshots: what they played and who leads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rl_assets.agents.comparison import Entrant, Progress, play_missing
from rl_assets.agents.line_player import remote_of
from rl_assets.agents.prompt import PROMPT_VERSION
from rl_assets.agents.reference import REFERENCE_AGENTS
from rl_assets.agents.remote import RemoteAgent
from rl_assets.agents.runner import Agent, Assignment, ReferenceAgent, Table, play_seats
from rl_assets.episodes import Episode, Policy, Sampling
from rl_assets.errors import ConfigurationError, MalformedInput, MissingCheckpoint, ServiceError
from rl_assets.market.engine import Engine
from rl_assets.market.leaderboard import Leaderboard, leaderboard
from rl_assets.market.snapshot import Truth, World
from rl_assets.places import Place
from rl_assets.registry.evaluate import gate_worlds
from rl_assets.registry.models import list_models, playable
from rl_assets.registry.retention import pruned_steps
from rl_assets.store.episode_files import GrowingFile, read_episodes_parquet
from rl_assets.tree import RunFiles

if TYPE_CHECKING:
    import psycopg

    from rl_assets.registry.rows import Model

PROBE = "random"
"""The reference agent of whom one episode, played again, shows with which seed and engine a file was played."""


@dataclass(frozen=True)
class Standings:
    """episodes: of each policy, the champion's first. models: versions that take part, by policy. left_out: why the
    others do not, by policy. reused: episodes that had been played before."""

    board: Leaderboard
    episodes: dict[str, list[Episode]]
    worlds: list[World]
    models: dict[str, Model]
    left_out: dict[str, str]
    reused: int

    @property
    def mistrust(self) -> list[str]:
        """What no fair market shows: an oracle that does not lead, or holding that earns something."""
        leader = self.board.standings[0].policy
        found = [] if leader == "oracle" else [f"{leader} is ahead of the oracle"]
        if any(episode.expected_pnl != 0.0 for episode in self.episodes["hold"]):
            found.append("holding is not worth 0")
        return found


def play_line(
    conn: psycopg.Connection,
    model_line: str,
    snapshots: Place,
    directory: Place,
    records: Callable[[str], Place],
    *,
    most_snapshots: int,
    siblings: int,
    seed: int,
    on_progress: Progress,
) -> Standings:
    """Rank the versions whose checkpoints are whole, `siblings` episodes per snapshot, with the reference agents.

    snapshots: the directory of snapshot files, of which the first `most_snapshots` of the gate are played. directory:
    where episodes are kept. records: the file in which a batch's evaluation kept its episodes. What these files hold is
    not played again, if it was played with this seed. Raises MalformedInput where there are no snapshots, one fails its
    audit, or files are broken.
    """
    worlds = gate_worlds(conn, snapshots, most_snapshots)
    models, left_out = _whole(conn, model_line)
    entrants = [
        *(Entrant(_player(model), {"digest": model.digest}, siblings) for model in models.values()),
        *(Entrant(ReferenceAgent(name), {}) for name in REFERENCE_AGENTS),
    ]
    kept = GrowingFile(RunFiles(directory).episodes)
    files = [records(model.batch_id) for model in models.values() if model.batch_id is not None]
    known = _agreeing(kept.episodes, worlds, seed)
    for file in files:
        known += _agreeing(read_episodes_parquet(file), worlds, seed) if file.is_file() else []
    played = 0

    def keep(episodes: Sequence[Episode]) -> None:
        nonlocal played
        played += len(episodes)
        kept.add(episodes)

    results = play_missing(entrants, worlds, seed=seed, known=known, keep=keep, on_progress=on_progress)
    for failure in results.failures:
        raise MalformedInput(f"{failure.agent} cannot play {failure.snapshot_id}: {failure.reason}")
    reused = sum(len(mine) for mine in results.episodes.values()) - played
    return Standings(leaderboard(results.episodes), results.episodes, worlds, models, left_out, reused)


def _player(model: Model) -> Agent | RemoteAgent:
    """A version as it plays: asked where it is served, or loaded in this process."""
    return remote_of(model.checkpoint_path, Policy(model.model_line, model.step)) or _Checkpoint(model)


class _Checkpoint:
    """A version that is loaded when it has to play, and let go afterwards: a line may have more than fit in memory."""

    def __init__(self, model: Model) -> None:
        from rl_assets.agents.neural import most_at_once

        assert isinstance(model.checkpoint_path, Path)
        self.policy = Policy(model.model_line, model.step)
        self.sampling: Sampling | None = None
        self._path = model.checkpoint_path
        self.most_at_once = most_at_once(self._path)

    def sit(self, engine: Engine, rows: np.ndarray, truths: list[Truth], seeds: list[tuple[int, ...]]) -> Table:
        from rl_assets.agents.neural import NeuralAgent

        agent = NeuralAgent(self._path, self.policy)
        self.sampling = agent.sampling
        return agent.sit(engine, rows, truths, seeds)


def _whole(conn: psycopg.Connection, model_line: str) -> tuple[dict[str, Model], dict[str, str]]:
    """Versions that can be played here, the champion first, and why the others cannot."""
    models, left_out = {}, {}
    given_up = pruned_steps(conn, model_line)
    for model in sorted(list_models(conn, model_line), key=lambda model: model.state != "champion"):
        name = str(Policy(model.model_line, model.step))
        if model.step in given_up:
            # Where machines share a store, looking at it would fetch it from there, and nothing would prune it again.
            left_out[name] = "its checkpoint was pruned"
            continue
        try:
            playable(model)
            remote_of(model.checkpoint_path, Policy(model.model_line, model.step))
        except (MissingCheckpoint, ConfigurationError, ServiceError) as error:
            left_out[name] = str(error)
        else:
            models[name] = model
    return models, left_out


def _agreeing(episodes: Sequence[Episode], worlds: Sequence[World], seed: int) -> list[Episode]:
    """Episodes on these worlds, if they were played with this seed and an engine that agrees; else none of them."""
    known = {snapshot.id: (snapshot, truth) for snapshot, truth in worlds}
    mine = [e for e in episodes if e.snapshot_id in known and e.prompt_version == PROMPT_VERSION]
    probes = [e for e in mine if e.policy == Policy(PROBE)][:1]
    for probe in probes:
        agent = Assignment(ReferenceAgent(PROBE), PROBE)
        seats = [(known[str(probe.snapshot_id)], probe.sibling)]
        (again,) = play_seats(agent, seats, seed=seed, ids=[probe.trajectory_id], is_evaluation=True)
        if again.content_hash == probe.content_hash:
            return mine
    return []

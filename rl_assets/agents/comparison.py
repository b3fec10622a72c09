"""Agents on a chosen set of snapshots: who plays what, what is played already, and who did better.

A comparison lives in a directory. Every episode is kept there when it ends, so that one which was stopped, or in which
an agent failed, plays only what is missing when it is run again.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_assets.agents.prompt import PROMPT_VERSION
from rl_assets.agents.remote import Begin, NoAnswer, RemoteAgent, converse
from rl_assets.agents.runner import Agent, Assignment, Player, at_once, play_seats
from rl_assets.episodes import Episode, digest
from rl_assets.errors import ConfigurationError, MalformedInput, RlAssetsError
from rl_assets.market.leaderboard import Leaderboard, leaderboard
from rl_assets.market.snapshot import World
from rl_assets.places import Place
from rl_assets.store.episode_files import GrowingFile, write_json
from rl_assets.tree import RunFiles

_log = logging.getLogger(__name__)
PLAN = "comparison.json"
SEATS_AT_ONCE = 128
"""Episodes of an agent in this process that are played, and then kept, together."""
GIVE_UP_AFTER = 5
"""Episodes of a remote agent that fail in a row; then the rest of them fail unasked."""

Seat = tuple[World, int]
"""A world, and the number of the sibling that plays it."""
Progress = Callable[[str, int, int], None]
"""Called with an agent, and how many of its episodes are done and in all."""


@dataclass(frozen=True)
class Entrant:
    """An agent that takes part. identity: what its play depends on besides snapshot, sibling and seed, as JSON.
    siblings: its episodes on each snapshot."""

    agent: Agent | RemoteAgent
    identity: Mapping[str, Any]
    siblings: int = 1

    @property
    def name(self) -> str:
        return str(self.agent.policy)


@dataclass(frozen=True)
class Failure:
    """An episode that an agent did not play to its end."""

    agent: str
    snapshot_id: str
    sibling: int
    reason: str


@dataclass(frozen=True)
class Results:
    """episodes: of each entrant, in order of snapshot and sibling. failures: what is missing, with the reasons."""

    episodes: dict[str, list[Episode]]
    failures: list[Failure]

    def ranking(self) -> Leaderboard | None:
        """Those who played everything, ranked; None where nobody did."""
        failed = {failure.agent for failure in self.failures}
        whole = {name: mine for name, mine in self.episodes.items() if mine and name not in failed}
        return leaderboard(whole) if whole else None


def run(
    directory: Path, entrants: Sequence[Entrant], worlds: Sequence[World], *, seed: int, on_progress: Progress
) -> tuple[Results, Place | None]:
    """Play what the directory lacks, and write the report, which is None where there is no episode to report on.

    Raises ConfigurationError where the directory holds another comparison or two entrants have one name, MalformedInput
    where its files are broken, and RlAssetsError where another process works in it or the disk refuses.
    """
    from rl_assets.reports.runs import write_comparison_report, write_run_report

    plan = plan_of(entrants, worlds, seed)
    with _taken(directory, plan):
        kept = GrowingFile(RunFiles(directory).episodes)
        results = play_missing(entrants, worlds, seed=seed, known=kept.episodes, keep=kept.add, on_progress=on_progress)
        some = {name: mine for name, mine in results.episodes.items() if mine}
        known = {snapshot.id: (snapshot, truth) for snapshot, truth in worlds}
        if not some:
            return results, None
        if len(some) == 1:
            return results, write_run_report(directory, next(iter(some.values())), worlds=known)
        return results, write_comparison_report(directory, some, worlds=known)


def plan_of(entrants: Sequence[Entrant], worlds: Sequence[World], seed: int) -> dict[str, Any]:
    """What a comparison is, as JSON: equal for two runs that may share their episodes. Raises ConfigurationError."""
    names = [entrant.name for entrant in entrants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"{twice[0]} is named twice; name every agent once")
    return {
        "seed": seed,
        "prompt": PROMPT_VERSION,
        "snapshots": [snapshot.id for snapshot, _ in worlds],
        "agents": {entrant.name: {**entrant.identity, "siblings": entrant.siblings} for entrant in entrants},
    }


def play_missing(
    entrants: Sequence[Entrant],
    worlds: Sequence[World],
    *,
    seed: int,
    known: Sequence[Episode],
    keep: Callable[[Sequence[Episode]], None],
    on_progress: Progress,
) -> Results:
    """Let every entrant play each world with all its siblings, except what is known. `keep` is called with episodes as
    they end. A failure fails its own episode alone."""
    have = {_key(str(e.policy), str(e.snapshot_id), e.sibling): e for e in known}
    wanted = {e.name: [(world, sibling) for world in worlds for sibling in range(e.siblings)] for e in entrants}
    failures: list[Failure] = []
    remote: list[_Play] = []
    for entrant in entrants:
        seats = wanted[entrant.name]
        missing = [(world, n) for world, n in seats if _key(entrant.name, world[0].id, n) not in have]
        playing = _Play(entrant, seed, missing, len(seats), have, failures, keep, on_progress)
        if isinstance(entrant.agent, RemoteAgent):
            remote.append(playing)
        else:
            playing.here(entrant.agent)
    if remote:
        asyncio.run(_together(remote))
    episodes = {
        name: [have[key] for world, n in seats if (key := _key(name, world[0].id, n)) in have]
        for name, seats in wanted.items()
    }
    return Results(episodes, failures)


def _key(name: str, snapshot_id: str, sibling: int) -> tuple[str, str, int]:
    return name, snapshot_id, sibling


async def _together(playing: Sequence[_Play]) -> None:
    await asyncio.gather(*(play.afar() for play in playing))


@dataclass
class _Play:
    """One entrant at play. have, failures: of everybody. in_a_row: episodes that failed since one last did not."""

    entrant: Entrant
    seed: int
    missing: list[Seat]
    total: int
    have: dict[tuple[str, str, int], Episode]
    failures: list[Failure]
    keep: Callable[[Sequence[Episode]], None]
    on_progress: Progress
    in_a_row: int = 0

    def __post_init__(self) -> None:
        self._done = self.total - len(self.missing)
        self._tell(0)

    def here(self, agent: Agent) -> None:
        """Play in this process, episodes of one configuration side by side."""
        assignment = Assignment(agent, self.entrant.name)
        for config in dict.fromkeys(snapshot.config for (snapshot, _), _ in self.missing):
            alike = [seat for seat in self.missing if seat[0][0].config == config]
            width = at_once(agent, SEATS_AT_ONCE)
            for start in range(0, len(alike), width):
                part = alike[start : start + width]
                ids = [self._id(seat) for seat in part]
                try:
                    episodes = play_seats(assignment, part, seed=self.seed, ids=ids, is_evaluation=True)
                except MalformedInput as error:
                    self._failed(part, str(error))
                except MemoryError:
                    raise
                except Exception as error:  # of the agent, whose fault is not the others'
                    _log.exception("%s failed", self.entrant.name)
                    self._failed(part, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
                else:
                    self._ended(episodes)

    async def afar(self) -> None:
        """Ask the agent, several episodes at once."""
        agent, waiting = self.entrant.agent, iter(self.missing)
        assert isinstance(agent, RemoteAgent)
        if not self.missing:
            return
        async with AsyncExitStack() as stack:
            try:
                begin = await stack.enter_async_context(agent.connected())
            except RlAssetsError as error:
                self._failed(self.missing, str(error))
                return
            workers = min(agent.concurrency, len(self.missing))
            await asyncio.gather(*(self._one_by_one(begin, waiting) for _ in range(workers)))

    async def _one_by_one(self, begin: Begin, waiting: Iterator[Seat]) -> None:
        agent = self.entrant.agent
        for seat in waiting:
            world, sibling = seat
            if self.in_a_row >= GIVE_UP_AFTER:
                self._failed([seat], f"not asked, since {GIVE_UP_AFTER} episodes in a row had failed")
                continue
            player = Player(self._id(seat), self.entrant.name, agent.policy, agent.sampling, sibling)
            try:
                episode = await converse(begin, world, player, self.seed)
            except NoAnswer as error:
                self.in_a_row += 1
                self._failed([seat], str(error))
            else:
                self.in_a_row = 0
                self._ended([episode])

    def _ended(self, episodes: Sequence[Episode]) -> None:
        self.keep(episodes)
        self.have.update((_key(str(e.policy), str(e.snapshot_id), e.sibling), e) for e in episodes)
        self._tell(len(episodes))

    def _failed(self, seats: Sequence[Seat], reason: str) -> None:
        self.failures += [Failure(self.entrant.name, world[0].id, sibling, reason) for world, sibling in seats]
        self._tell(len(seats))

    def _tell(self, more: int) -> None:
        self._done += more
        self.on_progress(self.entrant.name, self._done, self.total)

    def _id(self, seat: Seat) -> str:
        world, sibling = seat
        return f"compared-{digest([self.entrant.name, world[0].id, sibling, self.seed])[:24]}"


@contextmanager
def _taken(directory: Path, plan: dict[str, Any]) -> Iterator[None]:
    """The directory for this process alone, with the plan of this comparison in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("a")
    except OSError as error:
        raise ConfigurationError(
            f"{directory} cannot be written ({error.strerror}); choose another with --out"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RlAssetsError(f"another comparison is writing to {directory}; wait for it") from None
        _check_plan(directory / PLAN, plan)
        yield


def _check_plan(path: Path, plan: dict[str, Any]) -> None:
    if not path.is_file():
        if any(other.name != ".lock" for other in path.parent.iterdir()):
            raise ConfigurationError(f"{path.parent} holds other files; choose a new directory with --out")
        write_json(path, plan)
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        differ = [key for key in plan if known[key] != plan[key]]
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedInput(f"{path} cannot be read ({error}); choose a new directory with --out") from error
    if differ:
        raise ConfigurationError(
            f"{path.parent} holds a comparison with other {' and '.join(differ)}; repeat its options to finish it, or "
            "choose a new directory with --out"
        )

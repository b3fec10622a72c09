"""RULER: judging groups of eight against ART's own `ruler_score_group`, both by the same judge on loopback.

python -m benchmarks.judging [EPISODES] [REPEATS]
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.timing import measure, side_by_side
from rl_assets.agents.runner import Assignment, ReferenceAgent, play
from rl_assets.episodes import Episode
from rl_assets.grouping import Group, build_groups
from rl_assets.judging.ruler import RulerJudge
from rl_assets.market.generate import generate
from rl_assets.settings import RulerSettings, prepare_environment
from rl_assets.store.database import connect, migrate
from rl_assets.store.embedded import EmbeddedPostgres
from rl_assets.store.episodes import new_ids
from rl_assets_tests.judging.judge_server import loopback_judge

SIZE = 8
KEY = "none"


def serve(pipe: Connection) -> None:
    """A judge that says its address, then each time it is asked what it has been sent since."""
    with loopback_judge() as judge:
        pipe.send(judge.url)
        while pipe.recv():
            sizes = [sum(len(message["content"]) for message in call["messages"]) for call in judge.calls]
            judge.calls.clear()
            pipe.send(sizes)


@contextmanager
def judge_process() -> Iterator[tuple[str, Connection]]:
    """A judge in a process of its own, so that it takes no time of those who ask it."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=[theirs], daemon=True)
    process.start()
    try:
        yield ours.recv(), ours
    finally:
        ours.send(False)
        process.join(10)


def played(episodes: int) -> tuple[list[Group], dict[str, Episode]]:
    """Groups of eight that play the same market day at random, as if they could be trained on."""
    worlds = [generate("train", seed) for seed in range(episodes // SIZE)]
    assignment = Assignment(ReferenceAgent("random"), "bench", SIZE)
    record = play([assignment], worlds, seed=0, new_ids=new_ids)
    window = str(record[0].window_id)
    groups = build_groups(record, window_id=window, group_size=SIZE)
    whole = [replace(group, trainable=True, reason=None) for group in groups if len(group.trajectory_ids) == SIZE]
    return whole, {episode.trajectory_id: episode for episode in record}


def main(episodes: int = 1000, repeats: int = 5) -> None:
    import art
    from art.rewards import ruler_score_group

    groups, by_id = played(episodes)
    with judge_process() as (url, judge), tempfile.TemporaryDirectory(prefix="rl-assets-bench-") as directory:
        Path(directory).chmod(0o755)
        server = EmbeddedPostgres(Path(directory) / "postgres", elsewhere=Path(directory) / "elsewhere")
        server.up()
        try:
            migrate(server.url())
            with connect(server.url()) as conn:
                settings = RulerSettings("openai/judge", url, KEY, passes=1, most_passes=1, concurrency=len(groups))

                def ours() -> None:
                    conn.execute("TRUNCATE rl_assets.judge_calls, rl_assets.judge_spending")
                    cached()

                def cached() -> None:
                    rankings = RulerJudge(settings, conn).rank_all(groups, by_id)
                    assert all(ranking.verdicts for ranking in rankings)

                def theirs() -> None:
                    asyncio.run(all_of_them())

                async def all_of_them() -> None:
                    where: dict[str, object] = {"api_base": url, "api_key": KEY}
                    await asyncio.gather(*(ruler_score_group(g, "openai/judge", where) for g in as_art(groups, by_id)))

                def as_art(groups: Sequence[Group], by_id: dict[str, Episode]) -> list[art.TrajectoryGroup]:
                    return [
                        art.TrajectoryGroup(
                            art.Trajectory(messages_and_choices=messages(by_id[member]), reward=0.0)
                            for member in group.trajectory_ids
                        )
                        for group in groups
                    ]

                def asked() -> list[int]:
                    judge.send(True)
                    return judge.recv()

                a, b, times = side_by_side(ours, theirs, repeats)
                asked()
                theirs()
                their_prompts = asked()
                ours()
                our_prompts = asked()
                again = measure(cached, repeats)
                paid_again = asked()
        finally:
            server.down()
    n = len(groups) * SIZE
    print(f"judging {n} episodes in {len(groups)} groups, one pass, {repeats} runs; {os.cpu_count()} cores")
    print(f"  episodes/s, ours, with budget and cache        {a.rate(n)}")
    print(f"  episodes/s, art.rewards.ruler_score_group      {b.rate(n)}")
    print(f"  their time / ours, pair by pair                {times}")
    print(f"  requests and characters of a prompt, ours      {len(our_prompts)}, {mean(our_prompts):,.0f}")
    print(f"  requests and characters of a prompt, theirs    {len(their_prompts)}, {mean(their_prompts):,.0f}")
    print(f"  episodes/s, ours, from the cache               {again.rate(n)}")
    print(f"  requests, ours, from the cache                 {len(paid_again)}")


def messages(episode: Episode) -> list:
    said: list = [{"role": "system", "content": episode.system}]
    for step in episode.steps:
        said.append({"role": "user", "content": step.observation})
        said.append({"role": "assistant", "content": step.response})
    return said


def mean(sizes: Sequence[int]) -> float:
    return sum(sizes) / len(sizes)


if __name__ == "__main__":
    prepare_environment()
    main(*map(int, sys.argv[1:]))

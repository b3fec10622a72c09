"""`rl-assets bench`: how fast the parts are on this machine, measured now."""

from __future__ import annotations

import time
from collections.abc import Callable

import click


@click.command()
@click.option("--episodes", type=click.IntRange(1, 4096), default=512, show_default=True, help="Side by side.")
@click.option(
    "--repeats", type=click.IntRange(1, 20), default=3, show_default=True, help="Runs of each; the best counts."
)
def bench(episodes: int, repeats: int) -> None:
    """Measure generating, playing, replaying and storing. Uses a database of its own, which is gone afterwards."""
    import tempfile
    from dataclasses import replace
    from pathlib import Path

    from rl_assets.agents.neural import NeuralAgent
    from rl_assets.agents.runner import Assignment, ReferenceAgent, play, replay
    from rl_assets.commands.shown import show_table
    from rl_assets.episodes import Policy
    from rl_assets.market.generate import generate
    from rl_assets.settings import Settings
    from rl_assets.store.agents import provision_agents
    from rl_assets.store.database import connect, migrate
    from rl_assets.store.embedded import EmbeddedPostgres
    from rl_assets.store.episodes import new_trajectory_ids, read_episodes, write_episodes
    from rl_assets.training.base import ensure_base_policy

    rows: list[tuple[str, float, str]] = []

    def measure(what: str, amount: int, unit: str, work: Callable[[], object]) -> None:
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
        rows.append((what, amount / min(seconds), unit))

    worlds = [generate("train", seed) for seed in range(episodes)]
    ticks = worlds[0][0].n_ticks
    measure("generate snapshots", episodes, "snapshots/s", lambda: [generate("train", s) for s in range(episodes)])

    def played(agent: ReferenceAgent | NeuralAgent, agent_id: str) -> list:
        return play([Assignment(agent, agent_id)], worlds, seed=0, new_ids=new_trajectory_ids)

    measure("play, reference agent", episodes * ticks, "actions/s", lambda: played(ReferenceAgent("momentum"), "bench"))
    settings = Settings.from_env()
    base = ensure_base_policy(settings.data_dir, settings.model_line)
    model = NeuralAgent(base.path, Policy(settings.model_line, 0))
    measure("play, base policy", episodes * ticks, "actions/s", lambda: played(model, "bench"))

    with tempfile.TemporaryDirectory(prefix="rl-assets-bench-") as directory:
        server = EmbeddedPostgres(Path(directory))
        server.up()
        try:
            migrate(server.url("babylon"))
            with connect(server.url("babylon")) as conn:
                agent_id = provision_agents(conn, ["bench"])["bench"]
                record = played(model, agent_id)
                measure(
                    "replay and compare",
                    episodes,
                    "episodes/s",
                    lambda: [replay(e, *w) for e, w in zip(record, worlds, strict=True)],
                )

                def renamed() -> list:
                    ids = new_trajectory_ids(episodes)
                    return [replace(e, trajectory_id=i) for e, i in zip(record, ids, strict=True)]

                measure("write to Postgres", episodes, "episodes/s", lambda: write_episodes(conn, renamed()))
                write_episodes(conn, record)
                ids = [e.trajectory_id for e in record]
                measure("read from Postgres", episodes, "episodes/s", lambda: read_episodes(conn, ids))
        finally:
            server.down()
    show_table(f"{episodes} episodes of {ticks} ticks, best of {repeats}", ("what", "speed", ""), rows)

"""Do batches, one after the other, make a policy better? Expected PnL on held-out days, seed by seed.

Run as `python -m benchmarks.learning`. Each seed has a base policy of its own (the warm start's seed), days of its own
to learn from, and draws of its own. Every batch is played by the step that the one before has made. All steps play the
same gate snapshots with the same draws; the interval is of the difference per market day, since snapshots of a day
share its luck.

With `--judge ruler` the rewards are the ranks of a judge on loopback that sees the transcripts alone. With `--blind`
each reward stands for its whole episode: nothing says which step has earned it.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from rl_assets.settings import RulerSettings, prepare_environment

prepare_environment()

from benchmarks._visible import by_moves  # noqa: E402 - reads the environment
from rl_assets.agents.neural import NeuralAgent  # noqa: E402
from rl_assets.agents.runner import Agent, Assignment, ReferenceAgent, play  # noqa: E402
from rl_assets.episodes import Episode, Policy, digest  # noqa: E402
from rl_assets.grouping import Group, build_groups  # noqa: E402
from rl_assets.judging import OutcomeJudge  # noqa: E402
from rl_assets.judging.ruler import RulerJudge  # noqa: E402
from rl_assets.judging.verdicts import Ranking  # noqa: E402
from rl_assets.market.generate import generate  # noqa: E402
from rl_assets.market.snapshot import SNAPSHOTS_PER_DAY, SPLITS, World  # noqa: E402
from rl_assets.registry.evaluate import play_of  # noqa: E402
from rl_assets.registry.gate import compare  # noqa: E402
from rl_assets.store.database import connect, migrate  # noqa: E402
from rl_assets.store.embedded import EmbeddedPostgres  # noqa: E402
from rl_assets.training.base import WarmStart, ensure_base_policy  # noqa: E402
from rl_assets.training.manifest import Manifest, ManifestGroup  # noqa: E402
from rl_assets.training.options import CpuTraining, Grpo  # noqa: E402
from rl_assets.training.service import GRPOTrainingService  # noqa: E402
from rl_assets_tests.judging.judge_server import loopback_judge  # noqa: E402

LINE = "benchmark"
GROUP_SIZE = 8
QUANTILE = 1.96
FRESH_GATE = 801_000
"""The first gate seed that no setting was chosen by; those of the demo's gate and of trials come before."""
Rank = Callable[[Sequence[Group], dict[str, Episode]], list[Ranking]]
_ids = itertools.count()


@dataclass(frozen=True)
class Bounds:
    """Expected PnL in dollars per episode of the reference agents on the gate."""

    hold: float
    news_follower: float
    oracle: float


def played(agent: Agent, worlds: Sequence[World], siblings: int, seed: int, *, gate: bool = False) -> list[Episode]:
    return play(
        [Assignment(agent, str(agent.policy), siblings)],
        worlds,
        seed=seed,
        new_ids=lambda n: [f"{next(_ids):09d}" for _ in range(n)],
        is_evaluation=gate,
    )


@contextmanager
def ranking_by(judge: str) -> Iterator[Rank]:
    """The embedded judge, or RULER with a judge and a database of its own on loopback."""
    if judge == "outcome":
        yield OutcomeJudge().rank_all
        return
    with tempfile.TemporaryDirectory(prefix="learning-") as directory, loopback_judge() as server:
        server.mode = by_moves
        Path(directory).chmod(0o755)
        postgres = EmbeddedPostgres(Path(directory) / "postgres", elsewhere=Path(directory) / "elsewhere")
        postgres.up()
        try:
            migrate(postgres.url())
            with connect(postgres.url()) as conn:
                settings = RulerSettings("openai/judge", server.url, "none", passes=1, most_passes=1, outcome_weight=0)
                yield lambda groups, by_id: RulerJudge(settings, conn).rank_all(groups, by_id)
        finally:
            postgres.down()


def manifest_of(episodes: Sequence[Episode], base_step: int, rank: Rank) -> Manifest:
    """Group and judge as the pipeline does."""
    by_id = {episode.trajectory_id: episode for episode in episodes}
    window = episodes[0].window_id or ""
    groups = tuple(
        ManifestGroup(r.group_id, tuple(v.trajectory_id for v in r.verdicts), tuple(v.score for v in r.verdicts))
        for r in rank(build_groups(episodes, window_id=window, group_size=GROUP_SIZE), by_id)
        if r.trainable
    )
    batch_id = f"batch-{digest([group.group_id for group in groups])[:24]}"
    return Manifest(batch_id, LINE, base_step, ("benchmark",), (window,), groups)


def difference(worlds: Sequence[World], before: Sequence[Episode], after: Sequence[Episode]) -> tuple[float, float]:
    """Mean over market days of the difference in expected PnL, and half of its 95 % interval."""
    day = {snapshot.id: snapshot.day for snapshot, _ in worlds}
    by_day: dict[int, list[float]] = {}
    for one, other in zip(before, after, strict=True):
        by_day.setdefault(day[str(one.snapshot_id)], []).append(_pnl(other) - _pnl(one))
    means = np.array([np.mean(values) for values in by_day.values()])
    return float(means.mean()), float(QUANTILE * means.std(ddof=1) / math.sqrt(len(means)))


class Line:
    """A model line in a directory, and what each of its steps has played on the gate."""

    def __init__(
        self, data: Path, seed: int, gate: Sequence[World], siblings: int, bounds: Bounds, training: CpuTraining
    ) -> None:
        self._service = GRPOTrainingService(data, LINE, grpo=Grpo(cpu=training))
        self._seed, self._gate, self._siblings = seed, gate, siblings
        self._bounds = bounds
        self.play = [self._on_gate(0)]

    def learn(self, train: Sequence[World], siblings: int, rank: Rank, *, blind: bool) -> None:
        """One batch on top of the newest step, which becomes the next; a line about it is printed. blind: without the
        credit of steps."""
        step = len(self.play) - 1
        began = time.perf_counter()
        episodes = played(self._agent(step), train, siblings, self._seed)
        judged = time.perf_counter()
        if blind:
            episodes = [replace(e, steps=tuple(replace(s, credit=None) for s in e.steps)) for e in episodes]
        manifest = manifest_of(episodes, step, rank)
        ready = time.perf_counter()
        result = self._service.train(manifest, {episode.trajectory_id: episode for episode in episodes})
        trained = time.perf_counter()
        self.play.append(self._on_gate(step + 1))
        _show_batch(self, result.metrics)
        seconds = {"play": judged - began, "judge": ready - judged, "train": trained - ready}
        seconds["gate"] = time.perf_counter() - trained
        click.echo(f"  gate: {self._gated(step)}; " + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items()))

    def since_base(self) -> tuple[float, float, float, float]:
        """Expected PnL of the base and of the newest step, their difference, and half of its 95 % interval."""
        gain, half = difference(self._gate, self.play[0], self.play[-1])
        before, after = (_mean(self.play[n], "expected_pnl") for n in (0, -1))
        return before, after, gain, half

    def skill(self, step: int) -> float:
        """Where between holding (0) and knowing everything (1) a step stands on the gate."""
        hold, oracle = self._bounds.hold, self._bounds.oracle
        return (_mean(self.play[step], "expected_pnl") - hold) / (oracle - hold)

    def _gated(self, step: int) -> str:
        names = [snapshot.id for snapshot, _ in self._gate]
        days = np.array([snapshot.day for snapshot, _ in self._gate])
        theirs, ours = (play_of(self.play[n], Policy(LINE, n), names) for n in (step, step + 1))
        return compare(days, ours, theirs, look=1).reason

    def _agent(self, step: int) -> NeuralAgent:
        return NeuralAgent(self._service.checkpoint(step), Policy(LINE, step))

    def _on_gate(self, step: int) -> list[Episode]:
        return played(self._agent(step), self._gate, self._siblings, self._seed, gate=True)


def _pnl(episode: Episode) -> float:
    assert episode.expected_pnl is not None
    return episode.expected_pnl


@click.command()
@click.option("--seeds", default=5, show_default=True, help="Base policies, each with days of its own.")
@click.option("--first-seed", default=0, show_default=True, help="The seed of the first of them.")
@click.option("--batches", default=3, show_default=True, help="Trainings in a row, each on play of the newest step.")
@click.option("--snapshots", default=72, show_default=True, help="Train snapshots per batch.")
@click.option("--siblings", default=16, show_default=True, help="Episodes per train snapshot.")
@click.option("--gate-snapshots", default=192, show_default=True, help="Held-out snapshots.")
@click.option("--gate-siblings", default=1, show_default=True, help="Episodes per held-out snapshot and policy.")
@click.option("--gate-seed", default=FRESH_GATE, show_default=True, help="The first held-out snapshot's seed.")
@click.option("--judge", type=click.Choice(["outcome", "ruler"]), default="outcome", show_default=True)
@click.option("--blind", is_flag=True, help="Train without knowing what each step has earned.")
@click.option("--tiers", default=1, show_default=True, help="Of difficulty, from easy to hard in the first pass.")
@click.option("--data", type=click.Path(path_type=Path), help="Where checkpoints are kept; by default nowhere.")
def main(
    seeds: int,
    first_seed: int,
    batches: int,
    snapshots: int,
    siblings: int,
    gate_snapshots: int,
    gate_siblings: int,
    gate_seed: int,
    judge: str,
    blind: bool,
    tiers: int,
    data: Path | None,
) -> None:
    """Print, per seed and batch, what was earned before and after, and a line that sums it up."""
    gate = [generate("gate", seed) for seed in range(gate_seed, gate_seed + gate_snapshots)]
    means = {
        name: float(np.mean([_pnl(e) for e in played(ReferenceAgent(name), gate, gate_siblings, 0, gate=True)]))
        for name in ("hold", "news_follower", "oracle")
    }
    click.echo("expected PnL: " + ", ".join(f"{name} {mean:+.2f}" for name, mean in means.items()))
    bounds = Bounds(**means)
    days = math.ceil(snapshots / SNAPSHOTS_PER_DAY)
    gains = []
    with ranking_by(judge) as rank, tempfile.TemporaryDirectory(prefix="learning-") as scratch:
        for seed in range(first_seed, first_seed + seeds):
            home = (data or Path(scratch)) / f"seed-{seed}"
            began = time.perf_counter()
            base = ensure_base_policy(home, LINE, warm_start=WarmStart(seed=seed))
            loss = base.metrics["imitation_loss"]
            click.echo(f"seed {seed}: warm start {time.perf_counter() - began:.0f} s, loss {loss:.3f}")
            line = Line(home, seed, gate, gate_siblings, bounds, CpuTraining(tiers=tiers))
            for batch in range(batches):
                start = (seed * batches + batch) * days * SNAPSHOTS_PER_DAY
                train = [generate("train", s) for s in SPLITS["train"][start : start + snapshots]]
                line.learn(train, siblings, rank, blind=blind)
            before, after, gain, half = line.since_base()
            gains.append((gain, gain - half, after >= bounds.news_follower))
            click.echo(
                f"seed {seed}: expected PnL {before:+.2f} -> {after:+.2f}, difference {gain:+.2f} "
                f"[{gain - half:+.2f}, {gain + half:+.2f}], skill {line.skill(0):.3f} -> {line.skill(-1):.3f}, "
                f"trades {_mean(line.play[0], 'trades'):.1f} -> {_mean(line.play[-1], 'trades'):.1f}"
            )
    click.echo(
        f"better with 95 % confidence on {sum(low > 0 for _, low, _ in gains)} of {seeds} seeds, mean difference "
        f"{np.mean([gain for gain, _, _ in gains]):+.2f}; {sum(reached for _, _, reached in gains)} of {seeds} earn at "
        "least as much as following the news"
    )


def _mean(episodes: Sequence[Episode], name: str) -> float:
    return float(np.mean([getattr(episode, name) for episode in episodes]))


def _show_batch(line: Line, metrics: dict[str, float]) -> None:
    before, after = line.play[-2:]
    names = {"trades": ".1f", "max_drawdown": ".1f", "breaches": ".3f"}
    changes = (f"{name} {_mean(before, name):{form}} -> {_mean(after, name):{form}}" for name, form in names.items())
    click.echo(
        f"  batch {len(line.play) - 1}: expected PnL {_mean(before, 'expected_pnl'):+.2f} -> "
        f"{_mean(after, 'expected_pnl'):+.2f}, {', '.join(changes)}, entropy {metrics['loss/entropy']:.3f}, "
        f"kl {metrics['loss/kl_base']:.3f}, best pass {metrics['data/best_pass']:.0f} of {metrics['data/passes']:.0f}"
    )


if __name__ == "__main__":
    main()

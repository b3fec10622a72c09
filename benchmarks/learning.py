"""Does one training on one batch make a policy better? Expected PnL on held-out days, before and after, seed by seed.

Run as `python -m benchmarks.learning`. Each seed has a base policy of its own (the warm start's seed), days of its own
to learn from, and draws of its own. Base and trained policy play the same gate snapshots with the same draws; the
interval is of the difference per market day, since snapshots of a day share its luck.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from rl_assets.settings import prepare_environment

prepare_environment()

from rl_assets.agents.neural import NeuralAgent  # noqa: E402 - reads the environment
from rl_assets.agents.runner import Agent, Assignment, ReferenceAgent, World, play  # noqa: E402
from rl_assets.episodes import Episode, Policy, digest  # noqa: E402
from rl_assets.grouping import build_groups  # noqa: E402
from rl_assets.judging import OutcomeJudge  # noqa: E402
from rl_assets.market.generate import generate  # noqa: E402
from rl_assets.market.snapshot import SNAPSHOTS_PER_DAY, SPLITS  # noqa: E402
from rl_assets.registry.evaluate import play_of  # noqa: E402
from rl_assets.registry.gate import compare  # noqa: E402
from rl_assets.training.base import WarmStart, ensure_base_policy  # noqa: E402
from rl_assets.training.manifest import Manifest, ManifestGroup  # noqa: E402
from rl_assets.training.service import GRPOTrainingService  # noqa: E402

LINE = "benchmark"
GROUP_SIZE = 8
QUANTILE = 1.96
_ids = itertools.count()


@dataclass(frozen=True)
class Measured:
    """What a batch did to a policy. Money is in dollars per episode; low and high bound 95 % of the difference."""

    before: float
    after: float
    low: float
    high: float
    gate: str
    trades_before: float
    trades_after: float
    drawdown_before: float
    drawdown_after: float
    breaches_after: float
    seconds: dict[str, float]
    metrics: dict[str, float]


def played(agent: Agent, worlds: Sequence[World], siblings: int, seed: int, *, gate: bool = False) -> list[Episode]:
    return play(
        [Assignment(agent, str(agent.policy), siblings)],
        worlds,
        seed=seed,
        new_ids=lambda n: [f"{next(_ids):09d}" for _ in range(n)],
        is_evaluation=gate,
    )


def manifest_of(episodes: Sequence[Episode], base_step: int) -> Manifest:
    """Group and judge as the pipeline does."""
    by_id = {episode.trajectory_id: episode for episode in episodes}
    window = episodes[0].window_id or ""
    judge = OutcomeJudge()
    rankings = [judge.rank(group, by_id) for group in build_groups(episodes, window_id=window, group_size=GROUP_SIZE)]
    groups = tuple(
        ManifestGroup(r.group_id, tuple(v.trajectory_id for v in r.verdicts), tuple(v.score for v in r.verdicts))
        for r in rankings
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


def learn(
    data: Path, seed: int, step: int, train: Sequence[World], gate: Sequence[World], siblings: int, gate_siblings: int
) -> Measured:
    """One batch on top of a step of the line in `data`, which becomes the next step."""
    service = GRPOTrainingService(data, LINE)
    champion = NeuralAgent(service.checkpoint(step), Policy(LINE, step))
    began = time.perf_counter()
    episodes = played(champion, train, siblings, seed)
    manifest = manifest_of(episodes, step)
    ready = time.perf_counter()
    result = service.train(manifest, {episode.trajectory_id: episode for episode in episodes})
    trained = time.perf_counter()
    assert isinstance(result.checkpoint_path, Path)
    before = played(champion, gate, gate_siblings, seed, gate=True)
    after = played(NeuralAgent(result.checkpoint_path, Policy(LINE, result.step)), gate, gate_siblings, seed, gate=True)
    gain, half = difference(gate, before, after)
    names = [snapshot.id for snapshot, _ in gate]
    days = np.array([snapshot.day for snapshot, _ in gate])
    theirs, ours = (play_of(e, Policy(LINE, s), names) for e, s in ((before, step), (after, result.step)))
    return Measured(
        before=float(np.mean([_pnl(episode) for episode in before])),
        after=float(np.mean([_pnl(episode) for episode in after])),
        low=gain - half,
        high=gain + half,
        gate=compare(days, ours, theirs, look=1).reason,
        trades_before=float(theirs.trades.mean()),
        trades_after=float(ours.trades.mean()),
        drawdown_before=float(theirs.max_drawdown.mean()),
        drawdown_after=float(ours.max_drawdown.mean()),
        breaches_after=float(ours.breaches.mean()),
        seconds={"play": ready - began, "train": trained - ready, "gate": time.perf_counter() - trained},
        metrics=result.metrics,
    )


def _pnl(episode: Episode) -> float:
    assert episode.expected_pnl is not None
    return episode.expected_pnl


@click.command()
@click.option("--seeds", default=5, show_default=True, help="Base policies, each with days of its own.")
@click.option("--batches", default=1, show_default=True, help="Trainings in a row, each on play of the newest step.")
@click.option("--snapshots", default=160, show_default=True, help="Train snapshots per batch.")
@click.option("--siblings", default=8, show_default=True, help="Episodes per train snapshot.")
@click.option("--gate-snapshots", default=192, show_default=True, help="Held-out snapshots.")
@click.option("--gate-siblings", default=2, show_default=True, help="Episodes per held-out snapshot and policy.")
@click.option("--data", type=click.Path(path_type=Path), help="Where checkpoints are kept; by default nowhere.")
def main(
    seeds: int, batches: int, snapshots: int, siblings: int, gate_snapshots: int, gate_siblings: int, data: Path | None
) -> None:
    """Print, per seed and batch, what was earned before and after, and a line that sums it up."""
    gate = [generate("gate", seed) for seed in SPLITS["gate"][:gate_snapshots]]
    for name in ("hold", "post_follower", "news_follower"):
        reference = played(ReferenceAgent(name), gate, gate_siblings, 0, gate=True)
        click.echo(f"{name}: expected PnL {np.mean([_pnl(episode) for episode in reference]):+.2f}")
    first: list[Measured] = []
    last: list[Measured] = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory(prefix="learning-") as scratch:
            home = (data or Path(scratch)) / f"seed-{seed}"
            began = time.perf_counter()
            base = ensure_base_policy(home, LINE, warm_start=WarmStart(seed=seed))
            loss = base.metrics["imitation_loss"]
            click.echo(f"seed {seed}: warm start {time.perf_counter() - began:.0f} s, loss {loss:.3f}")
            for batch in range(batches):
                start = (seed * batches + batch) * math.ceil(snapshots / SNAPSHOTS_PER_DAY) * SNAPSHOTS_PER_DAY
                train = [generate("train", s) for s in SPLITS["train"][start : start + snapshots]]
                measured = learn(home, seed, batch, train, gate, siblings, gate_siblings)
                _show(f"seed {seed} batch {batch + 1}", measured)
                (first if batch == 0 else last).append(measured)
    better = sum(m.low > 0 for m in first)
    gain = np.mean([m.after - m.before for m in first])
    click.echo(f"first batch: better with 95 % confidence on {better} of {seeds} seeds, mean difference {gain:+.2f}")


def _show(what: str, m: Measured) -> None:
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in m.seconds.items())
    click.echo(
        f"{what}: expected PnL {m.before:+.2f} -> {m.after:+.2f}, difference {m.after - m.before:+.2f} "
        f"[{m.low:+.2f}, {m.high:+.2f}], trades {m.trades_before:.1f} -> {m.trades_after:.1f}, "
        f"drawdown {m.drawdown_before:.1f} -> {m.drawdown_after:.1f}, breaches {m.breaches_after:.3f}, "
        f"entropy {m.metrics['loss/entropy']:.3f}, kl {m.metrics['loss/kl_base']:.3f}, "
        f"best pass {m.metrics['data/best_pass']:.0f} of {m.metrics['data/passes']:.0f}, seconds: {seconds}"
    )
    click.echo(f"  the gate: {m.gate}")


if __name__ == "__main__":
    main()

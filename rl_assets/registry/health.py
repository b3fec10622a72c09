"""The health check before a model is given to agents: it loads, answers fixed prompts, and its answers can be used.

What its episodes are worth, and whether more of its steps fail than the champion's, is found out later: `evidence`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from rl_assets.agents.runner import Assignment, play
from rl_assets.episodes import Episode, Policy, is_logprob
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import SNAPSHOTS_PER_DAY, SPLITS
from rl_assets.registry.models import PlayableModel

LEAST_LEGAL = 0.75
"""Share of answers that the market must take. Some are refused of every policy that draws its words: it may be short of
cash. A checkpoint that is broken is refused nearly always."""
SEED = 2021


@dataclass(frozen=True, slots=True)
class Health:
    """answers: how many were given. legal: share of them that the market took. fault: None where all is well."""

    answers: int
    legal: float
    fault: str | None

    def __str__(self) -> str:
        return (
            self.fault or f"{self.answers} answers, {100 * self.legal:.0f} in a hundred legal, all with finite logprobs"
        )


def probe(model: PlayableModel, days: int) -> Health:
    """Play a snapshot of each of the last `days` market days of the train split, the same for every model.

    Raises MissingCheckpoint or MalformedInput where the checkpoint cannot be loaded, and what a remote endpoint raises
    where it gives no answer.
    """
    from rl_assets.agents.line_player import agent_of

    agent = agent_of(model.checkpoint_path, Policy(model.model_line, model.step))
    worlds = [generate("train", seed) for seed in SPLITS["train"][::SNAPSHOTS_PER_DAY][-days:]]
    numbers = itertools.count()
    return examine(
        play(
            [Assignment(agent, "health")],
            worlds,
            seed=SEED,
            new_ids=lambda n: [f"health-{next(numbers)}" for _ in range(n)],
            is_evaluation=True,
        )
    )


def examine(episodes: list[Episode]) -> Health:
    """What the answers in some episodes are like."""
    steps = [step for episode in episodes for step in episode.steps]
    legal = sum(step.valid for step in steps) / max(len(steps), 1)
    logprobs = [logprob for step in steps for logprob in step.logprobs]
    fault = None
    if not steps:
        fault = "it gave no answer"
    elif not all(is_logprob(logprob) for logprob in logprobs):
        fault = "a logprob of its answers is not a finite number of at most 0"
    elif legal < LEAST_LEGAL:
        fault = f"only {100 * legal:.0f} of a hundred answers are legal, it takes {100 * LEAST_LEGAL:.0f}"
    return Health(len(steps), legal, fault)

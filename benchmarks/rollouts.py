"""Playing by a checkpoint: one growing cache for a whole episode, against `generate` on all that was said each tick.

python -m benchmarks.rollouts [EPISODES] [REPEATS]
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.timing import side_by_side
from rl_assets.settings import prepare_environment

prepare_environment()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import LogitsProcessor, LogitsProcessorList  # noqa: E402

from rl_assets.agents import prompt  # noqa: E402
from rl_assets.agents.grammar import END, ROOT, Grammar  # noqa: E402
from rl_assets.agents.neural import NeuralAgent, NeuralPolicy, use_all_cores  # noqa: E402
from rl_assets.agents.reply import Reply  # noqa: E402
from rl_assets.agents.runner import Assignment, Game, play  # noqa: E402
from rl_assets.episodes import Policy  # noqa: E402
from rl_assets.market.generate import generate  # noqa: E402
from rl_assets.market.snapshot import World  # noqa: E402
from rl_assets.store.episodes import new_ids  # noqa: E402
from rl_assets.training.base import WarmStart, ensure_base_policy  # noqa: E402

SIBLINGS = 8
LINE = "bench"


class Legal(LogitsProcessor):
    """The grammar, as `generate` takes it: both sides say equally much."""

    def __init__(self, grammar: Grammar, rows: int) -> None:
        self._grammar, self._node, self._first = grammar, np.full(rows, ROOT), True

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        if not self._first:
            following = self._grammar.following[self._node, input_ids[:, -1].numpy()]
            self._node = np.where(following < 0, END, following)
        self._first = False
        return scores.masked_fill(~torch.from_numpy(self._grammar.allowed[self._node]), float("-inf"))


def play_with_generate(policy: NeuralPolicy, worlds: Sequence[World]) -> int:
    """Every world by every sibling, side by side; each tick hands all that was said so far to `generate`. Returns the
    tokens that were said."""
    game = Game([world for world in worlds for _ in range(SIBLINGS)])
    rows = game.engine.n
    system = prompt.system_message(game.engine.config)
    render = policy.opening_of([system] * rows)
    heard: list[list[int]] = [[] for _ in range(rows)]
    said = 0
    while not game.engine.done:
        for row, observation in enumerate(game.observations()):
            heard[row] += policy.encode(render(observation, row))
        width = max(map(len, heard))
        out = policy.model.generate(
            torch.tensor([[policy.end_id] * (width - len(ids)) + ids for ids in heard]),
            attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in heard]),
            max_new_tokens=policy.max_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            eos_token_id=policy.end_id,
            pad_token_id=policy.end_id,
            logits_processor=LogitsProcessorList([Legal(policy.grammar, rows)] if policy.grammar else []),
        )
        replies = []
        for row, ids in enumerate(out[:, width:].tolist()):
            ids = ids[: ids.index(policy.end_id)] if policy.end_id in ids else ids
            heard[row] += [*ids, policy.end_id]
            said += len(ids) + 1
            replies.append(Reply(policy.tokenizer.decode(ids)))
        game.take(replies)
        render = policy.following
    return said


def main(episodes: int = 128, repeats: int = 5) -> None:
    use_all_cores()
    with tempfile.TemporaryDirectory(prefix="rl-assets-bench-") as directory:
        base = ensure_base_policy(Path(directory), LINE, warm_start=WarmStart(episodes=64, passes=2))
        agent, policy = NeuralAgent(base.path, Policy(LINE, 0)), NeuralPolicy(base.path)
    worlds = [generate("train", seed) for seed in range(episodes // SIBLINGS)]
    tokens = {"ours": 0, "theirs": 0}

    def ours() -> None:
        played = play([Assignment(agent, "bench", SIBLINGS)], worlds, seed=0, new_ids=new_ids)
        tokens["ours"] = sum(len(step.token_ids) for episode in played for step in episode.steps)

    def theirs() -> None:
        tokens["theirs"] = play_with_generate(policy, worlds)

    a, b, times = side_by_side(ours, theirs, repeats)
    n = len(worlds) * SIBLINGS
    parameters = sum(p.numel() for p in policy.model.parameters())
    print(
        f"{n} episodes of {worlds[0][0].config.ticks} ticks side by side, {parameters:,} parameters, {repeats} runs; "
        f"{os.cpu_count()} cores"
    )
    print(f"  episodes/min, ours, with logprobs and record   {a.rate(60 * n)}")
    print(f"  episodes/min, transformers.generate per tick   {b.rate(60 * n)}")
    print(f"  their time / ours, pair by pair                {times}")
    print(f"  tokens said, ours and theirs                   {tokens['ours']:,}, {tokens['theirs']:,}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

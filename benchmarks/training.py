"""GRPO on a CPU: our training of a batch against TRL's `GRPOTrainer` on the same model, tokens and number of updates.

python -m benchmarks.training [EPISODES] [REPEATS]

Ours tokenises, packs and writes a checkpoint; TRL is handed tokens and writes nothing. So the updates are also told
apart: the forward and backward passes and the optimizer's step.

TRL is no part of the environment: `pip install -c constraints.txt -e ".[bench]"` adds it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.timing import Seconds, ratio, side_by_side
from rl_assets.settings import prepare_environment

prepare_environment()

import torch  # noqa: E402

from rl_assets.agents.neural import NeuralAgent, NeuralPolicy, use_all_cores  # noqa: E402
from rl_assets.agents.runner import Assignment, play  # noqa: E402
from rl_assets.episodes import Episode, Policy  # noqa: E402
from rl_assets.market.generate import generate  # noqa: E402
from rl_assets.registry.checkpoints import base_path  # noqa: E402
from rl_assets.store.episodes import new_ids  # noqa: E402
from rl_assets.training.base import WarmStart, ensure_base_policy  # noqa: E402
from rl_assets.training.learner import Learner  # noqa: E402
from rl_assets.training.manifest import Manifest, ManifestGroup  # noqa: E402
from rl_assets.training.options import CpuTraining, Grpo, Limits  # noqa: E402
from rl_assets.training.service import GRPOTrainingService  # noqa: E402

SIBLINGS = 8
LINE = "bench"
SEQUENCES, MICRO_BATCH = 32, 32
NO_LIMITS = Limits(kl_ceiling=1e9, entropy_floor=0.0, least_trades=0.0, most_invalid=1.0)
GRPO = Grpo(cpu=CpuTraining(passes=1, sequences=SEQUENCES, micro_batch=MICRO_BATCH, holdout=0.0, limits=NO_LIMITS))
REWARDS = tuple((sibling + 0.5) / SIBLINGS for sibling in range(SIBLINGS))
"""None of which is the mean, so that both learn from every episode."""


def conversation(policy: NeuralPolicy, episode: Episode) -> tuple[list[int], list[int], list[int], list[float]]:
    """The tokens until the first answer; those after it, whether each is the policy's, and their logprobs."""
    opening = policy.encode(policy.opening_of([episode.system])(episode.steps[0].observation, 0))
    ids: list[int] = []
    own: list[int] = []
    logprobs: list[float] = []
    for number, step in enumerate(episode.steps):
        heard = policy.encode(policy.following(step.observation, 0)) if number else []
        ids += [*heard, *step.token_ids]
        own += [0] * len(heard) + [1] * len(step.token_ids)
        logprobs += [0.0] * len(heard) + list(step.logprobs)
    return opening, ids, own, logprobs


def trl_trainer(base: Path, policy: NeuralPolicy, groups: list[list[Episode]], spent: list[float]) -> Any:
    """TRL's trainer, handed the recorded episodes where it would generate. spent: seconds of each of its updates."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.trainer.grpo_config import GRPOConfig  # pyright: ignore[reportMissingImports]
    from trl.trainer.grpo_trainer import GRPOTrainer  # pyright: ignore[reportMissingImports]

    recorded = [[conversation(policy, episode) for episode in group] for group in groups]

    def rollout(prompts: list[str], _: object) -> dict[str, list]:
        rows = [recorded[int(name)][place % SIBLINGS] for place, name in enumerate(prompts)]
        opening, ids, own, logprobs = map(list, zip(*rows, strict=True))
        score = [REWARDS[place % SIBLINGS] for place in range(len(prompts))]
        return {"prompt_ids": opening, "completion_ids": ids, "logprobs": logprobs, "env_mask": own, "score": score}

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            spent.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            spent[-1] += time.perf_counter()

    config = GRPOConfig(
        output_dir=str(base.parent / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=SEQUENCES // MICRO_BATCH,
        num_generations=SIBLINGS,
        max_completion_length=4096,
        num_train_epochs=1,
        learning_rate=GRPO.learning_rate,
        epsilon=GRPO.epsilon,
        epsilon_high=GRPO.epsilon_high,
        beta=0.0,
        scale_rewards="none",
        logging_steps=10_000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(base, padding_side="left"),
        reward_funcs=lambda score, **_: score,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [str(number) for number in range(len(groups))]}),
        rollout_func=rollout,
        callbacks=[Clock()],
    )


def main(episodes: int = 256, repeats: int = 3) -> None:
    if importlib.util.find_spec("trl") is None:
        print("training: TRL is not installed, so that there is nothing to compare with; see benchmarks/training.py")
        return
    use_all_cores()
    with tempfile.TemporaryDirectory(prefix="rl-assets-bench-") as directory:
        home = Path(directory)
        base = ensure_base_policy(home, LINE, warm_start=WarmStart(episodes=64, passes=2)).path
        policy = NeuralPolicy(base)
        worlds = [generate("train", seed) for seed in range(episodes // SIBLINGS)]
        agent = NeuralAgent(base, Policy(LINE, 0))
        played = play([Assignment(agent, "bench", SIBLINGS)], worlds, seed=0, new_ids=new_ids)
        played = [replace(e, steps=tuple(replace(s, credit=None) for s in e.steps)) for e in played]
        groups = [played[start : start + SIBLINGS] for start in range(0, len(played), SIBLINGS)]
        named = tuple(
            ManifestGroup(f"group-{n}", tuple(e.trajectory_id for e in group), REWARDS)
            for n, group in enumerate(groups)
        )
        window = str(played[0].window_id)
        manifest = Manifest("batch-0123456789abcdef", LINE, 0, ("bench",), (window,), named)
        by_id = {episode.trajectory_id: episode for episode in played}
        tokens = sum(e.steps[-1].prompt_tokens + len(e.steps[-1].token_ids) for e in played)
        our_updates: list[float] = []
        their_updates: list[float] = []
        alone: list[tuple[float, float]] = []

        update = Learner.update

        def clocked(learner: Learner, optimizer: torch.optim.Optimizer, rows: Sequence[int]) -> dict[str, float]:
            began = time.perf_counter()
            point = update(learner, optimizer, rows)
            our_updates.append(time.perf_counter() - began)
            return point

        def ours() -> None:
            shutil.rmtree(base_path(home, LINE).with_name("0001"), ignore_errors=True)
            our_updates.clear()
            with patch.object(Learner, "update", clocked):
                GRPOTrainingService(home, LINE, grpo=GRPO).train(manifest, by_id)

        def theirs() -> None:
            their_updates.clear()
            trl_trainer(base, policy, groups, their_updates).train()
            alone.append((sum(our_updates), sum(their_updates)))

        a, b, times = side_by_side(ours, theirs, repeats)
    parameters = sum(p.numel() for p in policy.model.parameters())
    print(
        f"GRPO on {len(played)} episodes, {tokens:,} tokens, {parameters:,} parameters, {repeats} runs; "
        f"{os.cpu_count()} cores"
    )
    print(f"  updates, ours and theirs                       {len(our_updates)}, {len(their_updates)}")
    print(f"  tokens/s of a whole training, ours             {a.rate(tokens)}")
    print(f"  tokens/s of a whole training, TRL GRPOTrainer  {b.rate(tokens)}")
    print(f"  their time / ours, pair by pair                {times}")
    our_alone, their_alone = (Seconds(runs) for runs in zip(*alone[1:], strict=True))  # the first was for warming up
    print(f"  tokens/s of the updates alone, ours            {our_alone.rate(tokens)}")
    print(f"  tokens/s of the updates alone, TRL GRPOTrainer {their_alone.rate(tokens)}")
    print(f"  their time / ours, pair by pair                {ratio([theirs / ours for ours, theirs in alone[1:]])}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

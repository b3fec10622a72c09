"""Episodes as ART sees them. Token ids and logprobs pass unchanged: `token_id:<id>` is the form ART reads ids from."""

from __future__ import annotations

from collections.abc import Mapping

import art
from openai.types.chat import ChatCompletionMessage, ChatCompletionTokenLogprob
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs

from rl_assets.episodes import Episode
from rl_assets.errors import MalformedInput
from rl_assets.training.manifest import Manifest


def to_choice(text: str, token_ids: tuple[int, ...], logprobs: tuple[float, ...]) -> Choice:
    """An OpenAI choice that carries each sampled token's id and logprob."""
    return Choice(
        finish_reason="stop",
        index=0,
        message=ChatCompletionMessage(role="assistant", content=text),
        logprobs=ChoiceLogprobs(
            content=[
                ChatCompletionTokenLogprob(token=f"token_id:{token}", logprob=logprob, bytes=None, top_logprobs=[])
                for token, logprob in zip(token_ids, logprobs, strict=True)
            ]
        ),
    )


def to_trajectory(episode: Episode, reward: float) -> art.Trajectory:
    """One episode as an ART trajectory. Raises MalformedInput where it cannot be trained on."""
    if episode.not_trainable is not None:
        raise MalformedInput(
            f"trajectory {episode.trajectory_id} cannot be trained on ({episode.not_trainable}); group its window again"
        )
    messages: list = [{"role": "system", "content": episode.system}]
    for step in episode.steps:
        messages.append({"role": "user", "content": step.observation})
        messages.append(to_choice(step.response, step.token_ids, step.logprobs))
    return art.Trajectory(
        messages_and_choices=messages,
        reward=reward,
        initial_policy_version=episode.policy.step,
        final_policy_version=episode.policy.step,
        metadata={"trajectory_id": episode.trajectory_id, "snapshot_id": episode.snapshot_id},
        metrics={"trades": episode.trades, "breaches": episode.breaches},
    )


def to_groups(manifest: Manifest, episodes: Mapping[str, Episode], most_stale: int = 0) -> list[art.TrajectoryGroup]:
    """The manifest's groups as ART groups.

    Raises MalformedInput where an episode is missing, cannot be trained on, or was played by a policy that is not
    between 0 and `most_stale` steps behind the one that is trained.
    """
    missing = [i for i in manifest.trajectory_ids if i not in episodes]
    if missing:
        raise MalformedInput(
            f"{len(missing)} episodes of {manifest.batch_id} are not in the database, such as {missing[0]}; "
            "restore them or retry the batch"
        )
    stale = [i for i in manifest.trajectory_ids if not 0 <= manifest.staleness(episodes[i]) <= most_stale]
    if stale:
        allowed = f"step {manifest.base_step}" + (f" or up to {most_stale} steps before" if most_stale else "")
        raise MalformedInput(
            f"{len(stale)} episodes of {manifest.batch_id} were not played by {allowed}, such as {stale[0]} by "
            f"{episodes[stale[0]].policy}; free the batch and claim it again"
        )
    return [
        art.TrajectoryGroup(
            [to_trajectory(episodes[i], reward) for i, reward in zip(g.trajectory_ids, g.rewards, strict=True)],
            metadata={"group_id": g.group_id},
        )
        for g in manifest.groups
    ]

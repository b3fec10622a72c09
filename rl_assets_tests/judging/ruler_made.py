"""Groups for tests of RULER: who trades with the larger size is better, says the judge on loopback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rl_assets.episodes import Episode, Step
from rl_assets.grouping import Group
from rl_assets.judging.ruler import ABLATION_SHARE, CANARY_SHARE
from rl_assets.judging.ruler_prompt import sampled
from rl_assets.settings import RulerSettings
from rl_assets_tests.judging.judge_server import LoopbackJudge
from rl_assets_tests.store.made import SAMPLE, WINDOW

LIKE = replace(SAMPLE, breaches=0, system="Trade for 4 ticks.\nAn invalid action costs $5.")


def settings(server: LoopbackJudge, **changes: Any) -> RulerSettings:
    given: dict[str, Any] = {"model": "openai/judge", "base_url": server.url, "api_key": "k-123", "outcome_weight": 0.0}
    return RulerSettings(**{**given, **changes})


def episode(name: str, size: int, said: str = "", **changes: Any) -> Episode:
    steps = tuple(
        Step(
            tick=tick,
            observation=f"t {tick + 1} cash {1000 - tick * size}\nA 0.{50 + tick} +0.01 flat\n@wire up A",
            response=f'{said}{{"market":"A","do":"buy_yes","size":{size}}}',
            action={"market": "A", "do": "buy_yes", "size": size},
            valid=True,
            reward=1.25,
            equity=1001.25,
            token_ids=(1,),
            logprobs=(-0.5,),
        )
        for tick in range(4)
    )
    return replace(LIKE, trajectory_id=name, steps=steps, **changes)


def grouped(members: Sequence[Episode], *, planted: bool = False, ablated: bool = False, like: str = "g") -> Group:
    """A group of these, named so that a canary is planted, or an ablation made, if and only if it is asked for."""
    number = 0
    while True:
        name = f"{like}{number}"
        if sampled(name, "canary", CANARY_SHARE) == planted and sampled(name, "ablation", ABLATION_SHARE) == ablated:
            ids = tuple(sorted(member.trajectory_id for member in members))
            return Group(name, "benchmark", "{}", WINDOW, ids, True, None, "babylon-agent", 0)
        number += 1


def ladder(count: int, **changes: Any) -> list[Episode]:
    """Episodes with sizes 10, 20, ...: the last is the best."""
    return [episode(f"e{number}", 10 * (number + 1), **changes) for number in range(count)]

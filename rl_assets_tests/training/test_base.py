"""Step 0: built once, the same from the same seed, and never half."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl_assets import harness
from rl_assets.agents import prompt
from rl_assets.market.config import WorldConfig
from rl_assets.market.snapshot import SPLITS
from rl_assets.registry.checkpoints import base_path
from rl_assets.training import base
from rl_assets.training.base import WARM_START_SEEDS, WarmStart, build_tokenizer, ensure_base_policy
from rl_assets.training.figures import described

LITTLE = WarmStart(episodes=16, passes=1)


def test_a_base_policy_is_built_once_and_imitates_better_as_it_goes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    first = ensure_base_policy(tmp_path, "line", lambda done, total: seen.append((done, total)), LITTLE)
    again = ensure_base_policy(tmp_path, "line", lambda done, total: seen.append((done, total)), LITTLE)
    assert seen == [(n + 1, 8) for n in range(8)]
    assert again == first
    assert first.curve[-1]["loss"] < first.curve[0]["loss"]
    assert first.metrics["parameters"] > 100_000
    units = {str(row["metric"]): row["unit"] for row in described(first.metrics)}
    assert units == {
        "parameters": "weights",
        "vocabulary": "pieces",
        "episodes": "episodes",
        "imitation_loss": "nats per token",
    }
    assert [type(row["value"]) for row in described(first.metrics)] == [int, int, float, int]


def test_a_seed_decides_a_base_policy(tmp_path: Path) -> None:
    one, same, other = (
        ensure_base_policy(tmp_path / name, "line", warm_start=WarmStart(episodes=8, passes=1, seed=seed)).digest
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert one == same != other


def test_a_build_that_breaks_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(base, "imitate", broken)
    with pytest.raises(RuntimeError, match="no more memory"):
        ensure_base_policy(tmp_path, "line", warm_start=LITTLE)
    assert list(base_path(tmp_path, "line").parent.iterdir()) == []


def test_half_a_base_policy_is_built_again(tmp_path: Path) -> None:
    target = base_path(tmp_path, "line")
    target.mkdir(parents=True)
    (target / "config.json").write_text("{")
    assert ensure_base_policy(tmp_path, "line", warm_start=LITTLE).curve


def test_no_day_that_is_imitated_is_ever_played() -> None:
    assert set(WARM_START_SEEDS) <= set(SPLITS["train"])
    assert not set(WARM_START_SEEDS) & set(harness.PLAYABLE)


def test_actions_and_posts_are_few_tokens() -> None:
    tokenizer = build_tokenizer()
    lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in prompt.legal_actions(WorldConfig())]
    assert max(lengths) == 1
    assert len(tokenizer.encode("\n@oak up A", add_special_tokens=False)) == 1

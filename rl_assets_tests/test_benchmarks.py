"""Each benchmark that docs/results.md names runs to its end, at a size at which its figures mean nothing."""

from __future__ import annotations

import importlib
import re
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import __main__ as some
from rl_assets.settings import REPOSITORY
from rl_assets.training.base import WarmStart

TINY: dict[str, tuple[Any, ...]] = {
    "data_plane": ([16],),
    "judging": (16, 1),
    "market": (),
    "rollouts": (8, 1),
    "sensors": ([200],),
    "store": (16, 1),
    "training": (16, 1),
}
"""What `main` is given."""
LEARNING = "--seeds 1 --batches 1 --snapshots 4 --siblings 8 --gate-snapshots 8 --judge ruler --blind"
ELSEWHERE = {"learning": "below", "loop": "it is the whole demo, which integration/test_demo.py runs"}


def test_every_benchmark_of_the_results_is_run():
    results = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
    named = {found[1] for found in re.finditer(r"(?:python -m benchmarks\.|make bench ARGS=)(\w+)", results)}
    assert named == {*TINY, *ELSEWHERE}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_it_runs_to_its_end(name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    module = importlib.import_module(f"benchmarks.{name}")
    if name == "market":
        shrink(module, monkeypatch)
    module.main(*TINY[name])
    said = capfd.readouterr()
    assert re.search(r"\d|TRL is not installed", said.out + said.err)


def shrink(market: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl_assets.market.config import WorldConfig

    for constant, small in {"WIDTHS": (1, 2), "WORLDS": 2, "PLAYS": 1, "WEEK": WorldConfig(ticks=60)}.items():
        monkeypatch.setattr(market, constant, small)


@pytest.mark.slow
def test_learning_runs_to_its_end(monkeypatch: pytest.MonkeyPatch):
    from benchmarks import learning

    monkeypatch.setattr(learning, "WarmStart", partial(WarmStart, episodes=64, passes=1))
    done = CliRunner().invoke(learning.main, LEARNING.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "better with 95 % confidence on" in done.output


def test_too_few_rows_for_a_claim_are_refused():
    from benchmarks import sensors

    with pytest.raises(SystemExit, match="at least 100 rows"):
        sensors.main([99])


def test_a_benchmark_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]):
    assert some.main(["abacus"]) == 2
    assert "there is no benchmark abacus; choose from" in capsys.readouterr().err

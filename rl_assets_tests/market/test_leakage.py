"""What public data tells over many snapshots, and that each kind of leak is found."""

from dataclasses import replace

import numpy as np
import pytest

from rl_assets import cli
from rl_assets.market.config import WorldConfig
from rl_assets.market.leakage import LEAST_WORLDS, audit_leakage, fit_logistic
from rl_assets.market.snapshot import PRICE_UNIT, save_snapshot
from rl_assets.market.sources import SOURCES
from rl_assets.settings import Settings
from rl_assets_tests.market.wild import world

DEFAULT = WorldConfig()


@pytest.fixture(scope="module")
def worlds():
    return [world(DEFAULT, seed) for seed in range(40_000, 40_400)]


def failed(worlds) -> set[str]:
    return {check.name for check in audit_leakage(worlds) if not check.passed}


def test_the_generators_worlds_tell_no_more_than_their_sources(worlds):
    checks = {check.name: check for check in audit_leakage(worlds)}
    assert all(check.passed for check in checks.values()), checks
    assert set(checks) == {
        "sources_as_stated", "direction_as_stated", "seeds_uncorrelated", "coins_sealed", "outcomes_calibrated",
    }  # fmt: skip
    assert "edge of" in checks["direction_as_stated"].detail


def test_coins_that_the_opening_price_tells_are_found(worlds):
    leaking = []
    for snapshot, truth in worlds:
        crowd = snapshot.crowd.copy()
        crowd[0] = np.where(truth.outcomes, 6_000, 4_000)
        leaking.append((replace(snapshot, crowd=crowd), truth))
    assert "coins_sealed" in failed(leaking)


def test_coins_that_do_not_follow_the_latent_are_found(worlds):
    rng = np.random.default_rng(0)
    fair_coins = [(s, replace(t, outcomes=rng.random(len(t.outcomes)) < 0.5)) for s, t in worlds]
    assert "outcomes_calibrated" in failed(fair_coins)


def test_a_source_that_knows_more_than_stated_is_found(worlds):
    liars = []
    for snapshot, truth in worlds:
        latent = truth.latents()
        posts = tuple(
            replace(p, up=bool(latent[-1, p.instrument] > snapshot.crowd_prices()[p.tick, p.instrument]))
            if p.instrument < DEFAULT.markets and p.source in ("yew", "fig", "bay", "ivy")
            else p
            for p in snapshot.posts
        )
        liars.append((replace(snapshot, posts=posts), truth))
    assert {"sources_as_stated", "direction_as_stated"} <= failed(liars)


def test_prices_that_tell_where_they_go_are_found(worlds):
    telling = []
    for snapshot, truth in worlds:
        ahead = np.sign(truth.fair[-1] - snapshot.perp) * 300
        later = np.sign(truth.latents()[-1] / PRICE_UNIT - snapshot.crowd) * 1_500
        telling.append(
            (
                replace(
                    snapshot,
                    perp=(snapshot.perp - ahead * (np.arange(13) % 2)[:, None]).astype(np.int32),
                    crowd=np.clip(snapshot.crowd - later * (np.arange(13) % 2)[:, None], 200, 9_800).astype(np.int32),
                ),
                truth,
            )
        )
    assert "direction_as_stated" in failed(telling)


def test_adjacent_seeds_that_share_a_path_are_found(worlds):
    shared = [(replace(s, crowd=worlds[place // 4 * 4][0].crowd), t) for place, (s, t) in enumerate(worlds)]
    assert "seeds_uncorrelated" in failed(shared)


def test_a_few_worlds_are_no_evidence(worlds):
    with pytest.raises(ValueError, match=f"at least {LEAST_WORLDS}"):
        audit_leakage(worlds[: LEAST_WORLDS - 1])


def test_worlds_far_apart_cannot_tell_of_adjacent_seeds():
    apart = [world(DEFAULT, 7 * seed) for seed in range(LEAST_WORLDS)]
    assert failed(apart) == {"seeds_uncorrelated"}


def test_the_model_finds_the_weights_that_made_its_data():
    rng = np.random.default_rng(1)
    x = np.column_stack([np.ones(20_000), rng.standard_normal((20_000, 2))])
    true = np.array([0.3, -1.0, 0.7])
    offset = rng.standard_normal(20_000)
    y = (rng.random(20_000) < 1.0 / (1.0 + np.exp(-(x @ true + offset)))).astype(float)
    np.testing.assert_allclose(fit_logistic(x, y, offset), true, atol=0.08)


def test_every_source_speaks_in_these_worlds(worlds):
    assert {p.source for s, _ in worlds for p in s.posts} == {source.name for source in SOURCES}


def test_the_command_line_audits_what_is_on_disk(worlds, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RL_ASSETS_DATA", str(tmp_path))
    root = Settings.from_env().tree.snapshots
    for snapshot, truth in worlds[:4]:
        save_snapshot(root, snapshot, truth)
    assert cli.run(["snapshots", "audit", "--leakage"]) == cli.BAD_INPUT
    assert f"generate at least {LEAST_WORLDS}" in capsys.readouterr().err
    for snapshot, truth in worlds[4:LEAST_WORLDS]:
        save_snapshot(root, snapshot, truth)
    assert cli.run(["snapshots", "audit", "--leakage", "--skill"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{LEAST_WORLDS} snapshots audited, 0 checks failed" in said
    assert "coins_sealed" in said
    assert f"skill shows on {LEAST_WORLDS} snapshots" in said
    sealed = root / "sealed" / f"{worlds[0][0].id}.json"
    sealed.write_text((root / "sealed" / f"{worlds[1][0].id}.json").read_text())
    assert cli.run(["snapshots", "audit"]) == 1
    assert "truth_bound" in capsys.readouterr().out

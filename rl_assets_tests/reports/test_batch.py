"""The report of a batch: whole, self-contained, and deaf to what agents and records say."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from rl_assets.episodes import Policy
from rl_assets.errors import LedgerConflict, MalformedInput, MissingCheckpoint, RlAssetsError
from rl_assets.places import Place
from rl_assets.registry.decisions import record_evaluation
from rl_assets.registry.evaluate import decide
from rl_assets.registry.gate import Decision
from rl_assets.registry.models import Model
from rl_assets.reports.batch import render_batch_report, write_batch_report
from rl_assets.reports.page import number
from rl_assets.reports.summary import by_policy, summarise
from rl_assets.store.episode_files import write_episodes_parquet
from rl_assets.training.manifest import Manifest, ManifestGroup
from rl_assets.tree import BatchFiles
from rl_assets_tests.reports.pages import HOSTILE, Page, played, worlds

LINE = "babylon-agent"
CANDIDATE, CHAMPION = Policy(LINE, 3), Policy(LINE, 2)
WORLDS = worlds(24)
EPISODES = played(WORLDS, {"news_follower": CANDIDATE, "random": CHAMPION}, siblings=2) + played(
    WORLDS, {"hold": Policy("hold"), "oracle": Policy("oracle")}
)
DECISION = decide(WORLDS, EPISODES, CANDIDATE, CHAMPION, look=1)
MANIFEST = Manifest(
    batch_id="batch-0123456789ab",
    model_line=LINE,
    base_step=2,
    judgement_sets=("judgement-1", "judgement-2"),
    windows=("2026-11-23T08:00",),
    groups=(
        ManifestGroup("group-1", ("t-1", "t-2"), (0.25, 0.75)),
        ManifestGroup("group-2", ("t-3", "t-4"), (0.5, 0.5)),
    ),
)
MODEL = Model(
    model_line=LINE,
    step=3,
    version="v1.0.2",
    checkpoint_path=Path("checkpoints/0003"),
    digest="ab" * 32,
    batch_id=MANIFEST.batch_id,
    parent_step=2,
    state="candidate",
    metrics={"loss/train": -0.0125},
    created_at=datetime(2026, 11, 23, 9, tzinfo=UTC),
)
CURVE = [{"update": float(i), "loss/train": -0.01 * i, "loss/entropy": 1.0} for i in range(4)]
RECORD = {"batch_id": MANIFEST.batch_id, "parent_step": 2, "curve": CURVE, "passes": [{"pass": 0.0}], "best_pass": 0}


def rendered(directory: Path, **changes: Any) -> Place:
    given = {
        "manifest": MANIFEST,
        "model": MODEL,
        "curve": CURVE,
        "result": {"backend": "cpu", "seconds": 12.5},
        "decision": DECISION.to_json(),
        "champion": CHAMPION,
        "episodes": EPISODES,
    }
    return render_batch_report(directory / "report.html", **{**given, **changes})


def test_a_report_tells_what_was_trained_decided_and_played(tmp_path: Path):
    page = Page(rendered(tmp_path))
    assert not page.faults
    assert len(page.images) == 4 and all(image["alt"] for image in page.images)
    text = " ".join(page.text.split())
    assert DECISION.reason in text
    for fact in ("batch-0123456789ab", "babylon-agent@3", "babylon-agent@2", "v1.0.2", "ab" * 32, "group-2", "t-4"):
        assert fact in text
    for one in DECISION.conditions():
        cells = (f"{one.name}, {one.unit}", number(one.champion), number(one.candidate), one.limit)
        assert "".join([*cells, "yes" if one.holds else "no"]) in page.text
    for fact in ("judgement-2", "2026-11-23T08:00 UTC", "12.5", "oracle", "0.2500", "−0.01250"):
        assert fact in text
    verdict = "Promoted" if DECISION.promote else "Rejected"
    assert f"{verdict}: babylon-agent@3" in text


def test_skill_is_one_for_the_oracle_and_nothing_where_it_has_not_played(tmp_path: Path):
    skill = {row.policy: row.skill for row in summarise(by_policy(EPISODES))}
    assert skill["oracle"] == 1.0 and skill["hold"] == 0.0
    assert 0.0 < (skill[str(CANDIDATE)] or 0.0) < 1.0
    without = [episode for episode in EPISODES if episode.policy != Policy("oracle")]
    assert {row.skill for row in summarise(by_policy(without))} == {None}
    elsewhere = [replace(e, snapshot_id="other") if e.policy == CANDIDATE else e for e in EPISODES]
    assert {row.policy: row.skill for row in summarise(by_policy(elsewhere))}[str(CANDIDATE)] is None
    assert not Page(rendered(tmp_path, episodes=without)).faults


def test_the_same_batch_gives_the_same_bytes(tmp_path: Path):
    assert rendered(tmp_path / "a").read_bytes() == rendered(tmp_path / "b").read_bytes()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_every_field_stays_text(tmp_path: Path, text: str):
    line = f"{text}-line"
    candidate, champion = Policy(line, 3), Policy(line, 2)
    names = {CANDIDATE: candidate, CHAMPION: champion, Policy("hold"): Policy(text)}
    manifest = Manifest(text, line, 2, (text,), (text,), (ManifestGroup(text, (text + "1", text + "2"), (0.0, 1.0)),))
    page = Page(
        rendered(
            tmp_path,
            manifest=manifest,
            model=replace(
                MODEL,
                model_line=line,
                batch_id=text,
                version=text,
                digest=text,
                checkpoint_path=Path(text.replace("\x00", "")),
                metrics={text: 1.0},
            ),
            result={"backend": text, "seconds": 1.0},
            decision=replace(DECISION, reason=text).to_json(),
            champion=champion,
            episodes=[
                replace(e, policy=names.get(e.policy, e.policy), agent_id=text, trajectory_id=text) for e in EPISODES
            ],
        )
    )
    assert not page.faults
    assert str(1337 * 7919) not in page.text
    assert not set("\x00\x1b\u202e\u200b") & set(page.text)
    if text.isascii() and text.isprintable() and len(text) < 1000:
        assert page.text.count(text) >= 10
    assert len(page.text) < 100_000


def test_a_batch_that_promises_little_is_shown_as_well(tmp_path: Path):
    few = {"lower": None, "upper": None, "days": [200_000], "day_effects": [1.5], "promote": False, "reason": "too few"}
    page = Page(
        rendered(
            tmp_path,
            decision={**DECISION.to_json(), **few},
            curve=[],
            result={},
            manifest=replace(MANIFEST, groups=(), windows=(), judgement_sets=()),
            model=replace(MODEL, metrics={}),
            episodes=[e for e in EPISODES if e.snapshot_id == EPISODES[0].snapshot_id],
        )
    )
    assert not page.faults
    assert "lower bound of the gain, dollars per episode" in page.text and "Rejected: babylon-agent@3" in page.text


def test_what_does_not_belong_together_is_refused_and_nothing_is_written(tmp_path: Path):
    mine = [e for e in EPISODES if e.policy != CHAMPION]
    broken = [replace(EPISODES[0], expected_pnl=float("nan")), *EPISODES[1:]]
    for changes, said in (
        ({"model": replace(MODEL, batch_id="batch-other")}, "pass those of one batch"),
        ({"episodes": mine}, "babylon-agent@2 has not played the gate; materialize benchmark_evaluations"),
        ({"episodes": []}, "babylon-agent@3 has not played the gate"),
        ({"episodes": broken}, "expected_pnl of episode episode-000000 is nan"),
        ({"curve": [{"update": 0.0, "loss/train": float("nan")}]}, "cannot be drawn"),
        ({"decision": {}}, "evaluate the candidate again"),
    ):
        with pytest.raises(MalformedInput, match=said):
            rendered(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_replaced_whole_or_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = rendered(tmp_path).read_bytes()
    write_text = Path.write_text

    def disk_fills(self: Path, data: str, encoding: str | None = None) -> int:
        write_text(self, data[: len(data) // 2], encoding)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", disk_fills)
    with pytest.raises(RlAssetsError, match="free disk space"):
        rendered(tmp_path, result={})
    assert (tmp_path / "report.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def inserted(conn: psycopg.Connection, decision: Decision | None, checkpoint: Path) -> None:
    """A batch with its model as the ledger and the registry hold them."""
    conn.execute(
        """INSERT INTO rl_assets.batches (id, model_line, base_step, state, episodes, groups, manifest, result)
           VALUES (%s, %s, 2, 'evaluated', 4, 2, %s, %s)""",
        [MANIFEST.batch_id, LINE, Jsonb(MANIFEST.to_json()), Jsonb({"backend": "cpu", "seconds": 12.5})],
    )
    conn.execute(
        """INSERT INTO rl_assets.models (model_line, step, version, checkpoint_path, digest, batch_id, state)
           VALUES (%s, 3, 'v1.0.2', %s, 'ab', %s, 'candidate')""",
        [LINE, str(checkpoint), MANIFEST.batch_id],
    )
    if decision is not None:
        record_evaluation(conn, batch_id=MANIFEST.batch_id, candidate_step=3, champion_step=2, decision=decision)


def test_a_batch_of_the_ledger_is_reported_from_what_is_on_disk(conn: psycopg.Connection, tmp_path: Path):
    inserted(conn, DECISION, tmp_path / "0003")
    (tmp_path / "0003").mkdir()
    (tmp_path / "0003" / "training.json").write_text(json.dumps(RECORD))
    write_episodes_parquet(tmp_path / "evaluation.parquet", EPISODES)
    page = Page(write_batch_report(conn, BatchFiles(tmp_path), MANIFEST.batch_id))
    assert not page.faults
    assert DECISION.reason in page.text and "12.5" in page.text and "t-4" in page.text


def test_a_batch_that_cannot_be_reported_says_what_to_do(conn: psycopg.Connection, tmp_path: Path):
    with pytest.raises(LedgerConflict):
        write_batch_report(conn, BatchFiles(tmp_path), "batch-unknown")
    inserted(conn, None, tmp_path / "0003")
    with pytest.raises(MalformedInput, match="has not been evaluated; materialize benchmark_evaluations"):
        write_batch_report(conn, BatchFiles(tmp_path), MANIFEST.batch_id)
    record_evaluation(conn, batch_id=MANIFEST.batch_id, candidate_step=3, champion_step=2, decision=DECISION)
    with pytest.raises(MissingCheckpoint, match="restore the checkpoint"):
        write_batch_report(conn, BatchFiles(tmp_path), MANIFEST.batch_id)
    (tmp_path / "0003").mkdir()
    for damaged in ("[]", "{", '{"curve": []}'):
        (tmp_path / "0003" / "training.json").write_text(damaged)
        with pytest.raises(MissingCheckpoint, match=r"is damaged: .*; restore the checkpoint"):
            write_batch_report(conn, BatchFiles(tmp_path), MANIFEST.batch_id)
    (tmp_path / "0003" / "training.json").write_text(json.dumps(RECORD))
    with pytest.raises(MalformedInput, match="materialize it"):
        write_batch_report(conn, BatchFiles(tmp_path), MANIFEST.batch_id)
    assert not (tmp_path / "report.html").exists()

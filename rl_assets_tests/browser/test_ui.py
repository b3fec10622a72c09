"""Dagster's UI as a data engineer finds it after the loop has run, in a real headless Chromium."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, TimeoutError, expect, sync_playwright

from rl_assets.registry.models import promote
from rl_assets.services import databases
from rl_assets.settings import Settings
from rl_assets.store.database import connect
from rl_assets_tests.processes import query
from rl_assets_tests.registry.made import LINE, a_candidate, evaluated

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1800)]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
ASSETS = (
    *("benchmark_snapshots", "babylon_trajectories", "recorded_trajectories", "grpo_groups", "judged_rankings"),
    *("base_policy", "training_batches", "trained_models", "benchmark_evaluations", "deployed_model"),
    *("babylon_markets", "market_outcomes", "benchmark_leaderboard"),
)
GROUPS = 5
PATIENCE = 60_000
"""Milliseconds that the page may take to show something."""


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def keep(page: Page, name: str) -> None:
    """A picture for people, where RL_ASSETS_SCREENSHOTS names a directory."""
    if directory := os.environ.get("RL_ASSETS_SCREENSHOTS"):
        page.screenshot(path=Path(directory) / f"{name}.png")


def until(page: Page, done: Callable[[], bool], what: str, looped: Path, seconds: float = 600.0) -> None:
    """Wait for what a run or a backfill brings about; one that failed brings nothing. Leaves the page."""
    page.goto("about:blank")  # an open page asks and draws all the while, with cores that the run needs
    failed = """SELECT run_id, pipeline_name FROM runs WHERE status = 'FAILURE'
                UNION ALL SELECT key, 'backfill' FROM bulk_actions WHERE status IN ('FAILING', 'FAILED')"""
    deadline = time.monotonic() + seconds
    while not done():
        assert query(looped, failed, dagster=True) == [], f"no run of the loop may fail, while waiting for {what}"
        assert time.monotonic() < deadline, f"{what} did not come in {seconds:.0f} s"
        time.sleep(1)


def configure(page: Page, text: str) -> None:
    """Write a run's configuration into the editor that is on top."""
    page.locator(".CodeMirror").last.click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(text)


def request(page: Page, button: str) -> None:
    """Press a button that asks the server for runs, and wait for its answer: a page that is left takes that back."""
    with page.expect_response(lambda response: "mutation Launch" in (response.request.post_data or "")) as answer:
        page.get_by_role("button", name=button).click()
    assert answer.value.ok, answer.value.text()


def launch(page: Page) -> None:
    """Press the launchpad's button, which leads to the run, and wait until that has succeeded."""
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url("**/runs/*")
    expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=5 * PATIENCE)


def sets(looped: Path) -> dict[str, int]:
    """How often each hour has been judged."""
    return dict(query(looped, "SELECT window_id, count(*) FROM rl_assets.judgement_sets GROUP BY 1"))


def busiest(looped: Path) -> str:
    """The hour in which most was played."""
    ((hour,),) = query(looped, 'SELECT "windowId" FROM trajectories GROUP BY 1 ORDER BY count(*) DESC LIMIT 1')
    return hour


@dataclass(frozen=True)
class Asked:
    """For which hour a person wants another judgement, and how many there were."""

    hour: str
    before: int


@pytest.fixture(scope="module")
def asked(page: Page, address: str, looped: Path, late_hour: str) -> Asked:
    """A backfill of `rejudge` for two hours, launched in the UI. The daemon begins with it within half a minute."""
    until(page, lambda: late_hour in sets(looped), "the judgement of an hour that came late", looped)
    hour = busiest(looped)
    before = sets(looped)[hour]
    page.goto(f"{address}/locations/rl_assets/jobs/rejudge")
    page.get_by_role("button", name="Materialize all").click()
    page.get_by_text("Config", exact=True).click()
    chosen = page.get_by_placeholder("No matching partitions")
    chosen.fill(f"{late_hour},{hour}")
    chosen.press("Enter")
    page.get_by_role("button", name="Add config").click()
    configure(page, "resources: {judge: {config: {group_size: 3}}}")
    page.get_by_role("button", name="Save config").click()
    request(page, "Launch backfill")
    return Asked(hour, before)


def test_the_graph_shows_every_asset(page: Page, address: str):
    page.goto(f"{address}/asset-groups")
    expect(page.get_by_label("unfold_more")).to_have_count(GROUPS, timeout=PATIENCE)
    page.keyboard.press("Alt+e")  # expand all groups
    for name in (name for name in ASSETS if len(name) <= 16):  # longer ones are shortened at this zoom
        expect(page.get_by_text(name, exact=True).first).to_be_visible(timeout=PATIENCE)
    keep(page, "graph")


def test_the_catalogue_has_no_failed_asset(page: Page, address: str):
    page.goto(f"{address}/assets")
    for name in ASSETS:
        expect(page.get_by_text(name, exact=True).first).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text(re.compile("^Failed")).first).not_to_be_visible()
    keep(page, "catalogue")


def test_the_sensor_says_in_words_why_it_waits(page: Page, address: str):
    page.goto(f"{address}/locations/rl_assets/sensors/training_sensor")
    said = page.get_by_text("Skip reason:")
    # The table draws itself anew with each tick, and a click that falls into that is lost.
    for _ in range(6):
        with contextlib.suppress(TimeoutError):
            page.get_by_role("button", name="0 runs requested").first.click(timeout=20_000)
            said.wait_for(timeout=10_000)
            break
    expect(said).to_be_visible()
    reason = re.compile(r"\d+ of \d+ fresh episodes|batch-[0-9a-f]{16} is [a-z]+|has no champion yet")
    expect(page.get_by_text(reason).first).to_be_visible()
    keep(page, "sensor")


def test_rankings_show_judge_counts_and_a_picture(page: Page, address: str, looped: Path):
    window = busiest(looped)
    page.goto(f"{address}/assets/judged_rankings?view=partitions&partition={window}")
    expect(page.get_by_text("judgement_set").first).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("groups_trainable").first).to_be_visible()
    expect(page.get_by_text("scores_by_policy").first).to_be_visible()
    keep(page, "rankings")


@pytest.mark.parametrize("asset", ["grpo_groups", "judged_rankings", "training_batches", "trained_models"])
def test_the_checks_of_an_asset_are_green(page: Page, address: str, asset: str):
    page.goto(f"{address}/assets/{asset}?view=checks")
    expect(page.get_by_text("Succeeded").first).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("Failed", exact=True)).to_have_count(0)
    keep(page, f"checks-{asset}")


def test_the_decision_of_the_gate_is_read_where_the_model_is_deployed(page: Page, address: str):
    page.goto(f"{address}/assets/deployed_model")
    expect(page.get_by_text(re.compile("rejected|promoted")).first).to_be_visible(timeout=PATIENCE)
    keep(page, "deployed")


def test_a_person_asks_for_hours_to_be_judged_again(page: Page, address: str, asked: Asked):
    page.goto(f"{address}/runs?view=backfills")
    expect(page.get_by_text("rejudge").first).to_be_visible(timeout=PATIENCE)
    keep(page, "backfills")


def test_a_person_materializes_a_snapshot(page: Page, address: str, looped: Path):
    ((snapshot,),) = query(looped, "SELECT id FROM rl_assets.snapshots ORDER BY id LIMIT 1")
    at = f"{address}/assets/benchmark_snapshots?view=partitions&partition={snapshot}"
    page.goto(at)
    page.get_by_text("content_hash").first.wait_for()
    page.get_by_role("button", name="Materialize").click()
    request(page, "Launch 1 run")
    newest = """SELECT r.status FROM runs AS r JOIN run_tags AS t ON t.run_id = r.run_id
                WHERE t.key = 'dagster/partition' AND t.value = '{}'"""
    until(page, lambda: ("SUCCESS",) in query(looped, newest.format(snapshot), dagster=True), "the snapshot", looped)
    page.goto(at)
    expect(page.get_by_text("price_paths").first).to_be_visible(timeout=PATIENCE)
    keep(page, "snapshot")


def test_a_person_forces_a_training(page: Page, address: str, looped: Path):
    undecided = "SELECT 1 FROM rl_assets.batches WHERE state NOT IN ('promoted', 'rejected')"
    waiting = "SELECT 1 FROM rl_assets.waiting JOIN rl_assets.champion USING (model_line, step) WHERE episodes > 0"
    assert query(looped, waiting), "the loop has left nothing over"
    until(page, lambda: not query(looped, undecided), "the end of what was trained before", looped)
    page.goto(f"{address}/locations/rl_assets/jobs/force_training/playground")
    expect(page.get_by_text("forced_by: a person at the launchpad")).to_be_visible(timeout=PATIENCE)
    launch(page)
    expect(page.get_by_text(re.compile("claimed as batch-[0-9a-f]{16}")).first).to_be_visible(timeout=PATIENCE)
    keep(page, "forced")
    forced = query(looped, "SELECT forced_by, id FROM rl_assets.batches ORDER BY created_at DESC LIMIT 1")
    assert forced[0][0] == "a person at the launchpad"
    until(page, lambda: not query(looped, undecided), "the decision", looped)
    claims = query(looped, "SELECT DISTINCT batch_id FROM rl_assets.offers WHERE batch_id IS NOT NULL")
    twice = query(looped, "SELECT trajectory_id FROM rl_assets.offered_episodes GROUP BY 1 HAVING count(*) > 1")
    assert len(claims) >= 2 and twice == []
    page.goto(f"{address}/assets/training_batches?view=partitions&partition={forced[0][1]}")
    expect(page.get_by_text("a person at the launchpad").first).to_be_visible(timeout=PATIENCE)


def test_hours_are_judged_again_in_groups_of_another_size(page: Page, address: str, looped: Path, asked: Asked):
    # One episode alone makes the same group whatever the size, and is not judged again.
    until(page, lambda: sets(looped)[asked.hour] > asked.before, "another judgement", looped)
    page.goto(f"{address}/assets/judged_rankings?view=partitions&partition={asked.hour}")
    expect(page.get_by_text("agreement_between_sets").first).to_be_visible(timeout=PATIENCE)
    keep(page, "judged-again")


def test_a_person_rolls_the_champion_back(page: Page, address: str, looped: Path):
    # The gate of so small a loop lets nothing through, so that a champion is made that came after another.
    with databases(Settings(looped)) as urls, connect(urls.babylon) as conn:
        candidate = a_candidate(conn, looped / "made", 900)
        evaluated(conn, candidate, promote=True)
        before = promote(conn, LINE, candidate.step).before.step
    page.goto(f"{address}/locations/rl_assets/jobs/rollback/playground")
    expect(page.get_by_text("reason: a person at the launchpad gave no reason")).to_be_visible(timeout=PATIENCE)
    configure(page, "ops: {roll_back_champion: {config: {reason: it trades too much}}}")
    expect(page.get_by_text("No errors")).to_be_visible(timeout=PATIENCE)
    launch(page)
    expect(page.get_by_text("it trades too much").first).to_be_visible(timeout=PATIENCE)
    keep(page, "rolled-back")
    assert query(looped, "SELECT step FROM rl_assets.champion") == [(before,)]
    assert query(looped, "SELECT state FROM rl_assets.models WHERE step = 900") == [("rejected",)]

"""Dagster's UI as a data engineer finds it after the loop has run, in a real headless Chromium."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, TimeoutError, expect, sync_playwright

from rl_assets_tests.processes import left_running, query, start

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1800)]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
ASSETS = (
    *("benchmark_snapshots", "babylon_trajectories", "recorded_trajectories", "grpo_groups", "judged_rankings"),
    *("base_policy", "training_batches", "trained_models", "benchmark_evaluations", "deployed_model"),
    "benchmark_leaderboard",
)
GROUPS = 5
PATIENCE = 60_000
"""Milliseconds that the page may take to show something."""


@pytest.fixture(scope="module")
def address(looped: Path) -> Iterator[str]:
    """The web interface on the data of the loop, as `make ui` starts it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed here")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = start(looped, "ui", "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 180
        while not answers(url):
            assert command.poll() is None, command.communicate()[0]
            assert time.monotonic() < deadline, "the web interface does not answer"
            time.sleep(0.5)
        yield url
    finally:
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=90)
    assert left_running(looped) == []


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser.new_page(viewport={"width": 1600, "height": 1000})
        browser.close()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def keep(page: Page, name: str) -> None:
    """A picture for people, where RL_ASSETS_SCREENSHOTS names a directory."""
    if directory := os.environ.get("RL_ASSETS_SCREENSHOTS"):
        page.screenshot(path=Path(directory) / f"{name}.png")


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
    (window,) = query(looped, 'select distinct "windowId" from trajectories order by 1 limit 1')[0]
    page.goto(f"{address}/assets/judged_rankings?view=partitions&partition={window}")
    expect(page.get_by_text("judgement_set").first).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("groups_trainable").first).to_be_visible()
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

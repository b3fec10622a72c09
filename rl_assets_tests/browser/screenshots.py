"""Draw the pictures of README and docs: `python -m rl_assets_tests.browser.screenshots`, where a demo has run.

They are of the data that RL_ASSETS_DATA names, its newest batch that was evaluated, and go to docs/images.
"""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect, sync_playwright

from rl_assets.places import Place
from rl_assets.settings import REPOSITORY, Settings
from rl_assets_tests.browser.test_ui import CHROMIUM, GROUPS, PATIENCE, QUIET
from rl_assets_tests.processes import query, served

IMAGES = REPOSITORY / "docs" / "images"
SIZE = {"width": 1400, "height": 900}
NEWEST = """SELECT b.id FROM rl_assets.batches AS b JOIN rl_assets.evaluations AS e ON e.batch_id = b.id
            ORDER BY b.created_at DESC LIMIT 1"""


def main() -> None:
    settings = Settings.from_env()
    data = settings.data_dir
    with served(data) as address, sync_playwright() as playwright:
        ((batch,),) = query(data, NEWEST)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        page = browser.new_page(viewport={"width": SIZE["width"], "height": 720})
        page.set_default_timeout(PATIENCE)
        graph(page, address)
        page.set_viewport_size(SIZE)  # pyright: ignore[reportArgumentType]
        plot(page, address, batch)
        report(page, settings.tree.batch(batch).report)
        browser.close()


def graph(page: Page, address: str) -> None:
    page.goto(f"{address}/asset-groups")
    expect(page.get_by_label("unfold_more")).to_have_count(GROUPS, timeout=PATIENCE)
    page.get_by_text("Hide navigation").click()
    page.keyboard.press("Alt+e")  # expand all groups
    expect(page.get_by_text("deployed_model", exact=True).first).to_be_visible(timeout=PATIENCE)
    page.get_by_placeholder("Jump to").locator("xpath=following::button[1]").click()
    page.wait_for_timeout(5000)  # what became of each asset comes after its name
    page.mouse.dblclick(700, page.viewport_size["height"] - 12 if page.viewport_size else 0)  # fit to the window
    shot(page, "graph")


def plot(page: Page, address: str, batch: str) -> None:
    page.goto(f"{address}/assets/benchmark_evaluations?view=partitions&partition={batch}")
    row = page.get_by_role("row").filter(has_text="paired_differences")
    row.get_by_text("[Show Markdown]").click()
    expect(page.get_by_role("dialog").locator("img").first).to_be_visible(timeout=PATIENCE)
    shot(page, "gate")


def report(page: Page, path: Place) -> None:
    page.goto(path.as_uri())
    expect(page.get_by_text(re.compile("promoted|rejected")).first).to_be_visible(timeout=PATIENCE)
    shot(page, "report")


def shot(page: Page, name: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(2000)  # what moves has come to rest
    page.screenshot(path=IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()

"""What the docs say: links lead somewhere, commands are commands, and every one in a block of code is run."""

from __future__ import annotations

import re
import shlex
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
import uvicorn

from rl_assets.cli import cli, run
from rl_assets.services import databases
from rl_assets.settings import REPOSITORY, Settings
from rl_assets.training.base import base_path
from rl_assets_tests.agents.endpoint_server import loopback_model
from rl_assets_tests.processes import a_reachable_directory, settled

PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)#]+)(#[^)]*)?\)")
SPAN = re.compile(r"`(rl-assets [^`]+)`")
COMMAND = re.compile(r"(make|rl-assets|export|pip) ")
NO_SHELL = {"python", "yaml", "json", "sql"}

ELSEWHERE = {
    "make demo": "integration/test_demo.py::test_the_sensor_trains_on_what_was_played_and_on_nothing_twice",
    "make ui": "browser/test_ui.py",
    "rl-assets harness": "integration/test_harness.py::"
    "test_below_the_threshold_nothing_is_trained_and_the_code_says_so",
    "rl-assets harness --train": "integration/test_demo.py::"
    "test_the_sensor_trains_on_what_was_played_and_on_nothing_twice",
    "rl-assets serve train-000000-6b106b212a67": "a2a/test_commands.py::test_a_served_snapshot_is_played_and_recorded",
    "rl-assets play http://127.0.0.1:41241 --agent news_follower": "a2a/test_commands.py::"
    "test_a_served_snapshot_is_played_and_recorded",
    "rl-assets ui": "browser/test_ui.py",
    'rl-assets models rollback --reason "loses on quiet days"': "registry/test_models.py::"
    "test_rollback_goes_back_one_champion_at_a_time",
    "make install": "../.ci/run",
    "make lint": "../.ci/run",
    "make test": "../.ci/run",
}
"""Commands that take a daemon, a server or a promoted model, and the tests that run them."""
ENDS_WITH = {"rl-assets train --force": 1}
"""Exit codes other than 0: here no daemon has judged what was played."""


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, line) of every line of code; the language of an indented block is empty."""
    language: str | None = None
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            language = line.removeprefix("```").strip() if language is None else None
        elif language is not None:
            yield language, line
        elif line.startswith("    "):
            yield "", line[4:]


def commands(page: Path) -> list[str]:
    """Lines of code that a person would type, without the comments behind them."""
    lines = [line for language, line in blocks(page) if language not in NO_SHELL]
    return [re.split(r"\s+#", line)[0].strip() for line in lines if COMMAND.match(line)]


TYPED = [(page.name, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path):
    links = [found[1] for found in LINK.finditer(page.read_text(encoding="utf-8"))]
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_is_one(page: Path):
    spans = [found[1] for found in SPAN.finditer(page.read_text(encoding="utf-8"))]
    unknown = [text for text in (*commands(page), *spans) if text.startswith("rl-assets ") and not is_known(text)]
    assert unknown == []


def is_known(text: str) -> bool:
    """Whether `rl-assets ...` names commands and options that there are. Words in capitals stand for others."""
    command: click.Command = cli
    for word in shlex.split(text)[1:]:
        if isinstance(command, click.Group) and not word.startswith("-"):
            if word.isupper():
                return True
            found = command.commands.get(word.rstrip(","))
            if found is None:
                return False
            command = found
        elif word.startswith("--"):
            known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
            if word.partition("=")[0] not in known:
                return False
    return True


def test_what_is_run_elsewhere_is_run_there():
    for test in ELSEWHERE.values():
        path, _, name = test.partition("::")
        source = (Path(__file__).parent / path).read_text(encoding="utf-8")
        assert f"def {name}(" in source or not name, test


@pytest.fixture(scope="module")
def data(weak_policy: Path) -> Iterator[Path]:
    """A new user's data directory, with a base policy that is quickly built, and the database kept running."""
    with pytest.MonkeyPatch.context() as patch, a_reachable_directory() as root:
        for name in ("DATABASE_URL", "DAGSTER_PG_URL", "OPENAI_API_KEY", "RULER_JUDGE_MODEL"):
            patch.delenv(name, raising=False)
        patch.setenv("RL_ASSETS_DATA", str(root))
        patch.chdir(root)
        settled(root, weak_policy)
        settings = Settings.from_env()
        (root / "my-checkpoint").symlink_to(base_path(root, settings.model_line))
        with databases(settings):
            yield root


def test_every_command_in_a_block_runs(data: Path):
    with loopback_model() as model, the_documented_agent() as agent:
        stand_ins = {
            "http://127.0.0.1:8000/v1": model.url,
            "http://127.0.0.1:9000": agent,
            "--count 64": "--count 4",
            "model@0 model@1": "model@0 ./my-checkpoint",
        }
        ends = {}
        for command in dict.fromkeys(command for _, command in TYPED if command.startswith("rl-assets ")):
            if command in ELSEWHERE:
                continue
            typed = command
            for shown, here in stand_ins.items():
                typed = typed.replace(shown, here)
            ends[command] = run(shlex.split(typed)[1:])
    assert ends == {command: ENDS_WITH.get(command, 0) for command in ends}
    assert len(ends) >= 10


@contextmanager
def the_documented_agent() -> Iterator[str]:
    """The agent in docs/agents.md, served on loopback."""
    code = "\n".join(line for language, line in blocks(REPOSITORY / "docs" / "agents.md") if language == "python")
    namespace: dict[str, Any] = {"__name__": "documented"}
    exec(compile(code, "docs/agents.md", "exec"), namespace)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(namespace["app"](url), log_level="error"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(timeout=60)

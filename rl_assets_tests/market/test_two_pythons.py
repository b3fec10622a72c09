"""The same seed gives the same bytes on another Python: worlds and what reference agents play on them.

The other interpreter is found on PATH or under pyenv. NumPy and pydantic are put into an environment
of its own, at our versions.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from rl_assets.settings import REPOSITORY

pytestmark = pytest.mark.slow

SAID = """
import itertools, json
from rl_assets.agents.runner import Assignment, ReferenceAgent, play
from rl_assets.market.config import DIFFICULTIES
from rl_assets.market.generate import generate

said = {}
for (name, config), seed in itertools.product(DIFFICULTIES.items(), (3, 799_000)):
    world = generate("train", seed, config)
    numbers = itertools.count()
    episodes = play(
        [Assignment(ReferenceAgent(agent), agent, 2) for agent in ("random", "news_follower", "oracle")],
        [world],
        seed=5,
        new_ids=lambda n: [str(next(numbers)) for _ in range(n)],
    )
    said[f"{name} {seed}"] = [world[0].content_hash, world[1].digest, *(e.content_hash for e in episodes)]
print(json.dumps(said))
"""


def others() -> Iterator[str]:
    """Interpreters of other versions that start, the newest first."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in (14, 13, 12):
        for found in (shutil.which(f"python3.{minor}"), *sorted(versions.glob(f"3.{minor}.*/bin/python"))):
            if found and subprocess.run([found, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
                yield str(found)


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    other = next(others(), None)
    if other is None:
        pytest.skip("no Python 3.12 to 3.14 was found beside this one")
    home = tmp_path_factory.mktemp("other")
    subprocess.run([other, "-m", "venv", home], check=True, capture_output=True)
    pip = [home / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    installed = subprocess.run(
        [*pip, *(f"{name}=={version(name)}" for name in ("numpy", "pydantic"))],
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode:
        pytest.skip(f"NumPy and pydantic could not be installed for {other}: {installed.stderr.strip()[-200:]}")
    return home / "bin" / "python"


def said_by(python: str | Path) -> dict[str, list[str]]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([python, "-c", SAID], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_another_python_generates_and_plays_the_same_bytes(other_python: Path):
    ours = said_by(sys.executable)
    assert said_by(other_python) == ours
    assert len(ours) >= 4
    assert all(len(hashes) == 8 for hashes in ours.values())

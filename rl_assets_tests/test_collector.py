"""How seldom a process looks for cycles among what it made."""

from __future__ import annotations

import subprocess
import sys

from rl_assets.settings import REPOSITORY

ENDS = """
from rl_assets.settings import prepare_environment

prepare_environment()


class Cycle:
    def __init__(self):
        self.itself = self

    def __del__(self):
        print("found")


Cycle()
print("end", flush=True)
"""


def test_a_process_that_ends_looks_for_no_cycles():
    done = subprocess.run([sys.executable, "-c", ENDS], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "end\n"

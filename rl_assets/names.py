"""What agents are called: the names of this platform's own policies, and what another agent may take.

A command asks this before anything else is loaded, so nothing here loads NumPy.
"""

from __future__ import annotations

import re
from collections.abc import Collection

MODEL = "model"
"""The champion of the model line, whichever it is."""
RULES = ("hold", "random", "momentum", "contrarian", "post_follower", "news_follower")
"""The reference agents that need no truth."""
REFERENCE_AGENTS: tuple[str, ...] = (*RULES, "oracle")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


def fault_of(name: str, lines: Collection[str]) -> str | None:
    """Why no agent can be called so, in one sentence, or None where one can. lines: names of model lines."""
    if _NAME.fullmatch(name) is None:
        return "an agent's name has 1 to 40 letters, digits, dots, dashes and underscores, a letter or digit first"
    if name == MODEL or name in REFERENCE_AGENTS or name in lines:
        return f"{name} is the name of a policy of this platform; choose another"
    return None

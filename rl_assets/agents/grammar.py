"""A grammar as a trie over tokens: which token may come next when only some texts may be said.

Sampler, trainer and server mask with the same trie, so that sampled and trained logprobs are of one distribution.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rl_assets.agents.prompt import Means, suffices
from rl_assets.errors import MalformedInput

FILE = "grammar.json"
ROOT, END = 0, 1


class Grammar:
    """allowed: bool (nodes, vocabulary). following: int32 (nodes, vocabulary), -1 where not allowed.

    ROOT is the start of all that may ever be said. END allows everything, since nothing follows it. Both arrays grow as
    `start` is asked about means that it has not met.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], vocabulary: int, actions: Sequence[str] = ()) -> None:
        """actions: the text of each sequence, where what may be said depends on what the speaker has; else none."""
        self._sequences, self._actions = sequences, actions
        self.allowed = np.ones((2, vocabulary), bool)
        self.following = np.full((2, vocabulary), -1, np.int32)
        self._starts: dict[tuple[int, ...], int] = {}
        self._lay(ROOT, tuple(range(len(sequences))))
        self._known: dict[Means, int] = {}

    def start(self, means: Means | None) -> int:
        """The node before an answer of one who has these means: no action that they do not suffice for follows it.

        ROOT where they are not known, or where the grammar does not ask for them.
        """
        if means is None or not self._actions:
            return ROOT
        if means not in self._known:
            some = tuple(n for n, action in enumerate(self._actions) if suffices(means, action))
            if some not in self._starts:
                self._lay(len(self.allowed), some)
            self._known[means] = self._starts[some]
        return self._known[means]

    def walk(self, tokens: Sequence[int], start: int = ROOT) -> list[int]:
        """The node before each token. Raises ValueError where a token is not allowed."""
        nodes, node = [], start
        for token in tokens:
            nodes.append(node)
            node = int(self.following[node, token])
            if node < 0:
                raise ValueError(f"token {token} is not allowed after {list(tokens[: len(nodes) - 1])}")
        return nodes

    def _lay(self, start: int, some: tuple[int, ...]) -> None:
        """A trie of some of the sequences, from a node on that is ROOT or new."""
        children: dict[int, dict[int, int]] = {start: {}}
        free = max(start + 1, len(self.allowed))
        for number in some:
            node, sequence = start, self._sequences[number]
            for token in sequence[:-1]:
                if token not in children[node]:
                    children[node][token] = free
                    children[free] = {}
                    free += 1
                node = children[node][token]
            children[node][sequence[-1]] = END
        more = free - len(self.allowed)
        self.allowed = np.pad(self.allowed, ((0, more), (0, 0)))
        self.following = np.pad(self.following, ((0, more), (0, 0)), constant_values=-1)
        for node, edges in children.items():
            self.allowed[node] = False
            for token, child in edges.items():
                self.allowed[node, token] = True
                self.following[node, token] = child
        self._starts[some] = start


def save_grammar(directory: Path, texts: list[str], end: str, *, by_means: bool = False) -> None:
    """by_means: whether an action may be said only where what the last observation told suffices for it."""
    content = {"texts": texts, "end": end} | ({"by_means": True} if by_means else {})
    (directory / FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")


def load_grammar(directory: Path, encode: Callable[[str], list[int]], vocabulary: int) -> Grammar | None:
    """The grammar beside a checkpoint, or None where the policy speaks freely. Raises MalformedInput."""
    path = directory / FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        texts = content["texts"]
        sequences = [encode(text + content["end"]) for text in texts]
        return Grammar(sequences, vocabulary, texts if content.get("by_means") else ())
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise MalformedInput(f"{path} is not a grammar file: {error}; restore the checkpoint") from error

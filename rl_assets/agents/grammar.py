"""A grammar as a trie over tokens: which token may come next when only some texts may be said.

Sampler, trainer and server mask with the same trie, so that sampled and trained logprobs are of one distribution.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from rl_assets.errors import MalformedInput

FILE = "grammar.json"
ROOT = 0


class Grammar:
    """allowed: bool (nodes, vocabulary). following: int32 (nodes, vocabulary), -1 where not allowed.

    Node 0 is the start. The last node is the end: it allows everything, since nothing follows it.
    """

    def __init__(self, sequences: Iterable[Sequence[int]], vocabulary: int) -> None:
        children: list[dict[int, int]] = [{}]
        for sequence in sequences:
            node = ROOT
            for token in sequence:
                if token not in children[node]:
                    children[node][token] = len(children)
                    children.append({})
                node = children[node][token]
        self.end = len(children)
        self.allowed = np.zeros((len(children) + 1, vocabulary), bool)
        self.following = np.full((len(children) + 1, vocabulary), -1, np.int32)
        for node, edges in enumerate(children):
            for token, child in edges.items():
                self.allowed[node, token] = True
                self.following[node, token] = child if children[child] else self.end
        self.allowed[self.end] = True

    def walk(self, tokens: Sequence[int]) -> list[int]:
        """The node before each token. Raises ValueError where a token is not allowed."""
        nodes, node = [], ROOT
        for token in tokens:
            nodes.append(node)
            node = int(self.following[node, token])
            if node < 0:
                raise ValueError(f"token {token} is not allowed after {list(tokens[: len(nodes) - 1])}")
        return nodes


def save_grammar(directory: Path, texts: list[str], end: str) -> None:
    (directory / FILE).write_text(json.dumps({"texts": texts, "end": end}, indent=1), encoding="utf-8")


def load_grammar(directory: Path, encode: Callable[[str], list[int]], vocabulary: int) -> Grammar | None:
    """The grammar beside a checkpoint, or None where the policy speaks freely. Raises MalformedInput."""
    path = directory / FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sequences = [encode(text + content["end"]) for text in content["texts"]]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise MalformedInput(f"{path} is not a grammar file: {error}; restore the checkpoint") from error
    return Grammar(sequences, vocabulary)

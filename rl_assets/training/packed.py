"""What ART has packed, as the trainer reads it: where an answer begins, what may be said, and who may look where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from art.preprocessing.pack import PackedTensors

from rl_assets.agents.grammar import ROOT, Grammar
from rl_assets.agents.prompt import Means

NOBODY = -1
"""The group of padding."""


def answer_starts(tensors: PackedTensors) -> torch.Tensor:
    """bool (sequences, length): the first token of each answer of the policy."""
    spoken, groups = tensors["assistant_mask"], tensors["group_ids"]
    starts = spoken.clone()
    starts[:, 1:] &= ~(spoken[:, :-1] & (groups[:, 1:] == groups[:, :-1]))
    return starts


def trajectories(tensors: PackedTensors) -> Iterator[tuple[int, np.ndarray]]:
    """The sequence and the places of the spoken tokens of each packed trajectory."""
    spoken, groups = tensors["assistant_mask"].numpy(), tensors["group_ids"].numpy()
    for row in range(len(spoken)):
        places = np.flatnonzero(spoken[row])
        for group in np.unique(groups[row, places]):
            yield row, places[groups[row, places] == group]


def grammar_nodes(
    tensors: PackedTensors, grammar: Grammar | None, means: Mapping[tuple[int, int], Means | None]
) -> torch.Tensor:
    """int64 (sequences, length): the grammar node before each spoken token (0 without a grammar), -1 elsewhere.

    means: what the speaker had, by sequence and place of an answer's first token.

    Raises ValueError where a recorded token is not one the grammar allows.
    """
    spoken = tensors["assistant_mask"].numpy()
    nodes = np.where(spoken, ROOT, -1).astype(np.int64)
    if grammar is None:
        return torch.from_numpy(nodes)
    tokens, starts = tensors["tokens"].numpy(), answer_starts(tensors).numpy()
    node = np.full(len(tokens), ROOT)
    for place in range(tokens.shape[1]):
        rows = np.flatnonzero(spoken[:, place])
        for row in rows[starts[rows, place]]:
            node[row] = grammar.start(means[row, place])
        nodes[rows, place] = node[rows]
        node[rows] = grammar.following[node[rows], tokens[rows, place]]
        if (node[rows] < 0).any():
            row = rows[node[rows] < 0][0]
            raise ValueError(f"packed sequence {row} holds a token at {place} that the grammar does not allow")
    return torch.from_numpy(nodes)


def tree_mask(group_ids: torch.Tensor, parent_ids: torch.Tensor) -> torch.Tensor | None:
    """bool (sequences, 1, length, length), True where a query may look: its own group or its group's shared prompt.

    None where every sequence holds one trajectory, which plain causal attention serves faster.
    """
    own = (group_ids != parent_ids) & (group_ids != NOBODY)
    lowest = group_ids.where(own, torch.iinfo(torch.int64).max).amin(1)
    if bool((lowest >= group_ids.where(own, torch.iinfo(torch.int64).min).amax(1)).all()):
        return None
    length = group_ids.shape[1]
    same = group_ids[:, :, None] == group_ids[:, None, :]
    prompt = parent_ids[:, :, None] == group_ids[:, None, :]
    causal = torch.ones((length, length), dtype=torch.bool).tril()
    return ((same | prompt) & causal)[:, None]

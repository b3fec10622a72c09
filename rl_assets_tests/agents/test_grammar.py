"""What a policy may say next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.agents.grammar import FILE, ROOT, Grammar, load_grammar, save_grammar
from rl_assets.errors import MalformedInput

VOCABULARY, END = 12, 11
languages = st.lists(st.lists(st.integers(0, END - 1), min_size=1, max_size=5).map(tuple), min_size=1, max_size=12)


def sentences(words: list[tuple[int, ...]]) -> set[tuple[int, ...]]:
    return {(*word, END) for word in words}


@given(languages, st.data())
def test_whatever_is_sampled_under_the_masks_is_a_sentence(words: list[tuple[int, ...]], data: st.DataObject) -> None:
    grammar = Grammar(sentences(words), VOCABULARY)
    node, said = ROOT, []
    while node != grammar.end:
        said.append(data.draw(st.sampled_from(np.flatnonzero(grammar.allowed[node]).tolist())))
        node = int(grammar.following[node, said[-1]])
    assert tuple(said) in sentences(words)


@given(languages)
def test_every_sentence_can_be_said_and_is_walked_node_by_node(words: list[tuple[int, ...]]) -> None:
    grammar = Grammar(sentences(words), VOCABULARY)
    for sentence in sentences(words):
        nodes = grammar.walk(sentence)
        assert nodes[0] == ROOT
        assert all(grammar.allowed[node, token] for node, token in zip(nodes, sentence, strict=True))


@given(languages, st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6))
def test_what_is_no_beginning_of_a_sentence_is_refused(words: list[tuple[int, ...]], tokens: list[int]) -> None:
    grammar = Grammar(sentences(words), VOCABULARY)
    if any(sentence[: len(tokens)] == tuple(tokens) for sentence in sentences(words)):
        grammar.walk(tokens)
    else:
        with pytest.raises(ValueError, match="is not allowed after"):
            grammar.walk(tokens)


def test_a_grammar_is_kept_beside_a_checkpoint(tmp_path: Path) -> None:
    def encode(text: str) -> list[int]:
        return [ord(c) - ord("a") for c in text]

    assert load_grammar(tmp_path, encode, VOCABULARY) is None
    save_grammar(tmp_path, ["ab", "ac"], "l")
    grammar = load_grammar(tmp_path, encode, VOCABULARY)
    assert grammar is not None
    assert np.flatnonzero(grammar.allowed[ROOT]).tolist() == [0]
    assert len(grammar.walk([0, 2, END])) == 3


@pytest.mark.parametrize("content", ["{", "[]", '{"texts": ["a"]}', '{"texts": 3, "end": "l"}'])
def test_a_damaged_grammar_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(MalformedInput, match="is not a grammar file"):
        load_grammar(tmp_path, lambda text: [0], VOCABULARY)

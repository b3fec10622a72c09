"""What a policy may say next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.agents.grammar import END as NODE_END
from rl_assets.agents.grammar import FILE, ROOT, Grammar, load_grammar, save_grammar
from rl_assets.agents.prompt import SIZES, Means, legal_actions, means_of, suffices
from rl_assets.errors import MalformedInput
from rl_assets.market.config import WorldConfig

VOCABULARY, END = 12, 11
languages = st.lists(st.lists(st.integers(0, END - 1), min_size=1, max_size=5).map(tuple), min_size=1, max_size=12)


def sentences(words: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return sorted({(*word, END) for word in words})


@given(languages, st.data())
def test_whatever_is_sampled_under_the_masks_is_a_sentence(words: list[tuple[int, ...]], data: st.DataObject) -> None:
    grammar = Grammar(sentences(words), VOCABULARY)
    node, said = ROOT, []
    while node != NODE_END:
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


MEANS = st.builds(Means, st.sampled_from((0, *SIZES)), st.frozensets(st.sampled_from(WorldConfig().instruments)))


@given(st.lists(MEANS, min_size=1, max_size=6))
def test_only_what_the_means_suffice_for_is_allowed_in_whatever_order_they_are_met(met: list[Means]) -> None:
    actions = legal_actions(WorldConfig())
    grammar = Grammar([(n // 9, 4 + n % 9, END) for n in range(len(actions))], 14, actions)
    for means in met:
        start = grammar.start(means)
        assert start == grammar.start(means)
        for n, action in enumerate(actions):
            sentence = (n // 9, 4 + n % 9, END)
            if suffices(means, action):
                assert grammar.walk(sentence, start)[0] == start
            else:
                with pytest.raises(ValueError, match="is not allowed after"):
                    grammar.walk(sentence, start)
        assert grammar.walk((0, 4, END))[0] == grammar.start(None) == ROOT


def test_means_are_read_from_what_an_agent_sees_and_from_nothing_else() -> None:
    seen = "t 3 cash 75\nA 0.50 +0.00 yes 50\nB 0.40 -0.01 flat\nP +0.5% +0.0% long 25\n@oak up A\n#den up B"
    assert means_of(seen) == Means(75, frozenset("AP"))
    assert means_of("t 3 cash 2500\nA 0.50 +0.00 flat") == Means(SIZES[-1], frozenset())
    assert means_of("What do you want to do?") is None
    assert means_of("") is None


def test_a_grammar_is_kept_beside_a_checkpoint(tmp_path: Path) -> None:
    def encode(text: str) -> list[int]:
        return [ord(c) - ord("a") for c in text]

    assert load_grammar(tmp_path, encode, VOCABULARY) is None
    save_grammar(tmp_path, ["ab", "ac"], "l")
    grammar = load_grammar(tmp_path, encode, VOCABULARY)
    assert grammar is not None
    assert np.flatnonzero(grammar.allowed[ROOT]).tolist() == [0]
    assert len(grammar.walk([0, 2, END])) == 3
    assert grammar.start(Means(0, frozenset())) == ROOT


@pytest.mark.parametrize("content", ["{", "[]", '{"texts": ["a"]}', '{"texts": 3, "end": "l"}'])
def test_a_damaged_grammar_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(MalformedInput, match="is not a grammar file"):
        load_grammar(tmp_path, lambda text: [0], VOCABULARY)

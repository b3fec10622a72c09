"""A cache that takes memory ahead holds what transformers' own would hold."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

from rl_assets.agents.cache import LEAST, growing_cache

CONFIG = LlamaConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2)


@given(st.lists(st.integers(1, LEAST), min_size=1, max_size=6), st.integers(0, 2**31))
def test_whatever_comes_is_held_in_order(lengths: list[int], seed: int):
    generator = torch.Generator().manual_seed(seed)
    ours, plain = growing_cache(CONFIG), DynamicCache(config=CONFIG)
    for length in lengths:
        for layer in range(2):
            keys, values = torch.rand((2, 3, 2, length, 4), generator=generator)
            told, known = ours.update(keys, values, layer), plain.update(keys, values, layer)
            assert all(torch.equal(a, b) for a, b in zip(told, known, strict=True))
        assert ours.get_seq_length() == plain.get_seq_length()


def test_layers_with_a_window_stay_as_they_are():
    config = MistralConfig(num_hidden_layers=1, sliding_window=16)
    assert [type(layer) for layer in growing_cache(config).layers] == [DynamicSlidingWindowLayer]

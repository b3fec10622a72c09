"""Keys and values of many growing conversations, in memory that is taken ahead of time."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

LEAST = 256
"""Tokens for which memory is taken at first."""
AHEAD = 1.5
"""How much more than is needed is taken when it runs out."""


class _Layer(DynamicLayer):
    """One layer. `DynamicLayer` copies all that it holds for each token that comes; this one copies what is new."""

    _rooms: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        length = held + key_states.shape[-2]
        if self._rooms is None or length > self._rooms[0].shape[-2]:
            self._rooms = (
                _room(self.keys, key_states, held, int(length * AHEAD)),
                _room(self.values, value_states, held, int(length * AHEAD)),
            )
        keys, values = self._rooms
        keys[..., held:length, :], values[..., held:length, :] = key_states, value_states
        self.keys, self.values = keys[..., :length, :], values[..., :length, :]
        return self.keys, self.values


def growing_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache for a model. Layers that look back a bounded way alone stay what transformers makes of them."""
    cache = DynamicCache(config=config)
    cache.layers = [_Layer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _room(held: torch.Tensor | None, like: torch.Tensor, length: int, wanted: int) -> torch.Tensor:
    """Memory for `wanted` tokens, with the `length` that are held in front."""
    room = like.new_empty((*like.shape[:-2], max(wanted, LEAST), like.shape[-1]))
    if length:
        assert held is not None
        room[..., :length, :] = held
    return room

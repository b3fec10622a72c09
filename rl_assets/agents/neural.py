"""A policy with tokens: a Hugging Face checkpoint that plays many episodes side by side on one growing cache.

Every token is drawn with its own uniform number, so that what an episode plays depends on its seed and not on which
other episodes share the batch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rl_assets.agents import prompt
from rl_assets.agents.cache import growing_cache
from rl_assets.agents.grammar import Grammar, load_grammar
from rl_assets.agents.reply import Reply
from rl_assets.episodes import Policy, Sampling
from rl_assets.errors import MalformedInput, MissingCheckpoint
from rl_assets.market.engine import Engine
from rl_assets.market.snapshot import Truth
from rl_assets.market.streams import uniform_draws
from rl_assets.registry.archive import bring

CACHE_BYTES = 2 << 30
"""Memory that the keys and values of all episodes side by side may take."""
MOST_TEXTS = 4096
"""Answers whose text is kept."""
EPISODE_TOKENS = 2048
"""Of one episode, as far as `most_at_once` reckons."""
_MARKS = ("␟system␟", "␟user␟", "␟assistant␟", "␟next␟")


class NeuralPolicy:
    """A checkpoint loaded for inference in float32 on the CPU. Raises MissingCheckpoint or MalformedInput."""

    def __init__(self, path: Path, *, max_tokens: int = 48) -> None:
        if not (path / "config.json").is_file():
            raise MissingCheckpoint(f"{path} holds no checkpoint; run `rl-assets verify` to see which step is missing")
        self.path = path
        self.max_tokens = max_tokens
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        self.model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32).eval()
        self.end_id = int(self.tokenizer.eos_token_id)
        self.grammar: Grammar | None = load_grammar(path, self.encode, self.model.config.vocab_size)
        self._glue = _glue(self.tokenizer)
        self._texts: dict[tuple[int, ...], str] = {}

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """What `encode` gives for each, in a fraction of the time: masks, types and offsets are not asked for."""
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def text_of(self, tokens: tuple[int, ...]) -> str:
        """An answer's text. The same few are given over and over."""
        known = self._texts.get(tokens)
        if known is None:
            known = self.tokenizer.decode(list(tokens), skip_special_tokens=False)
            if len(self._texts) < MOST_TEXTS:
                self._texts[tokens] = known
        return known

    def opening_of(self, systems: Sequence[str]) -> Callable[[str, int], str]:
        """The text of each episode's first turn, from its observation and its place."""
        before, between, after, _ = self._glue
        return lambda observation, row: before + systems[row] + between + observation + after

    def following(self, observation: str, row: int) -> str:
        """The text between an answer and the next: the new observation in the chat template's dress."""
        _, _, after, before_next = self._glue
        return before_next + observation + after


def most_at_once(path: Path) -> int:
    """How many episodes a checkpoint may play side by side within CACHE_BYTES, at least one."""
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    token = 2 * 4 * config.num_hidden_layers * heads * width
    return max(CACHE_BYTES // (token * EPISODE_TOKENS), 1)


class NeuralAgent:
    """A checkpoint as a player. `policy` names the model line and step that every episode is recorded under."""

    travels = True

    def __init__(self, path: Path, policy: Policy, *, temperature: float = 1.0, max_tokens: int = 48) -> None:
        self.policy = policy
        self.sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
        self._neural = NeuralPolicy(path, max_tokens=max_tokens)
        self.most_at_once = most_at_once(path)

    def __reduce__(self) -> tuple:
        """It travels by the place of its checkpoint, and is loaded once in each process that it comes to."""
        return _loaded, (self._neural.path, self.policy, self.sampling.temperature, self.sampling.max_tokens)

    def sit(self, engine: Engine, rows: np.ndarray, truths: list[Truth], seeds: list[tuple[int, ...]]) -> NeuralTable:
        systems = [prompt.system_message(engine.config)] * len(rows)
        draws = uniform_draws(seeds, engine.config.ticks * self._neural.max_tokens)
        return NeuralTable(Conversations(self._neural, systems, self.sampling.temperature), draws, engine.config.ticks)


@lru_cache(maxsize=2)  # candidate and champion
def _loaded(path: Path, policy: Policy, temperature: float, max_tokens: int) -> NeuralAgent:
    bring(path)
    return NeuralAgent(path, policy, temperature=temperature, max_tokens=max_tokens)


class NeuralTable:
    """Conversations in play, with the draws of every tick."""

    def __init__(self, conversations: Conversations, draws: np.ndarray, ticks: int) -> None:
        self._conversations = conversations
        self._draws = draws.reshape(len(draws), ticks, -1)
        self._tick = 0

    def reply(self, observations: Sequence[str]) -> list[Reply]:
        replies = self._conversations.reply(observations, self._draws[:, self._tick])
        self._tick += 1
        return replies


class Conversations:
    """Episodes in play with one policy. Call `reply` once per tick with one observation per episode."""

    def __init__(
        self, policy: NeuralPolicy, systems: Sequence[str], temperature: float, max_tokens: int | None = None
    ) -> None:
        self.policy = policy
        self.max_tokens = max_tokens or policy.max_tokens
        self.systems = list(systems)
        self.temperature = temperature
        n = len(self.systems)
        self._cache = growing_cache(policy.model.config)
        self._mask = torch.zeros((n, 0), dtype=torch.long)
        self._length = torch.zeros(n, dtype=torch.long)
        self._unfed: list[list[int]] = [[] for _ in range(n)]
        self._started = False

    def reply(self, observations: Sequence[str], draws: np.ndarray) -> list[Reply]:
        """One reply per episode. draws: float64 (episodes, at least max_tokens), uniform in [0, 1)."""
        render = self.policy.following if self._started else self.policy.opening_of(self.systems)
        told = self.policy.encode_all([render(text, row) for row, text in enumerate(observations)])
        return self.continue_with(told, observations, draws)

    @torch.inference_mode()
    def continue_with(
        self, segments: Sequence[list[int]], observations: Sequence[str], draws: np.ndarray
    ) -> list[Reply]:
        """One reply per episode to what each is told in tokens, after what it has heard and said already.

        observations: the texts of what is told last, which decide what a grammar allows.
        """
        began = time.perf_counter()
        policy, n = self.policy, len(segments)
        self._started = True
        logits = self._feed([self._unfed[row] + segment for row, segment in enumerate(segments)])
        prompt_tokens = self._length.tolist()
        node = np.zeros(n, int)
        if policy.grammar is not None:
            node[:] = [policy.grammar.start(prompt.means_of(text)) for text in observations]
        said: list[list[int]] = [[] for _ in range(n)]
        logprobs: list[list[float]] = [[] for _ in range(n)]
        fed = [0] * n
        live = np.arange(n)
        for position in range(self.max_tokens):
            tokens, chosen = self._draw(logits[torch.from_numpy(live)], node[live], draws[live, position])
            for row, token, logprob in zip(live, tokens, chosen, strict=True):
                said[row].append(int(token))
                logprobs[row].append(round(float(logprob), 6) + 0.0)
            ended = tokens == policy.end_id
            if policy.grammar is not None:
                node[live] = policy.grammar.following[node[live], tokens]
                ended |= self._close_forced(live, node, said, logprobs)
            live = live[~ended]
            if not len(live) or position + 1 == self.max_tokens:
                break
            going = set(live.tolist())
            logits = self._feed([[said[row][-1]] if row in going else [] for row in range(n)])
            for row in going:
                fed[row] += 1
        self._unfed = [
            tokens[done:] if tokens[-1] == policy.end_id else [*tokens[done:], policy.end_id]
            for tokens, done in zip(said, fed, strict=True)
        ]
        share = round(1000 * (time.perf_counter() - began) / max(n, 1))
        return [
            Reply(self._text(said[row]), tuple(said[row]), tuple(logprobs[row]), prompt_tokens[row], share)
            for row in range(n)
        ]

    def _close_forced(
        self, live: np.ndarray, node: np.ndarray, said: list[list[int]], logprobs: list[list[float]]
    ) -> np.ndarray:
        """Say the end token where the grammar leaves nothing else: it has probability one and needs no pass."""
        grammar, end = self.policy.grammar, self.policy.end_id
        assert grammar is not None
        forced = (grammar.allowed[node[live]].sum(axis=1) == 1) & grammar.allowed[node[live], end]
        for row in live[forced]:
            said[row].append(end)
            logprobs[row].append(0.0)
        return forced

    def _text(self, tokens: list[int]) -> str:
        if tokens and tokens[-1] == self.policy.end_id:
            tokens = tokens[:-1]
        return self.policy.text_of(tuple(tokens))

    def _feed(self, segments: list[list[int]]) -> torch.Tensor:
        """Append one left-padded segment per episode to the cache. Returns the last logits, float32 (episodes, V)."""
        width = max(len(segment) for segment in segments)
        pad = self.policy.end_id
        ids = torch.tensor([[pad] * (width - len(s)) + s for s in segments])
        fresh = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in segments])
        position = self._length[:, None] + fresh.cumsum(1) - 1
        self._mask = torch.cat([self._mask, fresh], dim=1)
        self._length = self._length + fresh.sum(1)
        out = self.policy.model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=position.clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()

    def _draw(self, logits: torch.Tensor, node: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.policy.grammar is not None:
            allowed = torch.from_numpy(self.policy.grammar.allowed[node])
            logits = logits.masked_fill(~allowed, float("-inf"))
        if self.temperature == 0:
            tokens = logits.argmax(-1).numpy()
            return tokens, np.zeros(len(tokens))
        logprobs = torch.log_softmax(logits / self.temperature, dim=-1).double().numpy()
        cumulative = np.exp(logprobs).cumsum(axis=1)
        tokens = (cumulative < (draws * cumulative[:, -1])[:, None]).sum(axis=1)
        tokens = np.minimum(tokens, logits.shape[1] - 1)
        return tokens, logprobs[np.arange(len(tokens)), tokens]


def _glue(tokenizer) -> tuple[str, str, str, str]:
    """The chat template's text around a system message and two turns."""
    system, user, assistant, following = _MARKS
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    first = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    messages += [{"role": "assistant", "content": assistant}, {"role": "user", "content": following}]
    second = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, rest = first.split(system)
    between, after = rest.split(user)
    if not second.startswith(first + assistant):
        raise MalformedInput("the chat template rewrites earlier turns; use one that only appends")
    next_before, next_after = second[len(first + assistant) :].split(following)
    end = tokenizer.eos_token
    if next_after != after or not next_before.startswith(end):
        raise MalformedInput(f"the chat template must end a turn with {end!r} and open each answer alike")
    return before, between, after, next_before[len(end) :]


def use_all_cores() -> None:
    """Let torch use every core once; asked for by whoever owns the process."""
    torch.set_num_threads(os.cpu_count() or 1)

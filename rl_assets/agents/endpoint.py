"""A model behind an OpenAI-compatible API as an agent. This loads openai: import it where it is used."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from openai import AsyncOpenAI, OpenAIError
from openai.types.chat import ChatCompletion

from rl_assets import outbound
from rl_assets.agents.remote import Begin, NoAnswer
from rl_assets.agents.reply import Reply
from rl_assets.episodes import Policy, Sampling
from rl_assets.text import whole

LONGEST_WAIT_SECONDS = 120.0
"""Before one more attempt, at most: what the client grants to a server that says when to come again."""
LONGEST_REASON = 200
"""Characters of a server's own words that are passed on."""
UNKNOWN_TOKEN = -1
"""Token id where the server gives a logprob for a text alone."""
ANSWER_TOKENS = 256
RETRIES = 2
"""At a market elsewhere, whose tick does not wait for long."""
_ID = "token_id:"


class EndpointAgent:
    """Chat completions of one model. Requests are repeated on 408, 409, 429, 5xx and lost connections, `retries` times.

    base_url: with its version, such as http://127.0.0.1:8000/v1; one that must not be called is a ConfigurationError
    (`rl_assets.outbound`). timeout: seconds per request. Logprobs are recorded
    where the server gives them; parameters that it refuses by name and that it can do without are left out.
    cut_off_counts: whether an answer that is longer than max_tokens is played as far as it goes, or is none.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        temperature: float = 1.0,
        max_tokens: int = 256,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 4,
        cut_off_counts: bool = False,
    ) -> None:
        outbound.check_url(base_url, "the address of the model's API")
        where = urlsplit(base_url)
        self.policy = Policy(f"{model}@{where.netloc}{where.path.rstrip('/').removesuffix('/v1')}")
        self.sampling: Sampling | None = Sampling(temperature=temperature, max_tokens=max_tokens)
        self.concurrency = concurrency
        self._base_url, self._model, self._api_key = base_url, model, api_key
        self._temperature, self._timeout, self._retries = temperature, timeout, retries
        self._cut_off_counts = cut_off_counts
        self._optional: dict[str, Any] = {"logprobs": True, "seed": None, "max_tokens": max_tokens}

    @classmethod
    def at_market(
        cls, base_url: str, model: str, *, api_key: str | None, temperature: float, timeout: float
    ) -> EndpointAgent:
        """A model that plays a market elsewhere: what it says is played as far as it goes."""
        return cls(
            base_url,
            model,
            api_key=api_key,
            temperature=temperature,
            max_tokens=ANSWER_TOKENS,
            timeout=timeout,
            retries=RETRIES,
            cut_off_counts=True,
        )

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Begin]:
        async with self.client() as client:
            yield lambda system, seed: _Conversation(self, client, system, seed)

    def client(self) -> AsyncOpenAI:
        """What requests are sent with; to be closed by the caller."""
        return AsyncOpenAI(
            base_url=self._base_url,
            api_key=self._api_key or "none",
            timeout=self._timeout,
            max_retries=self._retries,
            http_client=outbound.async_client(),
        )

    async def answer(self, client: AsyncOpenAI, messages: list[Any], seed: int) -> Reply:
        """One completion. Raises NoAnswer with the reason, without the key."""
        while True:
            known: dict[str, Any] = {name: seed if name == "seed" else value for name, value in self._optional.items()}
            try:
                # A server that sends a byte now and then never times out by itself.
                async with asyncio.timeout((self._retries + 1) * (self._timeout + LONGEST_WAIT_SECONDS)):
                    response = await client.chat.completions.create(
                        messages=messages, model=self._model, temperature=self._temperature, **known
                    )
            except (OpenAIError, TimeoutError, ValueError) as error:
                if not self._goes_without(error):
                    raise NoAnswer(self._reason(error)) from error
            else:
                return _read(response, self._cut_off_counts)

    def _goes_without(self, error: Exception) -> bool:
        """Leave out what the server refuses by name; False where it refuses something else."""
        said = str(error)
        if getattr(error, "status_code", None) not in (400, 422):
            return False
        for name in ("logprobs", "seed"):
            if name in said and name in self._optional:
                del self._optional[name]
                return True
        if "max_completion_tokens" in said and "max_tokens" in self._optional:
            self._optional["max_completion_tokens"] = self._optional.pop("max_tokens")
            return True
        return False

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return "no answer in time"
        cause = error.__cause__
        said = str(error) if cause is None or getattr(error, "status_code", None) else f"{error} {cause}"
        if self._api_key:
            said = said.replace(self._api_key, "***")
        return " ".join(said.split())[:LONGEST_REASON] or type(error).__name__


class _Conversation:
    def __init__(self, agent: EndpointAgent, client: AsyncOpenAI, system: str, seed: int) -> None:
        self._agent, self._client, self._seed = agent, client, seed
        self._messages: list[Any] = [{"role": "system", "content": system}]

    async def reply(self, observation: str) -> Reply:
        self._messages.append({"role": "user", "content": observation})
        # One seed for all ticks would draw the same numbers at each of them.
        seed = (self._seed + len(self._messages)) % 2**31
        reply = await self._agent.answer(self._client, self._messages, seed)
        self._messages.append({"role": "assistant", "content": reply.text})
        return reply


def _read(response: object, cut_off_counts: bool) -> Reply:
    """The answer within a response, which the client has not checked. Raises NoAnswer for one that is not whole."""
    choices = response.choices if isinstance(response, ChatCompletion) else None
    if not choices or choices[0].message is None:
        raise NoAnswer("what came back is not a chat completion; is this an OpenAI-compatible API?")
    choice = choices[0]
    refusal = getattr(choice.message, "refusal", None)
    if refusal or choice.finish_reason == "content_filter":
        said = " ".join(str(refusal or "its content filter").split())[:LONGEST_REASON]
        raise NoAnswer(f"the model refused: {said}")
    if choice.finish_reason == "length" and not cut_off_counts:
        raise NoAnswer("the answer was cut off; allow more with --max-tokens")
    content = choice.message.content
    if content is not None and not isinstance(content, str):
        raise NoAnswer("the answer is not text")
    tokens, logprobs = _logprobs(choice)
    used = getattr(response, "usage", None)
    count = getattr(used, "prompt_tokens", None)
    return Reply(whole(content or ""), tokens, logprobs, count if isinstance(count, int) and 0 <= count < 2**31 else 0)


def _logprobs(choice: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Token ids and logprobs (nats) of an answer, both empty where the server gives none that can be used."""
    content = getattr(getattr(choice, "logprobs", None), "content", None)
    ids, logprobs = [], []
    for entry in content if isinstance(content, list) else []:
        token, logprob = getattr(entry, "token", None), getattr(entry, "logprob", None)
        if not isinstance(token, str) or not isinstance(logprob, (int, float)) or not math.isfinite(logprob):
            return (), ()
        named = token.removeprefix(_ID)
        is_id = token.startswith(_ID) and named.isascii() and named.isdigit() and len(named) < 10
        ids.append(int(named) if is_id else UNKNOWN_TOKEN)
        logprobs.append(float(logprob))
    return tuple(ids), tuple(logprobs)

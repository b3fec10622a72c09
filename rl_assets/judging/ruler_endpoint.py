"""The two ways to RULER's judge: a server at a named address, and the providers that litellm knows.

A named server speaks OpenAI's API, and OpenAI's SDK is what asks it: litellm around it would take as long again. Which
parameters a model takes, what it costs and what an error means, litellm knows for both.

Prompts, answers and keys are never logged.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import openai
import orjson

from rl_assets import outbound
from rl_assets.settings import RulerSettings

Messages = list[dict[str, str]]
BYTES_PER_TOKEN = 1.6
"""Prompts of numbers and JSON have at least so many: an estimate on the careful side, for what is not counted."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a judge said. tokens_in, tokens_out: as the server counted them, or estimated where it does not count."""

    content: str | None
    finish_reason: str | None
    refusal: str | None
    tokens_in: int
    tokens_out: int


class Endpoint(Protocol):
    """Where a judge is asked, in one event loop."""

    async def ask(self, messages: Messages, most: int, optional: Mapping[str, Any]) -> Completion:
        """A completion of at most so many tokens. optional: what not every server knows. Raises litellm's errors, which
        are OpenAI's, whatever the way; only those that came of a server's answer have `litellm_response_headers`."""
        ...

    async def close(self) -> None:
        """To be called before the event loop ends."""
        ...


def endpoint_of(settings: RulerSettings) -> Endpoint:
    return Server(settings) if settings.base_url else Provider(settings)


def litellm() -> Any:
    """litellm, imported on first use (it takes seconds), without its notes on calls and errors, which quote them."""
    import litellm as found

    warnings.filterwarnings("ignore", "Pydantic serializer warnings", UserWarning)
    found.suppress_debug_info = True
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
    return found


def prices(settings: RulerSettings) -> tuple[float, float] | None:
    """Dollars per token of prompt and answer, without discounts; None where nobody knows them."""
    if settings.input_price is not None and settings.output_price is not None:
        return settings.input_price / 1e6, settings.output_price / 1e6
    costs = litellm().model_cost
    found = costs.get(settings.model) or costs.get(settings.model.partition("/")[2]) or {}
    of_prompt, of_answer = found.get("input_cost_per_token"), found.get("output_cost_per_token")
    return None if of_prompt is None or of_answer is None else (of_prompt, of_answer)


class Server:
    """A server at an address that somebody named, which is connected to only where it may be."""

    def __init__(self, settings: RulerSettings) -> None:
        self._litellm = litellm()
        self._model = settings.model.removeprefix("openai/")
        self._limits: dict[int, dict[str, Any]] = {}
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url,
            # Given, so that no key of the environment goes there.
            api_key=settings.api_key or "none",
            max_retries=0,
            timeout=float(settings.timeout_seconds),
            http_client=outbound.async_client(),
        )

    async def ask(self, messages: Messages, most: int, optional: Mapping[str, Any]) -> Completion:
        body = {"model": self._model, "messages": messages, **self._limit(most), **optional}
        try:
            # Not by `chat.completions.create`, which looks into every message for files to send.
            response = await self._client.post("/chat/completions", cast_to=httpx.Response, body=body)
        except openai.APIError as error:
            raise self._litellm.exception_type(self._model, error, "openai") from error
        return _read(response, messages)

    def _limit(self, most: int) -> dict[str, Any]:
        """How the model is told how long its answer may be: some refuse the usual name."""
        if most not in self._limits:
            self._limits[most] = {
                name: value
                for name, value in self._litellm.get_optional_params(
                    self._model, custom_llm_provider="openai", max_tokens=most, drop_params=True
                ).items()
                if name in ("max_tokens", "max_completion_tokens")
            }
        return self._limits[most]

    async def close(self) -> None:
        await self._client.close()


class Provider:
    """The provider that a model's name stands for. Only it is called, so that its address needs no watching."""

    def __init__(self, settings: RulerSettings) -> None:
        self._litellm, self._settings = litellm(), settings

    async def ask(self, messages: Messages, most: int, optional: Mapping[str, Any]) -> Completion:
        settings = self._settings
        response = await self._litellm.acompletion(
            model=settings.model,
            messages=messages,
            max_tokens=most,
            timeout=settings.timeout_seconds,
            num_retries=0,
            max_retries=0,
            drop_params=True,
            caching=False,
            **({"api_key": settings.api_key} if settings.api_key else {}),
            **optional,
        )
        choice = response.choices[0] if response.choices else None
        return Completion(
            content=choice and choice.message.content,
            finish_reason=choice and choice.finish_reason,
            refusal=choice and (getattr(choice.message, "provider_specific_fields", None) or {}).get("refusal"),
            tokens_in=response.usage.prompt_tokens,
            tokens_out=response.usage.completion_tokens,
        )

    async def close(self) -> None:
        """Let litellm's own worker come to its end before the event loop that it runs in does."""
        from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

        last = asyncio.Event()

        async def come() -> None:
            last.set()

        GLOBAL_LOGGING_WORKER.ensure_initialized_and_enqueue(come())
        await last.wait()
        await GLOBAL_LOGGING_WORKER.stop()


def estimated_tokens(*texts: str) -> int:
    """How many tokens some texts have, at most."""
    return int(sum(len(text.encode()) for text in texts) / BYTES_PER_TOKEN)


def _read(response: httpx.Response, messages: Messages) -> Completion:
    """Raises openai.APIResponseValidationError where a server's answer is no completion."""
    try:
        found = orjson.loads(response.content)
        choice: dict[str, Any] = found["choices"][0] if found["choices"] else {"message": {}}
        message, used = choice["message"], found.get("usage") or {}
        content = _text(message.get("content"))
        counted = [int(used.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        if min(counted) < 0 or not any(counted):
            counted = [estimated_tokens(*(asked["content"] for asked in messages)), estimated_tokens(content or "")]
        return Completion(
            content=content,
            finish_reason=_text(choice.get("finish_reason")),
            refusal=_text(message.get("refusal")),
            tokens_in=counted[0],
            tokens_out=counted[1],
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise openai.APIResponseValidationError(response, None) from error


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None

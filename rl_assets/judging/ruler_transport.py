"""Sending requests to RULER's judge: at which pace, how often again, and what a refusal means.

What a server says of an error is not passed on, for some quote keys and prompts in it; its status is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from rl_assets import outbound
from rl_assets.errors import ConfigurationError
from rl_assets.judging.ruler_answer import JudgeFailure
from rl_assets.judging.ruler_endpoint import Completion, endpoint_of, litellm
from rl_assets.judging.ruler_prompt import ANSWER_SCHEMA
from rl_assets.settings import RulerSettings

ATTEMPTS = 4
"""How often a request is sent before its judge counts as out of reach."""
BACKOFF_SECONDS = 1.0
"""Before the second attempt; doubled before each further one, and spread by up to a half."""
MOST_WAIT_SECONDS = 60.0
"""A judge that asks for a longer wait is out of reach for now."""
GIVE_UP_AFTER = 3
"""Requests in a row that had no answer in any of their attempts; then no more are sent."""
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


@dataclass(slots=True)
class Sent:
    """What became of one request. attempts: sent in all. unknown: those of which nobody can say whether they were
    billed. tokens_in, tokens_out: as the server counted them."""

    attempts: int = 0
    unknown: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


class Transport:
    """Sends to the judge of `settings`, in one event loop."""

    def __init__(self, settings: RulerSettings) -> None:
        self.settings = settings
        self._litellm = litellm()
        self._endpoint = endpoint_of(settings)
        self._next_start = 0.0
        self._unanswered = 0
        # What a server may not know and can do without; what it refuses is left out from then on.
        self._optional: dict[str, Any] = {"response_format": ANSWER_SCHEMA, "temperature": 0.0}

    @property
    def longest_seconds(self) -> float:
        """How long a request may take, with all its attempts and waits, the wait for its turn among them."""
        per_minute = self.settings.requests_per_minute
        turn = 60.0 * self.settings.concurrency / per_minute if per_minute else 0.0
        return ATTEMPTS * (self.settings.timeout_seconds + MOST_WAIT_SECONDS + turn) + 300

    async def close(self) -> None:
        """To be called before the event loop ends."""
        await self._endpoint.close()

    async def send(
        self, messages: list[dict[str, str]], most: int, sent: Sent, afford: Callable[[], None]
    ) -> Completion:
        """A completion of at most so many tokens; `sent` is kept up to date on the way. afford: called before an
        attempt that comes on top of one that may be billed; raises where there is no money for both.

        Raises JudgeFailure once no further attempt is worth it, ConfigurationError where no request can succeed.
        """
        if self._unanswered >= GIVE_UP_AFTER:
            raise JudgeFailure("transport", "the judge did not answer earlier requests of this run")
        attempt = 0
        while True:
            await self._turn()
            unknown = sent.unknown
            sent.attempts += 1
            sent.unknown += 1
            optional = dict(self._optional)
            try:
                async with asyncio.timeout(self.settings.timeout_seconds + 5):
                    completion = await self._endpoint.ask(messages, most, optional)
            except (openai.APIError, TimeoutError) as error:
                status, headers = _status(error)
                # A status means that the request was turned down, and so is not billed.
                sent.unknown -= status is not None or _cause(error, httpx.ConnectError) is not None
                refused = next((name for name in optional if status in (400, 422) and name in str(error)), None)
                if refused is not None:
                    self._optional.pop(refused, None)
                    continue
                self._refuse(error, status)
                attempt += 1
                await self._wait(attempt, status, headers)
                if sent.unknown > unknown:
                    afford()
            else:
                sent.unknown -= 1
                sent.tokens_in += completion.tokens_in
                sent.tokens_out += completion.tokens_out
                self._unanswered = 0
                return completion

    def _refuse(self, error: Exception, status: int | None) -> None:
        """Raise for what no repetition mends."""
        model = self.settings.model
        if (forbidden := _cause(error, outbound.Forbidden)) is not None:
            raise ConfigurationError(f"RULER_JUDGE_BASE_URL: {forbidden}")
        if status == 401:
            raise ConfigurationError("the judge does not accept the key (status 401); correct RULER_JUDGE_API_KEY")
        if status == 402:
            raise ConfigurationError("the judge's account has no credit left (status 402); top it up")
        if status == 404:
            raise ConfigurationError(
                f"the judge knows no model {model} at that address (status 404); correct RULER_JUDGE_MODEL or "
                "RULER_JUDGE_BASE_URL"
            )
        # 403 is what some say of a key, and others of a prompt: an agent's words must not end the run for everybody.
        if status == 403 or isinstance(error, self._litellm.ContentPolicyViolationError):
            raise JudgeFailure("refusal", f"the judge refused the prompt, or the key lacks a right (status {status})")
        if isinstance(error, self._litellm.ContextWindowExceededError):
            raise JudgeFailure("too_long", "the prompt is too long for the judge; lower RULER_JUDGE_PROMPT_TOKENS")
        if status is not None and status not in _PASSING:
            raise JudgeFailure("transport", f"the judge turned the request down with status {status}")

    async def _turn(self) -> None:
        """Wait until the next request may start."""
        per_minute = self.settings.requests_per_minute
        now = asyncio.get_running_loop().time()
        start = max(now, self._next_start)
        self._next_start = start + (60.0 / per_minute if per_minute else 0.0)
        await asyncio.sleep(start - now)

    async def _wait(self, attempt: int, status: int | None, headers: httpx.Headers) -> None:
        """Wait before the next attempt; a judge that says for how long is left alone by everybody."""
        asked = _retry_after(headers)
        if attempt >= ATTEMPTS or (asked or 0.0) > MOST_WAIT_SECONDS:
            self._unanswered += 1
            last = f"status {status}" if status is not None else "no answer"
            raise JudgeFailure("transport", f"the judge is out of reach ({last} after {attempt} attempts)")
        if asked is not None:
            self._next_start = max(self._next_start, asyncio.get_running_loop().time() + asked)
        else:
            await asyncio.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))


def _status(error: Exception) -> tuple[int | None, httpx.Headers]:
    """Status and headers that the server sent. litellm gives a status to everything; only with headers is it one."""
    headers = getattr(error, "litellm_response_headers", None)
    if headers is None:
        return None, httpx.Headers()
    return getattr(error, "status_code", None), httpx.Headers(headers)


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """What of a kind is behind an error, if anything; a httpx.ConnectError says that nothing was sent."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds, where the server says so in seconds."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None

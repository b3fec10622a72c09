"""Asking RULER's judge: one question in, checked scores out; from the cache, or through litellm within the budget.

Prompts, answers and keys are never logged. What a provider says of an error is not passed on either, for providers
quote keys and prompts in it; its status is.
"""

from __future__ import annotations

import asyncio
import logging
import random
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import openai
import psycopg

from rl_assets.episodes import digest
from rl_assets.errors import ConfigurationError
from rl_assets.judging.ruler_answer import JudgeFailure, Scored, as_answer, check_scores, read_answer
from rl_assets.judging.ruler_prompt import ANSWER_SCHEMA, Question
from rl_assets.settings import RulerSettings
from rl_assets.store.judge_calls import CachedAnswer, Exhausted, Limits, cached_answers, reserve, settle

T = TypeVar("T")
ATTEMPTS = 4
"""How often a request is sent before its judge counts as out of reach."""
BACKOFF_SECONDS = 1.0
"""Before the second attempt; doubled before each further one, and spread by up to a half."""
MOST_WAIT_SECONDS = 60.0
"""A judge that asks for a longer wait is out of reach for now."""
GIVE_UP_AFTER = 3
"""Requests in a row that had no answer in any of their attempts; then no more are sent in this run."""
BYTES_PER_TOKEN = 1.6
"""Prompts of numbers and JSON have at least so many: an estimate on the careful side, for what is reserved."""
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LIMITS = {
    "window_tokens": "RULER_JUDGE_TOKENS_PER_WINDOW",
    "window_dollars": "RULER_JUDGE_DOLLARS_PER_WINDOW",
    "day_tokens": "RULER_JUDGE_TOKENS_PER_DAY",
    "day_dollars": "RULER_JUDGE_DOLLARS_PER_DAY",
}


@dataclass(slots=True)
class Usage:
    """What asking took. requests: sent, each attempt counted. cached: questions that were answered before. repairs:
    questions asked a second time. dollars: of the answers whose price is known, as billed without discounts."""

    requests: int = 0
    cached: int = 0
    repairs: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    dollars: float = 0.0


@dataclass(slots=True)
class _Sent:
    """What one reserved request has used. unknown: attempts of which nobody can say whether they were billed."""

    unknown: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


class JudgeClient:
    """Asks the judge of `settings`, in one event loop. While it asks, `conn` is used in a thread of its own and by
    nobody else, so that no request waits for what another one stores."""

    def __init__(self, settings: RulerSettings, conn: psycopg.Connection) -> None:
        """Raises ConfigurationError if there is no model, or dollars are limited and no price is known."""
        if not settings.model:
            raise ConfigurationError("the judge `ruler` has no model; set RULER_JUDGE_MODEL")
        self.settings, self.conn, self.usage = settings, conn, Usage()
        self._litellm = _quiet_litellm()
        self._prices = _prices(self._litellm.model_cost, settings)
        self._limits = Limits(
            settings.tokens_per_window, settings.dollars_per_window, settings.tokens_per_day, settings.dollars_per_day
        )
        if self._prices is None and (settings.dollars_per_window, settings.dollars_per_day) != (None, None):
            raise ConfigurationError(
                f"dollars are limited, but the price of {settings.model} is not known; set RULER_JUDGE_INPUT_PRICE and "
                "RULER_JUDGE_OUTPUT_PRICE in dollars per million tokens"
            )
        self._database = ThreadPoolExecutor(1, "judge-calls")
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._next_start = 0.0
        self._unanswered = 0
        # What a server may not know and can do without; what it refuses is left out from then on.
        self._optional: dict[str, Any] = {"response_format": ANSWER_SCHEMA, "temperature": 0.0}

    def key(self, question: Question) -> str:
        """The hash of what the answer depends on, and of nothing else."""
        return digest([self.settings.model, self.settings.base_url, list(question.messages)])

    async def ask(self, window_id: str, questions: Sequence[Question]) -> list[dict[str, Scored] | JudgeFailure]:
        """Scores by the ids of each question, or why it has none; all are asked at once.

        An answer that cannot be used is asked for once more. Raises ConfigurationError where no question can succeed.
        """
        keys = [self.key(question) for question in questions]
        known = await self._stored(cached_answers, keys)
        self.usage.cached += len(known)

        async def one(key: str, question: Question) -> dict[str, Scored]:
            if key in known:
                return check_scores(known[key].answer, question.ids)
            return await self._asked(window_id, key, question)

        asked = zip(keys, questions, strict=True)
        found = await asyncio.gather(*(one(key, question) for key, question in asked), return_exceptions=True)
        answers: list[dict[str, Scored] | JudgeFailure] = []
        for answer in found:
            if isinstance(answer, BaseException) and not isinstance(answer, JudgeFailure):
                raise answer
            answers.append(answer)
        return answers

    async def _asked(self, window_id: str, key: str, question: Question) -> dict[str, Scored]:
        most = self.settings.answer_tokens
        try:
            return await self._paid(window_id, key, question, list(question.messages), most)
        except JudgeFailure as failure:
            if failure.failure not in ("refusal", "truncated", "parse", "ids", "scores"):
                raise
            self.usage.repairs += 1
            most *= 2 if failure.failure == "truncated" else 1
            system, user = question.messages
            # Said in the same message: some servers refuse two messages of a user in a row.
            again = f"{user['content']}\n\nAn earlier answer was not accepted: {failure}. Answer in the form asked for."
            return await self._paid(window_id, key, question, [system, {**user, "content": again}], most)

    async def close(self) -> None:
        """Let litellm's own worker come to its end before the event loop that it runs in does."""
        self._database.shutdown()
        from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

        last = asyncio.Event()

        async def come() -> None:
            last.set()

        GLOBAL_LOGGING_WORKER.ensure_initialized_and_enqueue(come())
        await last.wait()
        await GLOBAL_LOGGING_WORKER.stop()

    async def _paid(
        self, window_id: str, key: str, question: Question, messages: list[dict[str, str]], most: int
    ) -> dict[str, Scored]:
        """One request: reserved, sent, settled, and its answer kept if it can be used."""
        async with self._slots:
            if self._unanswered >= GIVE_UP_AFTER:
                raise JudgeFailure("transport", "the judge did not answer earlier requests of this run")
            estimate = int(sum(len(message["content"].encode()) for message in messages) / BYTES_PER_TOKEN)
            reservation = await self._reserve(window_id, estimate, most)
            sent, outcome, keep = _Sent(), "aborted", None
            try:
                response = await self._send(messages, most, sent)
                scores = _read(response, question)
                outcome = "ok"
                dollars = self._dollars(sent.tokens_in, sent.tokens_out)
                keep = CachedAnswer(key, as_answer(scores), sent.tokens_in, sent.tokens_out, dollars)
                return scores
            except JudgeFailure as failure:
                outcome = failure.failure
                raise
            finally:
                tokens_in = sent.tokens_in + sent.unknown * estimate
                dollars = self._dollars(tokens_in, sent.tokens_out)
                await self._stored(settle, reservation, outcome, tokens_in + sent.tokens_out, dollars, keep)
                self.usage.tokens_in += tokens_in
                self.usage.tokens_out += sent.tokens_out
                self.usage.dollars += dollars or 0.0

    async def _reserve(self, window_id: str, tokens_in: int, tokens_out: int) -> int:
        dollars = self._dollars(tokens_in, tokens_out)
        expire = ATTEMPTS * (self.settings.timeout_seconds + MOST_WAIT_SECONDS) + 300
        got = await self._stored(
            reserve, window_id, self.settings.model, tokens_in + tokens_out, dollars, self._limits, expire
        )
        if isinstance(got, Exhausted):
            where = f"window {window_id}" if got.limit.startswith("window") else "this UTC day"
            unit = got.limit.split("_")[1]
            raise JudgeFailure(
                "budget",
                f"the judge's budget of {where} is used up: {got.spent:,.6g} of {got.allowed:,.6g} {unit} are spent or "
                f"reserved and a request may take {got.asked:,.6g}; raise {_LIMITS[got.limit]} or judge later",
            )
        return got

    async def _stored(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._database, function, self.conn, *args)

    def _dollars(self, tokens_in: int, tokens_out: int) -> float | None:
        return self._prices and self._prices[0] * tokens_in + self._prices[1] * tokens_out

    async def _send(self, messages: list[dict[str, str]], most: int, sent: _Sent) -> Any:
        """The response of litellm. Raises JudgeFailure once no further attempt is worth it."""
        attempt = 0
        while True:
            await self._turn()
            self.usage.requests += 1
            sent.unknown += 1
            try:
                async with asyncio.timeout(self.settings.timeout_seconds + 5):
                    response = await self._litellm.acompletion(**self._request(messages, most))
            except (openai.APIError, TimeoutError) as error:
                status, headers = _status(error)
                # A status means that the request was turned down, and so is not billed.
                sent.unknown -= status is not None or _unsent(error)
                refused = next((name for name in self._optional if _names(error, status, name)), None)
                if refused:
                    del self._optional[refused]
                    continue
                self._refuse(error, status)
                attempt += 1
                await self._wait(attempt, status, headers)
            else:
                # A server that does not count is taken by the estimate.
                sent.unknown -= response.usage.total_tokens > 0
                sent.tokens_in += response.usage.prompt_tokens
                sent.tokens_out += response.usage.completion_tokens
                self._unanswered = 0
                return response

    def _request(self, messages: list[dict[str, str]], most: int) -> dict[str, Any]:
        settings = self.settings
        where: dict[str, Any] = {"api_key": settings.api_key} if settings.api_key else {}
        if settings.base_url:
            # Named, so that neither a key of the environment goes there, nor a model's name is taken for a provider's.
            where = {
                "custom_llm_provider": "openai",
                "api_base": settings.base_url,
                "api_key": settings.api_key or "none",
            }
        return {
            "model": settings.model,
            "messages": messages,
            "max_tokens": most,
            "timeout": settings.timeout_seconds,
            "num_retries": 0,
            "max_retries": 0,
            "drop_params": True,
            "caching": False,
            **self._optional,
            **where,
        }

    def _refuse(self, error: Exception, status: int | None) -> None:
        """Raise for what no repetition mends."""
        model = self.settings.model
        if status in (401, 403):
            raise ConfigurationError(
                f"the judge does not accept the key (status {status}); correct RULER_JUDGE_API_KEY"
            )
        if status == 402:
            raise ConfigurationError("the judge's account has no credit left (status 402); top it up")
        if status == 404:
            raise ConfigurationError(
                f"the judge knows no model {model} at that address (status 404); correct RULER_JUDGE_MODEL or "
                "RULER_JUDGE_BASE_URL"
            )
        if isinstance(error, self._litellm.ContentPolicyViolationError):
            raise JudgeFailure("refusal", "the judge's content filter refused the prompt")
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


def _quiet_litellm() -> Any:
    """litellm, imported on first use (it takes seconds), without its notes on calls and errors, which quote them."""
    import litellm

    warnings.filterwarnings("ignore", "Pydantic serializer warnings", UserWarning)
    litellm.suppress_debug_info = True
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
    return litellm


def _prices(known: dict[str, Any], settings: RulerSettings) -> tuple[float, float] | None:
    """Dollars per token of prompt and answer."""
    if settings.input_price is not None and settings.output_price is not None:
        return settings.input_price / 1e6, settings.output_price / 1e6
    found = known.get(settings.model) or known.get(settings.model.partition("/")[2]) or {}
    prices = found.get("input_cost_per_token"), found.get("output_cost_per_token")
    return None if None in prices else prices  # pyright: ignore[reportReturnType]


def _read(response: Any, question: Question) -> dict[str, Scored]:
    if not response.choices:
        raise JudgeFailure("parse", "the answer holds no choice")
    choice = response.choices[0]
    refusal = (getattr(choice.message, "provider_specific_fields", None) or {}).get("refusal")
    return read_answer(choice.message.content, choice.finish_reason, refusal, question.ids)


def _status(error: Exception) -> tuple[int | None, httpx.Headers]:
    """Status and headers that the server sent. litellm gives a status to everything; only with headers is it one."""
    headers = getattr(error, "litellm_response_headers", None)
    if headers is None:
        return None, httpx.Headers()
    return getattr(error, "status_code", None), httpx.Headers(headers)


def _unsent(error: BaseException | None) -> bool:
    """Whether the connection could not even be made."""
    while error is not None:
        if isinstance(error, httpx.ConnectError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _names(error: Exception, status: int | None, parameter: str) -> bool:
    return status in (400, 422) and parameter in str(error)


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds, where the server says so in seconds."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None

"""Asking RULER's judge: one question in, checked scores out; from the cache, or within the budget for money."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from rl_assets import outbound
from rl_assets.episodes import digest
from rl_assets.errors import ConfigurationError
from rl_assets.judging.ruler_answer import JudgeFailure, Scored, as_answer, check_scores, read_answer
from rl_assets.judging.ruler_endpoint import estimated_tokens, prices
from rl_assets.judging.ruler_prompt import Question
from rl_assets.judging.ruler_transport import Sent, Transport
from rl_assets.settings import RulerSettings
from rl_assets.store.judge_calls import CachedAnswer, Exhausted, Limits, cached_answers, reserve, settle

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


def check(settings: RulerSettings) -> tuple[float, float] | None:
    """Dollars per token of prompt and answer, None where nobody knows them.

    Raises ConfigurationError if there is no model, its address must not be called, or dollars are limited and no price
    is known.
    """
    if not settings.model:
        raise ConfigurationError("the judge `ruler` has no model; set RULER_JUDGE_MODEL")
    if settings.base_url:
        outbound.check_url(settings.base_url, "RULER_JUDGE_BASE_URL")
    known = prices(settings)
    if known is None and (settings.dollars_per_window, settings.dollars_per_day) != (None, None):
        raise ConfigurationError(
            f"dollars are limited, but the price of {settings.model} is not known; set RULER_JUDGE_INPUT_PRICE and "
            "RULER_JUDGE_OUTPUT_PRICE in dollars per million tokens"
        )
    return known


class JudgeClient:
    """Asks the judge of `settings`, in one event loop, which waits for what is stored: that takes less than a
    millisecond, and handing it to a thread takes more."""

    def __init__(self, settings: RulerSettings, conn: psycopg.Connection) -> None:
        """Raises as `check` does."""
        self._prices = check(settings)
        self.settings, self.conn, self.usage = settings, conn, Usage()
        self._transport = Transport(settings)
        self._limits = Limits(
            settings.tokens_per_window, settings.dollars_per_window, settings.tokens_per_day, settings.dollars_per_day
        )
        self._slots = asyncio.Semaphore(settings.concurrency)

    def key(self, question: Question) -> str:
        """The hash of what the answer depends on, and of nothing else."""
        return digest([self.settings.model, self.settings.base_url, list(question.messages)])

    async def ask(self, window_id: str, questions: Sequence[Question]) -> list[dict[str, Scored] | JudgeFailure]:
        """Scores by the ids of each question, or why it has none; all are asked at once.

        An answer that cannot be used is asked for once more. Raises ConfigurationError where no question can succeed.
        """
        keys = [self.key(question) for question in questions]
        known = cached_answers(self.conn, keys)
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
        """To be called before the event loop ends."""
        await self._transport.close()

    async def _paid(
        self, window_id: str, key: str, question: Question, messages: list[dict[str, str]], most: int
    ) -> dict[str, Scored]:
        """One request: reserved, sent, settled, and its answer kept if it can be used."""
        async with self._slots:
            estimate = estimated_tokens(*(message["content"] for message in messages))
            reserved = [self._reserve(window_id, estimate, most)]
            sent, outcome, keep = Sent(), "aborted", None
            try:
                said = await self._transport.send(
                    messages, most, sent, lambda: reserved.append(self._reserve(window_id, estimate, most))
                )
                scores = read_answer(said.content, said.finish_reason, said.refusal, question.ids)
                outcome = "ok"
                dollars = self._dollars(sent.tokens_in, sent.tokens_out)
                keep = CachedAnswer(key, as_answer(scores), sent.tokens_in, sent.tokens_out, dollars)
                return scores
            except JudgeFailure as failure:
                outcome = failure.failure
                raise
            finally:
                # What nobody can say anything about counts as if it had been answered at length.
                tokens_in, tokens_out = sent.tokens_in + sent.unknown * estimate, sent.tokens_out + sent.unknown * most
                dollars = self._dollars(tokens_in, tokens_out)
                settle(self.conn, reserved[0], outcome, tokens_in + tokens_out, dollars, keep)
                for more in reserved[1:]:
                    settle(self.conn, more, outcome, 0, self._dollars(0, 0))
                self.usage.requests += sent.attempts
                self.usage.tokens_in += tokens_in
                self.usage.tokens_out += tokens_out
                self.usage.dollars += dollars or 0.0

    def _reserve(self, window_id: str, tokens_in: int, tokens_out: int) -> int:
        dollars = self._dollars(tokens_in, tokens_out)
        tokens, expire = tokens_in + tokens_out, self._transport.longest_seconds
        got = reserve(self.conn, window_id, self.settings.model, tokens, dollars, self._limits, expire)
        if isinstance(got, Exhausted):
            where = f"window {window_id}" if got.limit.startswith("window") else "this UTC day"
            unit = got.limit.split("_")[1]
            later = (
                ", which counts what all judges took of it" if got.limit.startswith("window") else " or judge tomorrow"
            )
            raise JudgeFailure(
                "budget",
                f"the judge's budget of {where} is used up: {got.spent:,.6g} of {got.allowed:,.6g} {unit} are spent or "
                f"reserved and a request may take {got.asked:,.6g}; raise {_LIMITS[got.limit]}{later}",
            )
        return got

    def _dollars(self, tokens_in: int, tokens_out: int) -> float | None:
        return self._prices and self._prices[0] * tokens_in + self._prices[1] * tokens_out

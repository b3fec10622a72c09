"""Reading what RULER's judge answered: whole, by id, or not at all.

An answer counts only if it scores exactly the ids that were asked for, each with a finite number in [0, 1]. Everything
else is a `JudgeFailure` that says of which class it is; no score is ever guessed, clipped or filled in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rl_assets.judging.ruler_view import clean

FailureClass = Literal[
    "transport", "refusal", "truncated", "parse", "ids", "scores", "low_agreement", "canary", "too_long", "budget"
]
EXPLANATION_CHARACTERS = 600
_REFUSALS = re.compile(r"\s*(sorry\b|i(['’]m| am) (very )?(sorry|unable)|i (can|won)['’]?t\b|i cannot\b)", re.I)


class JudgeFailure(Exception):
    """A group could not be judged. failure: the class; the message is one sentence without any prompt or answer."""

    def __init__(self, failure: FailureClass, sentence: str) -> None:
        super().__init__(sentence)
        self.failure: FailureClass = failure


@dataclass(frozen=True, slots=True)
class Scored:
    """What the judge said of one id. score: in [0, 1]. explanation: cleaned and clipped; hostile text all the same."""

    score: float
    explanation: str


def read_answer(
    content: str | None, finish_reason: str | None, refusal: str | None, ids: Collection[str]
) -> dict[str, Scored]:
    """The scores of an answer by id. Raises JudgeFailure."""
    if refusal or finish_reason == "content_filter":
        raise JudgeFailure("refusal", "the judge refused to answer")
    if finish_reason == "length":
        raise JudgeFailure("truncated", "the answer was cut off before its end")
    text = content or ""
    found = list(_answers(text))
    if not found:
        if _REFUSALS.match(text):
            raise JudgeFailure("refusal", "the judge refused to answer")
        raise JudgeFailure("parse", "the answer holds no JSON object with a list of `scores`")
    if len(found) > 1:
        raise JudgeFailure("parse", f"the answer holds {len(found)} lists of scores where one was asked for")
    return check_scores(found[0], ids)


def check_scores(answer: dict[str, Any], ids: Collection[str]) -> dict[str, Scored]:
    """The scores of a parsed answer by id. Raises JudgeFailure of class `parse`, `ids` or `scores`."""
    scores: dict[str, Scored] = {}
    for entry in answer["scores"]:
        if not isinstance(entry, dict):
            raise JudgeFailure("parse", "an entry of `scores` is not an object")
        name, score, said = entry.get("trajectory_id"), entry.get("score"), entry.get("explanation", "")
        if not isinstance(name, str) or name not in ids:
            raise JudgeFailure("ids", "the answer scores an id that was not asked for")
        if name in scores:
            raise JudgeFailure("ids", f"the answer scores {name} more than once")
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            raise JudgeFailure("scores", f"the score of {name} is not a number")
        if not 0.0 <= score <= 1.0:  # NaN is not
            raise JudgeFailure("scores", f"the score of {name} is not between 0 and 1")
        text = clean(said if isinstance(said, str) else "")
        scores[name] = Scored(float(score), text[:EXPLANATION_CHARACTERS])
    missing = [name for name in ids if name not in scores]
    if missing:
        raise JudgeFailure("ids", f"the answer lacks a score for {', '.join(missing)}")
    return scores


def as_answer(scores: dict[str, Scored]) -> dict[str, Any]:
    """What `check_scores` reads, as plain JSON."""
    return {
        "scores": [
            {"trajectory_id": name, "explanation": one.explanation, "score": one.score} for name, one in scores.items()
        ]
    }


def _answers(text: str) -> Iterator[dict[str, Any]]:
    """Every outermost JSON object in a text that has a list of `scores`, prose and code fences around it or not."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except RecursionError:
            return  # and so it would be from every brace within
        except ValueError:
            end = place + 1
        else:
            if isinstance(value.get("scores"), list):
                yield value
        place = text.find("{", end)

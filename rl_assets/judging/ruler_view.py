"""What RULER's judge may see of an episode: cleaned text, what siblings share said once, long episodes digested.

Nothing here shows a reward, an equity, a credit, a PnL, a latent value, a policy or who played: the judge is to rate
decisions, not their luck. Agents' text is hostile: it arrives here raw and leaves as plain, escaped characters.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rl_assets.episodes import Episode, Step

CLIPS = (2000, 600, 200, 80)
"""Characters to which a text is clipped, one after the other, until a prompt fits."""
RECORD = 200
"""Characters of what is on record of a step, which is clipped no shorter: an agent's words alone could tell of another
action than the one that was carried out."""
ENDS = (8, 4, 2, 1)
"""Turns that are kept at either end of an episode, where clipping was not enough."""
_PNL = re.compile(
    r"((?:\bp\s*[&/]\s*l\b|pnl|profits?(?:\s+and\s+loss(?:es)?)?\b)[^\n\d]{0,20}?)"
    r"[-+−]?\$?[-+−]?\d[\d,.]*(?:e[-+]?\d+)?%?",
    re.I,
)
_PNL_KEY = re.compile(r"pnl|profit|p&l|reward|equity|correctness", re.I)
_INVISIBLE = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Fillers and variation selectors, which Unicode calls letters and marks."""
_MARKUP = re.compile("[&<>]")
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def clean(text: str) -> str:
    """Text without control, zero-width, direction, tag, private and other invisible characters, and in one form of
    Unicode (NFKC). Line feeds stay, tabs become spaces."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    plain = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")
    return unicodedata.normalize("NFKC", "".join(c for c in plain if c == "\n" or not _invisible(c)))


def _invisible(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE or bool(_BLANK.match(character))


def shown(text: str) -> str:
    """Text as it may stand in a prompt: cleaned, without amounts of PnL, and with no `<`, `>` or `&` of its own."""
    text = clean(text)
    folded = text.lower()
    if any(sign in folded for sign in ("&", "/", "pnl", "profit")):
        text = _PNL.sub(r"\1[hidden]", text)
    return text.translate(_ESCAPES) if _MARKUP.search(text) else text


@dataclass(frozen=True, slots=True)
class View:
    """What the members of a group share, and what is each one's own, in their order: lines that are ready for a prompt.
    digested: how much was left out, from 0 (nothing) on."""

    shared: str
    own: tuple[str, ...]
    digested: int

    @property
    def size(self) -> int:
        """Bytes of UTF-8, of which a token takes about as many in every script, and not as many characters."""
        return sum(len(text.encode()) for text in (self.shared, *self.own))


@dataclass(frozen=True, slots=True)
class _Turn:
    """A step, or the instructions: what was seen, what the agent said then beside its action, which action is on record
    and what became of it, and whether that was just to hold."""

    label: str
    seen: str
    said: str = ""
    did: str = ""
    held: bool = False


@dataclass(frozen=True, slots=True)
class _Cut:
    """One way to leave things out. fold: whether runs of holding become one line; clip: the most characters of a text;
    ends: turns kept at the beginning and at the end."""

    fold: bool = False
    clip: int | None = None
    ends: int | None = None

    def render(self, turns: Sequence[_Turn]) -> str:
        kept, middle, last = list(turns), 0, []
        if self.ends is not None and len(turns) > 2 * self.ends:
            kept, middle, last = list(turns[: self.ends]), len(turns) - 2 * self.ends, list(turns[-self.ends :])
        parts = self._fold(kept) + ([f"[{middle} steps left out]"] if middle else []) + self._fold(last)
        return "\n".join(parts)

    def _fold(self, turns: list[_Turn]) -> list[str]:
        parts = []
        for held, run in groupby(turns, key=lambda turn: turn.held):
            same = list(run)
            if self.fold and held and len(same) > 1:
                parts.append(f"{same[0].label} to {same[-1].label}\ndid| held each time")
            else:
                parts += [self._turn(turn) for turn in same]
        return parts

    def _turn(self, turn: _Turn) -> str:
        texts = (("saw| ", turn.seen, 0), ("said| ", turn.said, 0), ("did| ", turn.did, RECORD))
        return "\n".join(
            [turn.label, *(line for mark, text, least in texts for line in _marked(mark, self._clipped(text, least)))]
        )

    def _clipped(self, text: str, least: int) -> str:
        if self.clip is None or len(text) <= max(self.clip, least):
            return text
        most = max(self.clip, least)
        head, tail = most * 3 // 4, most // 4
        return f"{text[:head]} [{len(text) - head - tail} characters left out] {text[-tail:]}"


_CUTS = (
    _Cut(),
    _Cut(fold=True),
    *(_Cut(fold=True, clip=clip) for clip in CLIPS),
    *(_Cut(fold=True, clip=CLIPS[-1], ends=ends) for ends in ENDS),
)


def view(episodes: Sequence[Episode], *, room: int, rationale: bool = True) -> View | None:
    """The view of a group that has at most so many bytes, with as little left out as that takes; None if nothing does
    it.

    All members are cut alike, so that none looks better for being short. Without `rationale`, a step shows the action
    that is on record and nothing else that the agent wrote.
    """
    shared, own = _parted(episodes, rationale)
    for level, cut in enumerate(_CUTS):
        found = View(cut.render(shared), tuple(cut.render(turns) for turns in own), level)
        if found.size <= room:
            return found
    return None


def _parted(episodes: Sequence[Episode], rationale: bool) -> tuple[list[_Turn], list[list[_Turn]]]:
    """Lines that all members saw at the same step, and each member's turns without them."""
    shared: list[_Turn] = []
    own: list[list[_Turn]] = [[] for _ in episodes]
    common, rests = _common([shown(episode.system) for episode in episodes])
    if common:
        shared.append(_Turn("instructions", common))
    for turns, rest in zip(own, rests, strict=True):
        if rest:
            turns.append(_Turn("instructions", rest))
    for number in range(max((len(episode.steps) for episode in episodes), default=0)):
        steps = [episode.steps[number] if number < len(episode.steps) else None for episode in episodes]
        common, rests = _common([shown(step.observation) if step else "" for step in steps])
        label = f"step {number + 1}"
        if common:
            shared.append(_Turn(label, common))
        for turns, step, rest in zip(own, steps, rests, strict=True):
            if step is not None:
                held = step.valid and step.action.get("do") == "hold"
                turns.append(_Turn(label, rest, _said(step) if rationale else "", _did(step), held))
    return shared, own


def _common(texts: Sequence[str]) -> tuple[str, list[str]]:
    """The lines that stand once in every text, in order of the first, and what is left of each text without them."""
    split = [text.split("\n") if text else [] for text in texts]
    common = set(split[0]).intersection(*split[1:])
    for lines in split:
        if len(set(lines)) < len(lines):
            common -= {line for line, times in Counter(lines).items() if times > 1}
    rests = ["\n".join(line for line in lines if line not in common) for lines in split]
    return "\n".join(line for line in split[0] if line in common), rests


def _said(step: Step) -> str:
    """The response, unless it is the action on record and nothing beside it."""
    try:
        only_acts = json.loads(step.response) == step.action
    except (ValueError, RecursionError):
        only_acts = False
    return "" if only_acts else shown(step.response)


def _did(step: Step) -> str:
    """What is on record, in lines that nothing an agent wrote can begin."""
    action = _without_pnl(step.action)
    lines = [json.dumps(action, sort_keys=True, ensure_ascii=False)] if action or step.valid else []
    if not step.valid:
        lines.append(f"not carried out: {' '.join((step.error or 'no reason given').split())}")
    return "\n".join(" ".join(shown(line).split("\n")) for line in lines)


def _without_pnl(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_pnl(one) for key, one in value.items() if not _PNL_KEY.search(str(key))}
    return [_without_pnl(one) for one in value] if isinstance(value, list) else value


def _marked(mark: str, text: str) -> list[str]:
    """Every line says by its mark whose it is, so that no text can pass for a heading or for another's."""
    return [mark + line for line in text.split("\n")] if text else []

"""Reading reports as a browser does, hostile text to put into them, and episodes to report on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html.parser import HTMLParser

from rl_assets.agents.runner import Assignment, ReferenceAgent, play
from rl_assets.episodes import Episode, Policy
from rl_assets.market.config import WorldConfig
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import World
from rl_assets.places import Place

HOSTILE = (
    "<script>alert(1)</script>\"><img src=x onerror=alert(1)></style></title><iframe src='https://example.com'>",
    "{{ 1337 * 7919 }}{% include 'base.html' %} $\\frac{1}{0}$ $unclosed_{ &amp; &lt;b&gt;",
    "_\u202etxt.exe\u202c \u05e9\u05dc\u05d5\u05dd \u200b\x00\x1b[31m \ud800 \n\t",
    "y" * 100_000,
)
_VOID = {"meta", "img", "br", "hr"}
# fmt: off
_HARMLESS = {
    "html", "head", "title", "style", "body", "meta", "img", "h1", "h2", "h3", "p", "b", "code",
    "div", "dl", "dt", "dd", "figure", "figcaption", "table", "caption", "thead", "tbody", "tr",
    "th", "td", "span", "ul", "li", "details", "summary", "a",
}
# fmt: on


class Page(HTMLParser):
    """A parsed page. `text` is what a reader sees; `faults` is what must not be in a report."""

    def __init__(self, path: Place) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.faults, self.images = "", [], []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        if self._open:
            self.faults.append(f"never closed: {self._open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _HARMLESS:
            self.faults.append(f"tag {tag}")
        for name, value in attrs:
            loads = name in ("src", "href", "srcset", "data", "action", "style")
            beside = tag == "a" and value in ("episodes.csv", "episodes.parquet")
            inside = (value or "").startswith("data:image/png;base64,")
            if name.startswith("on") or (loads and not beside and not inside):
                self.faults.append(f"attribute {name}={value!r}")
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> closes something else")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            if "url(" in data or "@import" in data:
                self.faults.append("the style sheet loads something")
            return
        self.text += data


def worlds(count: int, split: str = "gate", first: int = 800_000) -> list[World]:
    """Small worlds, four to a market day."""
    return [generate(split, first + place, WorldConfig(ticks=6, markets=2)) for place in range(count)]


def played(
    on: Sequence[World], rules: dict[str, Policy], siblings: int = 1, *, is_evaluation: bool = True
) -> list[Episode]:
    """Each rule plays every world under the name of a policy."""
    assignments = []
    for name, policy in rules.items():
        agent = ReferenceAgent(name)
        agent.policy = policy
        assignments.append(Assignment(agent, str(policy), siblings))
    numbers = itertools.count()
    return play(
        assignments,
        on,
        seed=5,
        new_ids=lambda n: [f"episode-{next(numbers):06d}" for _ in range(n)],
        is_evaluation=is_evaluation,
    )

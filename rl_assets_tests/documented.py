"""The code in the docs: its blocks, and the commands in them that a reader would type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rl_assets.settings import REPOSITORY

PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")])
LANGUAGES = {"python", "yaml", "json", "sql"}
"""Of fenced blocks that hold no commands."""
DRAWINGS = {
    ("README.md", "benchmark_snapshots ──"),
    ("agents.md", "t 3 cash 900"),
    ("concepts.md", "snapshots ──"),
    ("operations.md", "data/postgres/"),
}
"""Page and beginning of indented blocks that hold no commands. Every other one is a shell's, except a JSON object."""


@dataclass(frozen=True)
class Block:
    """Lines of code that stand together. language: of a fence; empty for an indented block and for a bare fence."""

    page: str
    language: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def is_shell(self) -> bool:
        drawn = any(page == self.page and self.text.lstrip().startswith(begins) for page, begins in DRAWINGS)
        return self.language not in LANGUAGES and not drawn and not self.text.startswith("{")

    def commands(self) -> list[str]:
        """What a reader would type, without the comments behind it; nothing of what is no shell's."""
        if not self.is_shell:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        return [command for line in lines if (command := re.split(r"(?:^|\s+)#", line)[0].strip())]


def blocks(page: Path) -> Iterator[Block]:
    """Every block of code of a page, in order."""
    language, lines = None, list[str]()
    for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("```"):
            if language is None:
                language = line.removeprefix("```").strip()
            else:
                yield Block(page.name, language, tuple(lines))
                language, lines = None, []
        elif language is not None:
            lines.append(line)
        elif line.startswith("    "):
            lines.append(line[4:])
        elif lines:
            yield Block(page.name, "", tuple(lines))
            lines = []


def of_page(name: str, language: str) -> list[Block]:
    """The blocks of a page of docs/ in a language."""
    return [block for block in blocks(REPOSITORY / "docs" / name) if block.language == language]


def typed(page: Path) -> list[str]:
    """Every command of a page."""
    return [command for block in blocks(page) for command in block.commands()]

"""Turning templates into self-contained HTML files. Whatever is put into a template is escaped, without exception."""

from __future__ import annotations

import base64
import math
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rl_assets.store.lake import whole_file

LONGEST_TEXT = 2_000
"""Characters of a text that are shown; the files beside a report hold all of it."""
_KEPT = frozenset("\n\t")


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG with the sentence that says what it shows, for readers who cannot see it."""

    png: bytes
    says: str

    @property
    def source(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Render a template of this package to a file, whole or not at all, and return its path.

    Raises RlAssetsError where the disk refuses.
    """
    text = _environment().get_template(template).render(values)
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def plain(value: object) -> str:
    """Text as it may stand in a page: control, bidi and lone surrogate characters made visible, and not endless."""
    text = str(value)
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]}… ({len(text)} characters)"
    return "".join(c if c in _KEPT or unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in text)


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.{digits}f}".replace("-", "−")


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rl_assets.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else plain(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["source"] = lambda picture: Markup(picture.source)  # Base64 alone: nothing to escape.
    return environment

"""Turning templates into self-contained HTML files. Whatever is put into a template is escaped, without exception."""

from __future__ import annotations

import base64
import math
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2
from markupsafe import Markup

from rl_assets.errors import MalformedInput
from rl_assets.places import Place, whole_file

LONGEST_TEXT, LONGEST_NAME = 2_000, 80
"""Characters of a text or a name that are shown; the files beside a report hold all of it."""
_KEPT = frozenset("\n\t")


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG with the sentence that says what it shows, for readers who cannot see it."""

    png: bytes
    says: str

    @property
    def source(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def render(template: str, **values: Any) -> str:
    """The page that a template of this package makes of the values. Raises MalformedInput where a number is NaN."""
    return _environment().get_template(template).render(values)


def write_page(path: Place, page: str) -> Place:
    """Write a page, whole or not at all, and return its place. Raises RlAssetsError where the disk or store refuses."""
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def plain(value: object, longest: int = LONGEST_TEXT) -> str:
    """Text as it may stand in a page: control, bidi and lone surrogate characters made visible, and not endless."""
    text = str(value)
    if len(text) > longest:
        text = f"{text[:longest]}… ({len(text)} characters)"
    return "".join(c if c in _KEPT or unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in text)


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table; a dash where there is none. Raises MalformedInput for NaN and infinities."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        raise MalformedInput(f"a number of the report is {value}; leave out what was not measured")
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
    environment.filters["name"] = lambda value: plain(value, LONGEST_NAME)
    environment.filters["source"] = lambda picture: Markup(picture.source)  # Base64 alone: nothing to escape.
    return environment

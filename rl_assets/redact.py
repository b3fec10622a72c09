"""Secrets out of text: what goes into logs, alerts and messages passes through here.

Secrets come from the environment alone, so their values are known, and wherever one turns up it is replaced. Passwords
in URLs and the tokens of a few well-known shapes go too, since a server or driver may quote some that are not ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

HIDDEN = "***"
SHORTEST = 6
"""Characters of a value that counts as a secret: a shorter one is part of ordinary words."""
_NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS|WEBHOOK)$", re.IGNORECASE)
_PASSWORD = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^\s/@:]*:)[^\s@/]+(?=@)", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"(?P<before>\b(?:password|passwd|api[_-]?key|secret)\s*[=:]\s*['\"]?)[^\s'\",;&]+", re.IGNORECASE
)
_BEARER = re.compile(r"(?P<before>\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_SHAPES = re.compile(r"\b(?:sk-[A-Za-z0-9_-]{12,}|wandb_v1_[A-Za-z0-9_]{8,}|gh[pousr]_[A-Za-z0-9]{16,})")


def redact(text: str, env: Mapping[str, str] | None = None) -> str:
    """The text, with `***` in the place of each secret."""
    for secret in secrets(os.environ if env is None else env):
        text = text.replace(secret, HIDDEN)
    for pattern in (_PASSWORD, _ASSIGNED, _BEARER):
        text = pattern.sub(rf"\g<before>{HIDDEN}", text)
    return _SHAPES.sub(HIDDEN, text)


def secrets(env: Mapping[str, str]) -> list[str]:
    """The secret values of an environment, the longest first: a short one may be part of a long one."""
    found = set()
    for name, value in env.items():
        value = value.strip()
        if _NAMES.search(name):
            found.add(value)
        elif "://" in value and "@" in value:
            found |= _in_url(value)
    return sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True)


def _in_url(url: str) -> set[str]:
    try:
        password = urlsplit(url).password
    except ValueError:
        return set()
    return {password, unquote(password)} if password else set()

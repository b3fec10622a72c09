"""What a look at one thing found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """remedy: what to do about it, empty where all is well."""

    area: str
    check: str
    state: State
    detail: str
    remedy: str = ""

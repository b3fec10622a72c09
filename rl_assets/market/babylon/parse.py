"""From the bytes of a snapshot file to its checked parts, or one sentence on what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from rl_assets.errors import MalformedInput
from rl_assets.market.babylon.consistency import faults
from rl_assets.market.babylon.format import VERSION, BabylonFile
from rl_assets.text import printable


def parse_babylon(text: bytes, where: str) -> BabylonFile:
    """A file from its bytes. Raises MalformedInput that names the file, the path within it and the fault."""
    try:
        raw = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise MalformedInput(f"{where} is not JSON: {printable(str(error), 240)}; export the snapshot again") from error
    try:
        file = BabylonFile.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        fault = f"{_path(first['loc'])}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    else:
        fault = next(faults(file), None)
        if fault is None:
            return file
    raise MalformedInput(f"{where} is not a Babylon snapshot {VERSION}: {printable(str(fault), 240)}; export it again")


def _path(location: Sequence[int | str]) -> str:
    """`ticks[3].state.tick` from pydantic's location, without the names of event types that it puts into it."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif ":" not in part:
            text += f".{part}"
    return text.removeprefix(".") or "the file"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is there twice in one object")
    return made

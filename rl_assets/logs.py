"""Log records for a collector: one JSON object per line, in the file that `RL_ASSETS_JSON_LOG` names (`-` for stderr).
What Dagster and the commands print for people stays as it is.

An object has `time` (ISO 8601, UTC), `level`, `logger` and `message`, and where they are known `run_id`, `job`, `asset`
(the step), `partition`, `batch`, `event` (Dagster's name of it) and `error` (the traceback). None holds a secret.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rl_assets.errors import ConfigurationError
from rl_assets.redact import redact

VARIABLE = "RL_ASSETS_JSON_LOG"
PACKAGE = "rl_assets"
PARTITION = "dagster/partition"
RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
BATCH = "batch-"
"""How the key of a batch's partition begins."""


def log_file(env: Mapping[str, str] | None = None) -> str | None:
    """Where records go: a path, `-` for stderr, or None. Raises ConfigurationError."""
    asked = ((os.environ if env is None else env).get(VARIABLE) or "").strip()
    if asked and asked != "-" and not os.access(os.path.dirname(os.path.abspath(asked)), os.W_OK):
        raise ConfigurationError(f"{VARIABLE}={asked!r} is in no directory that can be written to; create it first")
    return asked or None


class JsonFormatter(logging.Formatter):
    """One line of JSON per record."""

    def format(self, record: logging.LogRecord) -> str:
        dagster: Mapping[str, Any] = getattr(record, "dagster_meta", None) or {}
        event = dagster.get("dagster_event")
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": str(dagster.get("orig_message") or record.getMessage()),
        }
        partition = partition_of(dagster.get("job_tags") or {})
        known = {
            "run_id": dagster.get("run_id"),
            "job": dagster.get("job_name"),
            "asset": dagster.get("step_key"),
            "partition": partition,
            "batch": partition if partition and partition.startswith(BATCH) else None,
            "event": event.event_type_value if event is not None else None,
            "error": self._error(record, event),
        }
        line |= {name: value for name, value in known.items() if value is not None}
        return json.dumps({name: redact(str(value)) for name, value in line.items()}, ensure_ascii=False)

    def _error(self, record: logging.LogRecord, event: Any) -> str | None:
        failed = getattr(getattr(event, "event_specific_data", None), "error", None)
        if failed is not None:
            return str(failed.to_string())
        return self.formatException(record.exc_info) if record.exc_info else None


class JsonLines(logging.Handler):
    """Appends each record in one write, so that lines of several processes do not mix; does nothing unless asked to.

    `dagster.yaml` gives it to Dagster, which hands it the records of runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._file = log_file()
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        if self._file is None:
            return
        try:
            line = f"{self.format(record)}\n"
            if self._file == "-":
                sys.stderr.write(line)
                return
            with open(self._file, "ab", buffering=0) as file:
                file.write(line.encode("utf-8", "replace"))
        except Exception:  # a log that cannot be written must not end what it tells of
            self.handleError(record)


class _Outside(JsonLines):
    """Leaves out what is logged while a run captures it: Dagster hands that on itself, and knows its run."""

    def emit(self, record: logging.LogRecord) -> None:
        captured = logging.getLogger(PACKAGE).handlers
        if not any(type(each).__name__ == "DagsterLogHandler" for each in captured):
            super().emit(record)


def install() -> None:
    """Write what this package logs outside runs. Every entry point calls it; more than once is as good as once."""
    logger = logging.getLogger(PACKAGE)
    if log_file() is not None and not any(isinstance(each, _Outside) for each in logger.handlers):
        logger.addHandler(_Outside())
        logger.setLevel(logging.INFO)


def partition_of(tags: Mapping[str, str]) -> str | None:
    """The partition of a run by its tags, or the first and the last of a range; None where it has none."""
    if PARTITION in tags:
        return tags[PARTITION]
    start, end = (tags.get(name) for name in (RANGE_START, RANGE_END))
    return f"{start}...{end}" if start is not None and end is not None else None

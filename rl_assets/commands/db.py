"""`rl-assets db`: the embedded database, or the one that DATABASE_URL names."""

from __future__ import annotations

import click


@click.group()
def db() -> None:
    """The database: start, stop, look, migrate."""


@db.command()
def up() -> None:
    """Start the embedded server, migrate it, and leave it running."""
    from rl_assets.errors import ConfigurationError
    from rl_assets.services import keep_marker
    from rl_assets.settings import Settings
    from rl_assets.store.database import migrate
    from rl_assets.store.embedded import EmbeddedPostgres

    settings = Settings.from_env()
    if settings.database_url is not None:
        raise ConfigurationError("DATABASE_URL names a server, so none is started here; unset it for the embedded one")
    server = EmbeddedPostgres(settings.postgres_dir)
    server.up()
    keep_marker(settings).touch()
    migrate(server.url("babylon"))
    click.echo(f"up: {server.status().url}")


@db.command()
def down() -> None:
    """Stop the embedded server. Its data stays."""
    from rl_assets.services import keep_marker
    from rl_assets.settings import Settings
    from rl_assets.store.embedded import EmbeddedPostgres

    settings = Settings.from_env()
    keep_marker(settings).unlink(missing_ok=True)
    EmbeddedPostgres(settings.postgres_dir).down()
    click.echo("down")


@db.command()
def status() -> int:
    """Say which database is used and whether it answers; exit code 1 if it does not."""
    from rl_assets.settings import Settings
    from rl_assets.store.database import connect
    from rl_assets.store.embedded import EmbeddedPostgres

    settings = Settings.from_env()
    if settings.database_url is not None:
        connect(settings.database_url).close()
        click.echo("the server that DATABASE_URL names answers")
        return 0
    state = EmbeddedPostgres(settings.postgres_dir).status()
    click.echo(
        f"embedded server: running, process {state.pid}, {state.url}" if state.running else "embedded server: down"
    )
    return 0 if state.running else 1


@db.command()
def migrate() -> None:
    """Create Babylon's tables where they are missing, and bring our own schema up to date."""
    from rl_assets.services import databases
    from rl_assets.settings import Settings
    from rl_assets.store.database import migrate as migrate_database

    with databases(Settings.from_env()) as urls:
        migrate_database(urls.babylon)
    click.echo("migrated")


@db.command()
@click.argument("name")
@click.option("--schema", default="public", show_default=True, help="Of Babylon's tables.")
def role(name: str, schema: str) -> None:
    """Print SQL that gives role NAME the least that the platform needs. Run it as the owner of the tables, after
    `rl-assets db migrate`; then set the role's password and use it in DATABASE_URL.
    """
    from rl_assets.store.role import role_sql

    click.echo(role_sql(name, schema), nl=False)

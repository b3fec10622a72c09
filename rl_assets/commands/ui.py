"""`rl-assets ui`: Dagster's web interface and daemon on this data, in the foreground."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
def ui(host: str, port: int) -> None:
    """Dagster's web interface and daemon, until Ctrl-C."""
    from rl_assets.services import Children, check_port, code_server, daemon, databases
    from rl_assets.settings import Settings
    from rl_assets.store.database import migrate

    settings = Settings.from_env()
    check_port(host, port)
    with (
        databases(settings) as urls,
        tempfile.TemporaryDirectory(prefix="rl-assets-") as directory,
        Children(settings.dagster_dir) as children,
    ):
        migrate(urls.babylon)
        try:
            workspace = code_server(children, Path(directory))
            with daemon(settings, children, lambda: workspace) as ours:
                children.start("webserver", "dagster_webserver", "-h", host, "-p", str(port), "-w", str(workspace))
                click.echo(f"http://{host}:{port}  (logs: {settings.dagster_dir}; Ctrl-C ends it)")
                if not ours:
                    click.echo("the daemon of another command is used")
                while True:
                    children.check()
                    time.sleep(0.5)
        except KeyboardInterrupt:
            click.echo("stopping")

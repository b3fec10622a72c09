"""`rl-assets verify`: a table of what is well and what is not, with what to do."""

from __future__ import annotations

import click


@click.command(name="verify")
def verify() -> int:
    """Check configuration, database, data, automation, registry and operations. Exit code 1 if a check fails."""
    from rl_assets.commands.shown import show_table
    from rl_assets.settings import Settings
    from rl_assets.verify.areas import verify as look

    found = look(Settings.from_env())
    show_table(
        "rl-assets verify",
        ("area", "check", "", "found", "what to do"),
        [(f.area, f.check, f.state, f.detail, f.remedy) for f in found],
    )
    counts = {state: sum(f.state == state for f in found) for state in ("pass", "warn", "fail")}
    click.echo(", ".join(f"{count} {state}" for state, count in counts.items()))
    return 1 if counts["fail"] else 0

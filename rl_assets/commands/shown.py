"""How answers look: tables, progress and prompts for the eye, all on one console."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from rl_assets.harness import Progress


@cache
def console() -> Console:
    """The console of stdout. Text of users and agents is never read as markup."""
    from rich.console import Console

    # A file or pipe has no width; tables then take what a log line usually may.
    width = None if sys.stdout.isatty() else 120
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, width=width)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under column names; floats with two decimals, None as a dash."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    filled = [list(row) for row in rows]
    for position, name in enumerate(columns):
        numeric = all(isinstance(row[position], (int, float)) for row in filled)
        table.add_column(name, justify="right" if filled and numeric else "left", overflow="fold")
    for row in filled:
        table.add_row(*(_text(value) for value in row))
    console().print(table)


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars for counted work, one per description. Off a terminal nothing is drawn."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(), transient=True, disable=not console().is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield report


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)

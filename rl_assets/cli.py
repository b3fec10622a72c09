"""`rl-assets`: the commands, and how each error reaches a person: one sentence on stderr, and an exit code.

Exit codes: 0 success; 1 failed; 2 bad input or configuration; 3 below the threshold; 130 interrupted.
"""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Iterator

import click

from rl_assets.commands.batches import batches
from rl_assets.commands.compare import compare
from rl_assets.commands.db import db
from rl_assets.commands.harness import demo, harness
from rl_assets.commands.live import live
from rl_assets.commands.models import models
from rl_assets.commands.play import play
from rl_assets.commands.serve import serve
from rl_assets.commands.snapshots import snapshots
from rl_assets.commands.train import train
from rl_assets.commands.ui import ui
from rl_assets.commands.verify import verify
from rl_assets.errors import ConfigurationError, MalformedInput, RlAssetsError
from rl_assets.settings import prepare_environment

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

DISK_FULL = "the disk is full: free some space (data/ holds snapshots, episodes and checkpoints), then run this again"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Continuous reinforcement learning of market agents: play, record, judge, train, gate, deploy."""


for command in (demo, harness, train, batches, models, snapshots, ui, db, verify, serve, play, live, compare):
    cli.add_command(command)


def main() -> None:
    """Run a command and exit with its code."""
    prepare_environment()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command; returns the exit code. Errors are printed to stderr."""
    try:
        return cli.main(args=arguments, prog_name="rl-assets", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return BAD_INPUT
    except click.ClickException as error:
        error.show()
        return BAD_INPUT
    except (KeyboardInterrupt, click.Abort):
        return _say("interrupted", INTERRUPTED)
    except RlAssetsError as error:
        if _disk_full(error):
            return _say(DISK_FULL, FAILED)
        return _say(str(error), BAD_INPUT if isinstance(error, (ConfigurationError, MalformedInput)) else FAILED)
    except Exception as error:
        if _disk_full(error):
            return _say(DISK_FULL, FAILED)
        raise


def _interrupt(number: int, frame: object) -> None:
    """Unwind once; what is cleaned up on the way is not interrupted again."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _say(sentence: str, code: int) -> int:
    click.echo(f"rl-assets: {sentence}", err=True)
    return code


def _disk_full(error: BaseException) -> bool:
    """Whether a full disk is behind an error: libraries in C and Rust, and Postgres, say so in words alone."""
    return any(
        getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(e)
        for e in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__

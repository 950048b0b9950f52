"""The `unspool` program: subcommands, `--version` and the exit code.

Owns: the path from arguments to an exit code. Does not know: the work of the commands.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from unspool.cli.chat import chat
from unspool.cli.compare import compare
from unspool.cli.endings import CLOSED, FAILED, INTERRUPTED, abandon_output, report, tolerate_narrow_encodings
from unspool.cli.explore import explore
from unspool.cli.generate import generate
from unspool.cli.helping import HelpfulCommand, HelpfulGroup
from unspool.cli.models import models
from unspool.cli.next import next_tokens
from unspool.cli.score import score
from unspool.cli.serve import serve
from unspool.cli.trace import trace
from unspool.cli.tune import tune

app = typer.Typer(
    name="unspool",
    no_args_is_help=True,
    rich_markup_mode=None,
    cls=HelpfulGroup,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate", cls=HelpfulCommand)(generate)
app.command("chat", cls=HelpfulCommand)(chat)
app.command("next", cls=HelpfulCommand)(next_tokens)
app.command("score", cls=HelpfulCommand)(score)
app.command("trace", cls=HelpfulCommand)(trace)
app.command("compare", cls=HelpfulCommand)(compare)
app.command("serve", cls=HelpfulCommand)(serve)
app.command("explore", cls=HelpfulCommand)(explore)
app.command("models", cls=HelpfulCommand)(models)
app.command("tune", cls=HelpfulCommand)(tune)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"unspool {version('unspool')}")
        raise typer.Exit


VersionFlag = Annotated[
    bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
]


@app.callback()
def _root(version: VersionFlag = False) -> None:
    """Turns language models into text: every decoding strategy, one engine."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: arguments without the program's name; None for the arguments of this process.

    Returns:
        The exit code: 0 success, 2 error, 130 interrupted, 141 closed output pipe.
    """
    tolerate_narrow_encodings()
    given = None if arguments is None else list(arguments)
    try:
        status = app(args=given, prog_name="unspool", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        abandon_output()
        return CLOSED
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else FAILED
    except Exception as error:
        report(error)
        return FAILED
    finally:
        if arguments is None:
            # The process ends here; this skips a last garbage collection over half a million objects.
            gc.freeze()
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())

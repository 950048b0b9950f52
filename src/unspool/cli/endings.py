"""Error handling of commands: one line on standard error, an exit code, and a clean terminal.

Owns: the exit codes, the `--debug` flag, closed pipes and Ctrl-C. Does not know: the commands.
"""

from __future__ import annotations

import functools
import inspect
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer

from unspool.cli.helping import flags_of
from unspool.cli.spelling import spelled, unknown_flag
from unspool.errors import UnspoolError
from unspool.seeds import fresh_seed

FAILED: Final = 2
INTERRUPTED: Final = 130
CLOSED: Final = 141

DebugFlag = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with a `--debug` flag, and with errors turned into exit codes."""

    def call(*, debug: bool, **given: Any) -> None:
        try:
            command(**given)
            sys.stdout.flush()
        except KeyboardInterrupt as stop:
            if sys.stderr.isatty():
                sys.stderr.write("\n")  # the terminal echoed ^C in the middle of a line
            if str(stop):
                sys.stderr.write(f"Interrupted: {stop}\n")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            abandon_output()
            raise typer.Exit(CLOSED) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
            report(error)
            raise typer.Exit(FAILED) from None

    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DebugFlag)
    return with_parameters(call, command, [*inspect.signature(command, eval_str=True).parameters.values(), debug])


@contextmanager
def seeded(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the options with their seed, or with a fresh seed. Ctrl-C in the block shows the seed.

    Raises:
        KeyboardInterrupt: if the user interrupts; `guarded` shows its message with the seed.
    """
    asked = dict(options)
    if asked.get("seed") is None:
        asked["seed"] = fresh_seed()
    try:
        yield asked
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"--seed {asked['seed']} repeats this run") from None


def with_parameters(
    call: Callable[..., None], command: Callable[..., None], parameters: Iterable[inspect.Parameter]
) -> Callable[..., None]:
    """Return `call` with the command's name and docstring, and with these parameters, which typer turns into flags."""
    functools.update_wrapper(call, command)
    listed = list(parameters)
    call.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in listed}
    return call


def describe(error: Exception) -> str:
    """Return the error as one line. An unexpected error gets its type and a hint to --debug."""
    line = " ".join(_message(error).split())
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, UnspoolError) or hasattr(error, "format_message"):
        return line
    return f"{type(error).__name__}: {line} (--debug shows the traceback)"


def _message(error: Exception) -> str:
    if isinstance(error, UnspoolError):
        return spelled(error)
    context: Any = getattr(error, "ctx", None)
    if context is not None and hasattr(error, "option_name") and hasattr(error, "possibilities"):
        return unknown_flag(error.option_name, flags_of(context.command))
    return error.format_message() if hasattr(error, "format_message") else str(error)


def report(error: Exception) -> None:
    """Write the error's line to standard error. An empty message, after help was shown, writes nothing."""
    if line := describe(error):
        sys.stderr.write(f"Error: {line}\n")


def abandon_output() -> None:
    """Discard buffered output after the reader closed the pipe; else Python prints an error at exit."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, io.UnsupportedOperation):
        pass


def tolerate_narrow_encodings() -> None:
    """Replace characters that the output encoding lacks by question marks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

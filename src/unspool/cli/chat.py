"""`unspool chat`: a conversation with a model, in a terminal or through a pipe.

Owns: the loop of reading and answering, and the handling of interrupted answers. Does not know: commands, keyboards, or
how text is generated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli.commands import ChatSession, Next, complete, is_command, run_command
from unspool.cli.endings import guarded, report
from unspool.cli.generate import summary
from unspool.cli.keyboard import Keyboard, Piped, Source
from unspool.cli.options import AssistantFlag, with_generation_options, with_model
from unspool.cli.screen import Screen
from unspool.cli.sources import ModelChoice

if TYPE_CHECKING:
    from unspool.conversations.turn import TurnStream


@guarded
@with_generation_options
@with_model
def chat(
    *,
    assistant_model: AssistantFlag = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="The system message, before all other messages.")
    ] = None,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Write the conversation as a transcript, for models without a chat template."),
    ] = False,
    chat_template: Annotated[
        Path | None,
        typer.Option("--chat-template", metavar="FILE", help="A Jinja chat template that replaces the model's own."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not print tokens, speed and seed.")] = False,
    choice: ModelChoice,
    options: Mapping[str, Any],
) -> None:
    """Talk with a model.

    Answers are streamed. /help lists the commands: undo, edit, retry, save, set options and more.
    In a pipe each line is a message and each answer is printed; the first error ends the conversation.
    """
    from unspool.cli.dialogue import Dialogue

    template = None if chat_template is None else chat_template.read_text(encoding="utf-8")
    language_model = choice.load()
    asked = {**options, **choice.load_assistant(assistant_model)}
    dialogue = Dialogue(language_model, asked, plain=plain, chat_template=template, system=system)
    at_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    source: Source = Keyboard(complete) if at_terminal else Piped()
    screen = Screen(prompt="", echo=False)
    session = ChatSession(
        dialogue=dialogue,
        source=source,
        load=choice.load_another,
        show=typer.echo,
        remark=screen.remark,
    )
    if source.interactive:
        screen.remark(f"{language_model.info.name}: /help lists the commands, Ctrl-D leaves")
    converse(session, quiet=quiet)


def converse(session: ChatSession, *, quiet: bool) -> None:
    """Read and answer until the input ends. In a terminal, errors are shown and the loop continues."""
    following: Next = "read"
    while following != "leave":
        try:
            following = _read(session) if following == "read" else _answer(session, following, quiet=quiet)
        except EOFError:
            if session.source.interactive:
                typer.echo()
            return
        except KeyboardInterrupt:
            if not session.source.interactive:
                raise
            typer.echo()
            following = "read"
        except (BrokenPipeError, typer.Exit):
            raise
        except Exception as error:
            if not session.source.interactive:
                raise
            report(error)
            following = "read"


def _read(session: ChatSession) -> Next:
    """Read a message or a command, and return the next action."""
    line = session.source.message()
    if not line.strip():
        return "read"
    if is_command(line):
        return run_command(session, line)
    return partial(session.dialogue.stream, line.removeprefix("/") if line.startswith("//") else line)


def _answer(session: ChatSession, ask: Callable[..., TurnStream], *, quiet: bool) -> Next:
    """Stream an answer to the screen. The shown part of an interrupted answer stays in the conversation.

    Args:
        ask: returns the stream of the answer; has a keyword `tentative`.
    """
    dialogue, screen = session.dialogue, Screen(prompt="", echo=False)
    shown = False
    try:
        with ask(tentative=screen.shows_tails) as chunks:
            try:
                for chunk in chunks:
                    # In a transcript, leading blanks are not part of the answer.
                    text = chunk.text.lstrip() if dialogue.plain and not shown else chunk.text
                    shown = shown or bool(text)
                    tail = chunk.tentative
                    screen.text(text, tail=tail.lstrip() if tail and dialogue.plain and not shown else tail)
            finally:
                screen.end_line()
        if not quiet:
            screen.remark(summary(chunks.generation))
    except KeyboardInterrupt:
        if not session.source.interactive:
            raise KeyboardInterrupt(f"the current answer had --seed {dialogue.seed}") from None
        if shown:
            screen.remark(f"stopped, seed {dialogue.seed}; /retry for another answer, /undo to remove your message")
        else:
            screen.remark("stopped before the first text; the conversation is unchanged")
    return "read"

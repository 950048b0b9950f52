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
    desk = ChatSession(
        dialogue=dialogue,
        source=source,
        load=choice.load_another,
        show=typer.echo,
        remark=screen.remark,
    )
    if source.interactive:
        screen.remark(f"{language_model.info.name}: /help lists the commands, Ctrl-D leaves")
    converse(desk, quiet=quiet)


def converse(desk: ChatSession, *, quiet: bool) -> None:
    """Read and answer until the input ends. In a terminal, errors are shown and the loop continues."""
    following: Next = "read"
    while following != "leave":
        try:
            following = _read(desk) if following == "read" else _answer(desk, following, quiet=quiet)
        except EOFError:
            if desk.source.interactive:
                typer.echo()
            return
        except KeyboardInterrupt:
            if not desk.source.interactive:
                raise
            typer.echo()
            following = "read"
        except (BrokenPipeError, typer.Exit):
            raise
        except Exception as error:
            if not desk.source.interactive:
                raise
            report(error)
            following = "read"


def _read(desk: ChatSession) -> Next:
    """Read a message or a command, and return the next action."""
    line = desk.source.message()
    if not line.strip():
        return "read"
    if is_command(line):
        return run_command(desk, line)
    return partial(desk.dialogue.stream, line.removeprefix("/") if line.startswith("//") else line)


def _answer(desk: ChatSession, ask: Callable[..., TurnStream], *, quiet: bool) -> Next:
    """Stream an answer to the screen. The shown part of an interrupted answer stays in the conversation.

    Args:
        ask: returns the stream of the answer; has a keyword `tentative`.
    """
    dialogue, screen = desk.dialogue, Screen(prompt="", echo=False)
    said = False
    try:
        with ask(tentative=screen.shows_tails) as chunks:
            try:
                for chunk in chunks:
                    # In a transcript, leading blanks are not part of the answer.
                    text = chunk.text.lstrip() if dialogue.plain and not said else chunk.text
                    said = said or bool(text)
                    tail = chunk.tentative
                    screen.text(text, tail=tail.lstrip() if tail and dialogue.plain and not said else tail)
            finally:
                screen.end_line()
        if not quiet:
            screen.remark(summary(chunks.generation))
    except KeyboardInterrupt:
        if not desk.source.interactive:
            raise KeyboardInterrupt(f"the current answer had --seed {dialogue.seed}") from None
        if said:
            screen.remark(f"stopped, seed {dialogue.seed}; /retry for another answer, /undo to take your message back")
        else:
            screen.remark("stopped before the first text; the conversation is unchanged")
    return "read"

"""Slash commands of `unspool chat`.

Owns: the commands, their output, and their completion. Does not know: how an answer is shown.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from unspool.cli.keyboard import Source
from unspool.cli.spelling import SETTINGS, spelled
from unspool.config import OPTIONS, GenerationConfig
from unspool.errors import OptionError, PromptError

if TYPE_CHECKING:
    from unspool.cli.dialogue import Dialogue
    from unspool.conversations.turn import TurnStream
    from unspool.model import LanguageModel

Next: TypeAlias = "Literal['read', 'leave'] | Callable[..., TurnStream]"
"""The action after a command: read on, leave, or stream an answer. The callable has a keyword `tentative`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSession:
    """The state that commands use.

    dialogue: the conversation. source: the source of messages. load: returns the model with a name. show: prints a
    line. remark: prints a line in a terminal, and nothing in a pipe.
    """

    dialogue: Dialogue
    source: Source
    load: Callable[[str], LanguageModel]
    show: Callable[[str], None]
    remark: Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command. argument: placeholder of its argument in `/help`; empty for none."""

    name: str
    run: Callable[[ChatSession, str], Next]
    help: str
    argument: str = ""


def is_command(line: str) -> bool:
    """Return True if a line is a command. Two slashes start a message with a leading slash."""
    return line.startswith("/") and not line.startswith("//")


def run_command(session: ChatSession, line: str) -> Next:
    """Run a command, and return the next action.

    Raises:
        PromptError: if the command is unknown, lacks its argument, or does not apply to this conversation.
        OptionError: if an option is invalid.
        OSError: if a file cannot be read or written.
    """
    name, _, argument = line.removeprefix("/").partition(" ")
    command = _COMMANDS.get(_ALIASES.get(name, name))
    if command is None:
        close = difflib.get_close_matches(name, _COMMANDS, n=1)
        meant = f"did you mean /{close[0]}? " if close else ""
        raise PromptError(f"unknown command /{name}; {meant}/help lists the commands, // starts a message with a slash")
    return command.run(session, argument.strip())


def complete(line: str) -> Sequence[str]:
    """Return the completions of the last word of a line."""
    words = line.split(" ")
    if not is_command(line):
        return []
    if len(words) == 1:
        return [f"/{name}" for name in _COMMANDS if f"/{name}".startswith(words[0])]
    if words[0] == "/set" and len(words) == 2:
        return [name for name in OPTIONS if name.startswith(words[1])]
    return []


def _help(session: ChatSession, argument: str) -> Next:
    for command in _COMMANDS.values():
        session.show(f"  {f'/{command.name} {command.argument}':<22}{command.help}")
    session.show("End a line with \\ to continue it on the next. Ctrl-C stops an answer, Ctrl-D leaves.")
    return "read"


def _system(session: ChatSession, argument: str) -> Next:
    if argument:
        session.dialogue.system = None if argument == "off" else argument
    session.show(f"system: {session.dialogue.system}" if session.dialogue.system else "no system message")
    return "read"


def _reset(session: ChatSession, argument: str) -> Next:
    session.dialogue.reset()
    session.remark("a new conversation")
    return "read"


def _undo(session: ChatSession, argument: str) -> Next:
    text = session.dialogue.undo()
    if text is None:
        raise PromptError("there is nothing to undo")
    session.remark(f"undone: {text}")
    return "read"


def _retry(session: ChatSession, argument: str) -> Next:
    return lambda **shown: session.dialogue.retry(stream=True, **shown)


def _edit(session: ChatSession, argument: str) -> Next:
    before = session.dialogue.turn
    if before is None:
        raise PromptError("the conversation contains no message to edit")
    if not argument and not session.source.interactive:
        raise PromptError("in a pipe /edit needs the new text as its argument")
    text = argument or session.source.message(before)
    if not text.strip():
        session.remark("the message is unchanged")
        return "read"
    return lambda **shown: session.dialogue.edit(text, stream=True, **shown)


def _save(session: ChatSession, argument: str) -> Next:
    file = _file(argument, "/save")
    session.dialogue.save(file)
    session.remark(f"{len(session.dialogue.messages)} messages saved to {file}")
    return "read"


def _load(session: ChatSession, argument: str) -> Next:
    file = _file(argument, "/load")
    session.dialogue.resume(file)
    messages = session.dialogue.messages
    waits = "; the last one waits for an answer: /retry" if messages and messages[-1]["role"] == "user" else ""
    session.remark(f"{len(messages)} messages loaded{waits}")
    return "read"


def _set(session: ChatSession, argument: str) -> Next:
    name, _, text = argument.partition(" ")
    if not text.strip():
        raise PromptError("/set needs an option and a value: /set temperature 0.8, /set temperature off")
    try:
        session.dialogue.set_option(name, text.strip())
    except OptionError as error:
        raise PromptError(spelled(error, SETTINGS)) from None
    return "read"


def _options(session: ChatSession, argument: str) -> Next:
    known = {name: value for name, value in session.dialogue.options.items() if name in OPTIONS}
    for name, value in GenerationConfig(**known).to_dict().items():
        session.show(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    if not known:
        session.show("no option is set; the model's config and the defaults apply")
    return "read"


def _model(session: ChatSession, argument: str) -> Next:
    if argument:
        session.dialogue.switch_model(session.load(argument))
    info = session.dialogue.lm.info
    session.show(f"{info.name}: {info.backend}")
    return "read"


def _exit(session: ChatSession, argument: str) -> Next:
    return "leave"


def _file(argument: str, command: str) -> Path:
    if not argument:
        raise PromptError(f"{command} needs a file name")
    return Path(argument).expanduser()


_COMMANDS: Final = {
    command.name: command
    for command in (
        Command(name="help", run=_help, help="list the commands"),
        Command(name="system", argument="TEXT", run=_system, help="set the system message; off removes it"),
        Command(name="reset", run=_reset, help="start a new conversation"),
        Command(name="undo", run=_undo, help="remove your last message and its answer"),
        Command(name="retry", run=_retry, help="answer your last message again"),
        Command(name="edit", argument="[TEXT]", run=_edit, help="change your last message and answer it again"),
        Command(name="save", argument="FILE", run=_save, help="save the conversation to a file"),
        Command(name="load", argument="FILE", run=_load, help="load the conversation from a file"),
        Command(
            name="set", argument="OPTION VALUE", run=_set, help="set an option; off turns it off, default unsets it"
        ),
        Command(name="options", run=_options, help="show the options that are set"),
        Command(name="model", argument="[NAME]", run=_model, help="show the model, or switch to another"),
        Command(name="exit", run=_exit, help="leave"),
    )
}
_ALIASES: Final = {"regenerate": "retry", "quit": "exit", "bye": "exit", "clear": "reset", "?": "help"}

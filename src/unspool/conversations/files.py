"""Conversations in files: messages and options as JSON.

Owns: the file format. Does not know: models, and how messages are answered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unspool.atomic_files import write_atomically
from unspool.config import OPTIONS, GenerationConfig
from unspool.errors import OptionError, PromptError
from unspool.text.chat import Message, read_chat


class SavedChat(NamedTuple):
    """The content of a file. options: of generation, as plain values by name."""

    messages: list[Message]
    options: dict[str, Any]


def write_chat(file: Path, messages: Sequence[Message], options: Mapping[str, Any], *, model: str) -> None:
    """Write a conversation. The file holds either the old conversation or the new one, even after a crash.

    Args:
        file: a new file, or a file with an earlier conversation.
        messages: oldest first.
        options: by name; objects such as processors are left out.
        model: its name.

    Raises:
        PromptError: if the file holds something else, or a message cannot be written as JSON.
        OSError: if the file cannot be written.
    """
    if file.exists():
        try:
            read_file(file)
        except PromptError as error:
            raise PromptError(f"{error}; it is left as it is: name another file") from None
    known = GenerationConfig(**{name: value for name, value in options.items() if _is_value(name, value)})
    saved = {"model": model, "options": known.to_dict(), "messages": list(messages)}
    try:
        text = json.dumps(saved, ensure_ascii=False, indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise PromptError(f"cannot save the conversation to {file}: a message is not JSON: {error}") from None
    write_atomically(file, text)


def read_file(file: Path) -> SavedChat:
    """Return the conversation in a file: one of `write_chat`, or a JSON list of messages.

    Raises:
        PromptError: if the file holds no conversation.
        OptionError: if an option in the file is unknown or out of range.
        OSError: if the file cannot be read.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PromptError(f"{file} holds no conversation: {error}") from None
    messages = found.get("messages") if isinstance(found, dict) else found
    options = found.get("options", {}) if isinstance(found, dict) else {}
    try:
        read = [] if messages == [] else list(read_chat(messages))
    except PromptError as error:
        raise PromptError(f"{file} holds no conversation: {error}") from None
    if not isinstance(options, dict):
        raise PromptError(f"{file} holds no conversation: its options must be an object, got {options!r}")
    try:
        GenerationConfig.from_dict(options)
    except OptionError as error:
        raise OptionError(error.option, error.given, f"in {file} {error.allowed}", error.hint) from None
    return SavedChat(read, options)


def _is_value(name: str, value: Any) -> bool:
    """Return whether this is an option of the table with a plain value; a strategy can be the caller's object."""
    return name in OPTIONS and (name != "strategy" or isinstance(value, str | None))

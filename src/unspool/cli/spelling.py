"""Error messages for the command line: option names as flags, and values as typed there.

Owns: the spelling of an error as flags, as JSON keys, or as settings of a conversation. Does not know: the meaning of
an option.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final, Protocol

from unspool.config import OPTIONS, REFUSED, nearest_option
from unspool.errors import OptionError, UnspoolError
from unspool.serving.settings import ModelSettings
from unspool.serving.settings import Settings as ServerSettings

_OTHERS: Final = frozenset(
    {
        "model",
        "gguf_file",
        "tokenizer",
        "assistant_model",
        "dtype",
        "device",
        "quantize",
        "threads",
        "strategies",
        "chat_template",
        "html",
        *(field.name for kind in (ServerSettings, ModelSettings) for field in fields(kind)),
    }
)
"""Flags other than generation options."""

# Quoted text is a value. Code spans and assignments contain names of options; None, True and False are values.
_PYTHON: Final = re.compile(
    r"(?P<quoted>(?<!\w)'[^']*'(?!\w)|\"[^\"]*\")"
    r"|`(?P<span>\w+)`"
    r"|`?(?<![\w.])(?P<name>[a-z]\w*)=(?P<value>'[^']*'|\[[^\]]*\]|\([^)]*\)|[\w.+-]+)?`?(?P<door> to load\(\))?"
    r"|(?P<none>(?:\buse )?\bNone\b)"
    r"|\b(?P<switch>True|False)\b"
)


class Spelling(Protocol):
    """A spelling of option names and values."""

    unset: str
    """The words that replace "use None"."""

    def name(self, option: str) -> str | None:
        """Return the option's name in this spelling; None if this spelling lacks the option."""

    def assignment(self, option: str, value: Any) -> str:
        """Return the words that set an option to a value."""

    def switch(self, option: str, value: bool) -> str:
        """Return the word for True or False as the value of an option."""


class Flags:
    """The spelling of the command line: `--top-p 0.9`, `--no-do-sample`."""

    unset = "leave it out"

    def name(self, option: str) -> str | None:
        known = option in _OTHERS or (option in OPTIONS and OPTIONS[option].door != "drop_in")
        return "--" + option.replace("_", "-") if known else None

    def assignment(self, option: str, value: Any) -> str:
        flag = self.name(option)
        if value is None:
            return f"a value for {flag}"
        if isinstance(value, bool) and _is_switch(option):
            return f"{flag}" if value else f"--no-{option.replace('_', '-')}"
        return f"{flag} {_as_json(option, value)}"

    def switch(self, option: str, value: bool) -> str:
        words = ("off", "on") if _is_switch(option) else ("false", "true")
        return words[value]


class Keys:
    """The spelling of a line of JSON: `"top_p": 0.9`, `"do_sample": false`."""

    unset = "use null"

    def name(self, option: str) -> str | None:
        return f'"{option}"' if option in OPTIONS else None

    def assignment(self, option: str, value: Any) -> str:
        return f"{self.name(option)}: {_as_json(option, value)}"

    def switch(self, option: str, value: bool) -> str:
        return "true" if value else "false"


class Settings:
    """The spelling of `/set` in a conversation: `top_p 0.9`, `do_sample off`."""

    unset = "use off"

    def name(self, option: str) -> str | None:
        return option if option in OPTIONS else None

    def assignment(self, option: str, value: Any) -> str:
        return f"{option} {'off' if value is None or value is False else _as_json(option, value)}"

    def switch(self, option: str, value: bool) -> str:
        return FLAGS.switch(option, value)


FLAGS: Final = Flags()
KEYS: Final = Keys()
SETTINGS: Final = Settings()


def spelled(error: UnspoolError, spelling: Spelling = FLAGS) -> str:
    """Return the message of an error with the names and values of options in another spelling."""
    if not isinstance(error, OptionError):
        return _names_spelled(str(error), spelling)
    row, name = OPTIONS.get(error.option), spelling.name(error.option)
    allowed, hint = error.allowed, error.hint
    if row is not None and allowed == row.range:
        allowed = row.kind.json_words or allowed
    if name is None and error.option in REFUSED and spelling is FLAGS:
        hint = "take it out of the model's generation_config.json"
    got = "" if _is_value_in_name(error, spelling) else f", got {_as_json(error.option, error.given)}"
    subject = name or f"`{error.option}`"
    return (
        f"{subject} {_values_spelled(allowed, error.option, spelling, none='null')}{got}; "
        f"{_values_spelled(hint, error.option, spelling, none=spelling.unset)}"
    )


def unknown_flag(flag: str, flags: Sequence[str]) -> str:
    """Return the error message for an unknown flag of a command.

    Args:
        flag: the unknown flag.
        flags: the flags of the command.
    """
    option = flag.lstrip("-").replace("-", "_")
    if option in REFUSED:
        return f"there is no flag {flag}: {option} {REFUSED[option].reason}; leave it out"
    meant = FLAGS.name(nearest_option(option) or "")
    if meant not in flags:
        meant = next(iter(difflib.get_close_matches(flag.replace("_", "-"), flags, n=1)), None)
    return f"there is no flag {flag}; {f'did you mean {meant}?' if meant else '--help lists all flags'}"


def _values_spelled(text: str, option: str, spelling: Spelling, *, none: str) -> str:
    """Return a part of an OptionError's message in the spelling.

    Args:
        option: the option that the error is about.
        none: the words for "use None" and "None".
    """

    def replaced(found: re.Match[str]) -> str:
        if found["none"]:
            return none.removeprefix("use ") if none.startswith("use ") and found["none"] == "None" else none
        if found["switch"]:
            return spelling.switch(option, found["switch"] == "True")
        return _name_spelled(found, spelling)

    return _PYTHON.sub(replaced, text)


def _names_spelled(text: str, spelling: Spelling) -> str:
    return _PYTHON.sub(lambda found: _name_spelled(found, spelling), text)


def _name_spelled(found: re.Match[str], spelling: Spelling) -> str:
    name = found["span"] or found["name"]
    if name is None or (shown := spelling.name(name)) is None:
        return found[0]
    return spelling.assignment(name, _python_value(found["value"])) if found["value"] else shown


def _python_value(text: str) -> Any:
    import ast

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _is_value_in_name(error: OptionError, spelling: Spelling) -> bool:
    """Return True if the message must not repeat the value: for a switch, the flag already is the value."""
    return spelling is FLAGS and (error.given is None or isinstance(error.given, bool))


def _is_switch(option: str) -> bool:
    return option in OPTIONS and OPTIONS[option].cli_type == "bool"


def _as_json(option: str, value: Any) -> str:
    try:
        plain = OPTIONS[option].plain(value) if option in OPTIONS else value
    except (TypeError, AttributeError):  # a wrong value, as given
        plain = value
    try:
        return json.dumps(plain, ensure_ascii=False)
    except (TypeError, ValueError):
        return repr(value)

"""Files of prompts or texts, one per line, as text or JSON.

Owns: the parsing of lines, and errors with file and line. Does not know: the use of the records.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from unspool.cli.sources import decoded
from unspool.cli.spelling import KEYS, spelled
from unspool.config import GenerationConfig
from unspool.errors import OptionError, PromptError, UnspoolError

_JSON_SUFFIXES: Final = (".jsonl", ".ndjson")
_TEXT_SUFFIX: Final = ".txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of a file.

    place: file and line, for errors. values: values other than options, such as the prompt. options: checked options of
    this line. error: error message of the line; None for a valid line.
    """

    place: str
    values: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    def message_of(self, error: Exception) -> str:
        """Return the message of an error about this line, on one line, with its place and JSON keys."""
        text = spelled(error, KEYS) if isinstance(error, UnspoolError) else f"{type(error).__name__}: {error}"
        return f"{self.place}: {' '.join(text.split())}"


def read_records(file: Path, *, main: str, others: Sequence[str] = (), takes_options: bool = True) -> list[Record]:
    """Return the lines of a file as records, without blank lines. An invalid line becomes a record with an error.

    A file is JSON Lines if its name ends in .jsonl or .ndjson, or if its first line is a JSON object. A file with a
    name in .txt is always text.

    Args:
        file: name of the file; - is standard input.
        main: required key of each object; a line of text is its value.
        others: further keys other than options.
        takes_options: True if all other keys are generation options; False makes them errors.

    Raises:
        PromptError: if the file has only blank lines, or is not UTF-8 text.
        OSError: if the file cannot be read.
    """
    name = "standard input" if str(file) == "-" else str(file)
    raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    lines = [(f"{name}:{count}", line) for count, line in enumerate(_lines(decoded(raw, name)), 1) if line.strip()]
    if not lines:
        raise PromptError(f"{name} is empty")
    if file.suffix in _JSON_SUFFIXES or (file.suffix != _TEXT_SUFFIX and _is_object(lines[0][1])):
        read = [_from_json(place, line, main, others) for place, line in lines]
        return read if takes_options else [_without_options(one, (main, *others)) for one in read]
    return [Record(place=place, values={main: line}) for place, line in lines]


def _lines(text: str) -> list[str]:
    """Return the lines, split at line feeds alone: a JSON string can contain the other separators of `splitlines`."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _from_json(place: str, line: str, main: str, others: Sequence[str]) -> Record:
    try:
        found = json.loads(line)
    except ValueError as error:
        return Record(place=place, error=f"{place}: not JSON: {error}")
    if not isinstance(found, dict) or main not in found:
        shape = f'{{"{main}": ..., and options}}'
        return Record(place=place, error=f'{place}: must be an object with "{main}": {shape}; got {_short(line)}')
    values = {key: found[key] for key in (main, *others) if key in found}
    for key, value in values.items():
        if not _is_prompt(value):
            return Record(
                place=place, error=f'{place}: "{key}" must be a text or a list of token ids; got {_short(line)}'
            )
    options = {key: value for key, value in found.items() if key not in values}
    record = Record(place=place, values=values, options=options)
    try:
        GenerationConfig(**options)
    except (OptionError, TypeError) as error:
        return Record(place=place, values=values, error=record.message_of(error))
    return record


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(type(token) is int for token in value))


def _without_options(record: Record, keys: Sequence[str]) -> Record:
    """Return the record; with an error if it has options."""
    unknown = next(iter(record.options), None)
    if unknown is None:
        return record
    allowed = " and ".join(f'"{key}"' for key in keys)
    return replace(record, options={}, error=f'{record.place}: "{unknown}" is not a key here; the keys are {allowed}')


def _short(line: str) -> str:
    return line if len(line) <= 60 else f"{line[:57]}..."

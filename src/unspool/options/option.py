"""What an option is, and the one way to declare it.

Owns: Option, UNSET, `option()`. Does not know: which options there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final, Literal, TypeAlias, cast

from unspool.errors import OptionError
from unspool.options.kinds import CliType, Kind, Unfit


class Unset(Enum):
    """The type of UNSET, which says "not given", where None says "off"."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET

ReadBy: TypeAlias = frozenset[str] | Literal["all", "sampling", "named"]
Door: TypeAlias = Literal["both", "native", "drop_in"]

GROUPS: Final = (
    "Length",
    "Stopping",
    "Search",
    "Sampling",
    "Penalties",
    "Constraints on tokens",
    "Special tokens",
    "Output",
    "Engine",
    "Speculation",
    "Encoder-decoder models",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One row of the option table.

    name: as in Python and, with dashes, on the command line.
    group: one of GROUPS; heads the panel of `--help` and the section of the docs.
    kind: the values it takes and how they are normalized.
    default: its value where nothing gives one. off: the value that changes nothing; None is off as well.
    help: one sentence, with the unit. hint: what to do about a bad value.
    read_by: the strategies that read it. Declared as "all", as "sampling" (all strategies that sample, and those that
        name it) or as "named" (those that name it in their facts); the option table holds the names.
    partners: it is read only if one of these options is on, or "assistant_model" is given.
    samples: whether asking for it, in the native API, asks for sampling.
    fallback: its value in the native API if no option limits the same thing; UNSET if that is `default`.
    door: "native" (Python API, CLI, server), "drop_in" (`unspool.generate`), or "both".
    drop_in_default: its value in the drop-in where nothing gives one; UNSET where that is `default`.
    source: whose name it is. type: the annotation of its normalized value.
    """

    name: str
    group: str
    kind: Kind
    help: str
    default: Any = None
    off: Any = None
    hint: str = ""
    read_by: ReadBy = "all"
    partners: tuple[str, ...] = ()
    samples: bool = False
    fallback: Any = UNSET
    door: Door = "both"
    drop_in_default: Any = UNSET
    source: Literal["transformers", "unspool"] = "transformers"
    type: str = ""

    @property
    def range(self) -> str:
        """What is allowed, in words."""
        return self.kind.words

    @property
    def cli_type(self) -> CliType:
        """The Python type of its flag; "json" flags take text for `from_text`, repeatable ones for `from_texts`."""
        return self.kind.cli_type

    @property
    def multiple(self) -> bool:
        """Whether its flag can be repeated."""
        return self.kind.multiple

    @property
    def takes_lists(self) -> bool:
        """Whether a list is itself one value of the option."""
        return any(one.get("type") == "array" for one in self.kind.schema.get("anyOf", [self.kind.schema]))

    @property
    def metavar(self) -> str:
        """The placeholder of its flag's value; empty for booleans."""
        return self.kind.metavar

    @property
    def advice(self) -> str:
        """What to do about a bad value, in words."""
        if self.hint:
            return self.hint
        return "use None to turn it off" if self.default is None else f"leave it out for {self.default!r}"

    def check(self, value: Any) -> Any:
        """Return the value normalized; None becomes the off value where the option always has a value.

        Raises:
            OptionError: the value is of the wrong type or out of range.
        """
        if value is None:
            return None if self.default is None else self.off
        try:
            return self.kind.parse(value)
        except Unfit:
            raise OptionError(self.name, value, self.range, self.advice) from None

    def from_text(self, text: str) -> Any:
        """Return the checked value of a text: JSON, or the text itself ("never") if it is no JSON.

        Raises:
            OptionError: if the value is of the wrong type or out of range.
        """
        if self.multiple:
            return self.from_texts([text])
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        return self.check(value)

    def from_texts(self, texts: Sequence[str]) -> Any:
        """Return the checked value of a repeatable flag: the values of all its uses in one list.

        Each text is a JSON list of values, or plain text: values parted by the kind's separator.

        Raises:
            OptionError: if a value is of the wrong type or out of range.
        """
        return self.check([value for text in texts for value in self._values_in(text)])

    def _values_in(self, text: str) -> Sequence[Any]:
        if (listed := self._json_list(text)) is not None:
            return listed
        parts = [part.strip() for part in text.split(self.kind.separator)] if self.kind.separator else [text]
        return [_number(part) for part in parts] if self.cli_type == "int" else parts

    def _json_list(self, text: str) -> list[Any] | None:
        """Return the list that a JSON text holds; None for text like "[1]" if the option takes strings alone."""
        try:
            value = json.loads(text) if text.lstrip().startswith("[") else None
        except ValueError:
            return None
        if value is None or any(isinstance(one, str) for one in value):
            return value
        try:
            self.kind.parse(value)
        except Unfit:
            return None if self.cli_type == "str" else value
        return cast(list[Any], value)

    def plain(self, value: Any) -> Any:
        """Return a normalized value as plain JSON."""
        return None if value is None else self.kind.dump(value)

    def is_off(self, value: Any) -> bool:
        """Return whether this normalized value changes nothing."""
        return value is None or value == self.off or (isinstance(value, tuple | Mapping) and not value)

    def settle(self, value: Any) -> Any:
        """Return the value with every way of saying "off" made one: None, or `off` where there is a default."""
        return self.off_value if self.is_off(value) else value

    @property
    def shown_default(self) -> Any:
        """The default as help and docs show it."""
        return self.default if self.fallback is UNSET else self.fallback

    @property
    def off_value(self) -> Any:
        """The one value that a resolved config holds where the option is off or not read."""
        return None if self.default is None else self.off


def _number(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def option(kind: Kind, *, group: str, help: str, **rest: Any) -> Any:
    """Declare an option as a dataclass field; the field's name and annotation become the option's.

    Args:
        kind: the values it takes.
        group: one of GROUPS.
        help: one sentence.
        rest: further fields of Option. `off` is `default` unless given.
    """
    assert group in GROUPS, group
    rest.setdefault("off", rest.get("default"))
    row = Option(name="", group=group, kind=kind, help=help, **rest)
    return field(default=UNSET, metadata={"option": row})


def option_of(metadata: Mapping[str, Any], name: str, annotation: str) -> Option | None:
    """Return the table row that a dataclass field declares, or None for a field that is no option."""
    row = metadata.get("option")
    return None if row is None else replace(row, name=name, type=annotation)

"""Option: one row of the option table, and `option()`, which declares it as a dataclass field.

Owns: Option, UNSET, `option()`. Does not know: the list of options. docs/configs.md compares UNSET, None, `off`,
`default`, `fallback` and `drop_in_default` in one table.
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
    """The type of UNSET, which means "not given"; None means "off"."""

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
    "Structured output",
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
    group: one of GROUPS; the title of the `--help` panel and of the section in the docs.
    kind: the accepted values and their normalization.
    help: one or two sentences, with the unit. hint: advice for a bad value.
    default: the value if no layer sets the option.
    off: the value that turns the option off. None is always off as well.
    read_by: the strategies that read the option. Declared as "all", as "sampling" (strategies that sample or list it in
        their facts) or as "named" (strategies that list it in their facts). The option table has the names.
    partners: the option is read only if one of these options is on. "assistant_model" stands for a draft model.
    samples: True if the option, requested in the native API, turns sampling on.
    fallback: the value in the native API if no other option limits the same quantity; UNSET for `default`.
    door: "native" (Python API, CLI, server), "drop_in" (`unspool.generate`), or "both".
    drop_in_default: the value in the drop-in if no layer sets the option; UNSET for `default`.
    source: origin of the name. type: the annotation of the normalized value.
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
        """The accepted values in words."""
        return self.kind.words

    @property
    def cli_type(self) -> CliType:
        """The Python type of the flag. `from_text` reads "json" flags, `from_texts` repeatable flags."""
        return self.kind.cli_type

    @property
    def multiple(self) -> bool:
        """True if the flag can be repeated."""
        return self.kind.multiple

    @property
    def takes_lists(self) -> bool:
        """True if a list can be one value of the option."""
        return any(one.get("type") == "array" for one in self.kind.schema.get("anyOf", [self.kind.schema]))

    @property
    def metavar(self) -> str:
        """The placeholder of the flag's value; empty for booleans."""
        return self.kind.metavar

    @property
    def advice(self) -> str:
        """Advice for a bad value."""
        if self.hint:
            return self.hint
        return "use None to turn it off" if self.default is None else f"leave it out for {self.default!r}"

    def check(self, value: Any) -> Any:
        """Return the value normalized; None becomes `off` if the option has a default.

        Raises:
            OptionError: if the value is of the wrong type or out of range.
        """
        if value is None:
            return None if self.default is None else self.off
        try:
            return self.kind.parse(value)
        except Unfit:
            raise OptionError(self.name, value, self.range, self.advice) from None

    def from_text(self, text: str) -> Any:
        """Return the checked value of a text: JSON, or the text itself ("never") if it is not valid JSON.

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
        """Return the checked value of a repeatable flag: one list with the values of all uses.

        Each text is a JSON list, or plain text with the kind's separator between values.

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
        """Return the list in a JSON text. None for plain text, such as "[1]" for a string option."""
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
        """Return True if this normalized value turns the option off."""
        return value is None or value == self.off or (isinstance(value, tuple | Mapping) and not value)

    def settle(self, value: Any) -> Any:
        """Return the value, with every form of "off" replaced by `off_value`."""
        return self.off_value if self.is_off(value) else value

    @property
    def shown_default(self) -> Any:
        """The default in help and docs."""
        return self.default if self.fallback is UNSET else self.fallback

    @property
    def off_value(self) -> Any:
        """The value in a resolved config if the option is off or not read: None, or `off` if it has a default."""
        return None if self.default is None else self.off


def _number(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def option(kind: Kind, *, group: str, help: str, **rest: Any) -> Any:
    """Declare an option as a dataclass field; the field's name and annotation become the option's.

    Args:
        kind: the accepted values.
        group: one of GROUPS.
        help: one or two sentences, with the unit.
        rest: further fields of Option; `off` defaults to `default`.
    """
    assert group in GROUPS, group
    rest.setdefault("off", rest.get("default"))
    row = Option(name="", group=group, kind=kind, help=help, **rest)
    return field(default=UNSET, metadata={"option": row})


def option_of(metadata: Mapping[str, Any], name: str, annotation: str) -> Option | None:
    """Return the table row that a dataclass field declares; None if the field is not an option."""
    row = metadata.get("option")
    return None if row is None else replace(row, name=name, type=annotation)

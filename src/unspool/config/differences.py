"""Differences: the differing options of two configs, printed as a table.

Owns: the layout of the table. Does not know: how configs are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from unspool.options.option import UNSET

if TYPE_CHECKING:
    from rich.table import Table

_HEAD: Final = ("option", "here", "there")
_WIDEST: Final = 40


class Differences(dict[str, tuple[Any, Any]]):
    """Differing options: name --> (here, there). UNSET means that this side does not set the option.

    Prints as a table. "not given" is followed by the option's default, unless the default is off.
    """

    def __init__(self, pairs: Mapping[str, tuple[Any, Any]], defaults: Mapping[str, Any]) -> None:
        """Create the mapping; `defaults` has the default of every option, to print after "not given"."""
        super().__init__(pairs)
        self._defaults = defaults

    def rows(self) -> list[tuple[str, str, str]]:
        """Return rows (option, here, there) as text, in the order of the option table."""
        return [(name, self._shown(name, here), self._shown(name, there)) for name, (here, there) in self.items()]

    def _shown(self, name: str, value: Any) -> str:
        if value is not UNSET:
            return "off" if value is None else repr(value)
        default = self._defaults.get(name)
        return "not given" if default is None else f"not given ({default!r})"

    def __str__(self) -> str:
        if not self:
            return "no differences"
        rows = [_HEAD, *((name, _cut(here), _cut(there)) for name, here, there in self.rows())]
        name_width, here_width = (max(len(row[index]) for row in rows) for index in (0, 1))
        return "\n".join(f"{name:{name_width}}  {here:{here_width}}  {there}" for name, here, there in rows)

    def __rich__(self) -> Table | str:
        if not self:
            return str(self)
        from rich.table import Table
        from rich.text import Text

        table = Table(*_HEAD, box=None, pad_edge=False, header_style="bold")
        for row in self.rows():
            table.add_row(*map(Text, row))  # Text, because brackets in a value must not be read as markup
        return table


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"

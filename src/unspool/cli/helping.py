"""The `--help` pages: description, examples and all flags, complete at any terminal width.

Owns: the layout. Does not know: the list of commands, flags and examples.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from unspool.cli.examples import EXAMPLES

_FLAG_WIDTH: Final = 26
_MARGIN: Final = "  "
_LARGEST: Final = 100
_OPTIONS: Final = "Options"


class HelpfulCommand(TyperCommand):
    """A command with examples and one section per option group in its help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        page = _Page()
        page.head(f"{ctx.command_path} {' '.join(self.collect_usage_pieces(ctx))}", self.help or "")
        page.examples(EXAMPLES.get(ctx.info_name, ()))
        shown = [one for one in self.get_params(ctx) if not getattr(one, "hidden", False)]
        arguments = [one for one in shown if one.param_type_name == "argument"]
        rows = [(one.metavar or one.name or "", getattr(one, "help", "") or "") for one in arguments]
        page.section("Arguments", rows)
        sections: dict[str, list[tuple[str, str]]] = {}
        for one in shown:
            if one.param_type_name == "option":
                title = getattr(one, "rich_help_panel", None) or _OPTIONS
                sections.setdefault(title, []).append(_flag_row(one))
        for title, rows in sections.items():
            page.section(title, rows)


class HelpfulGroup(TyperGroup):
    """The program, with one line per command in its help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        page = _Page()
        page.head(f"{ctx.command_path} COMMAND [OPTIONS]", self.help or "")
        page.examples(EXAMPLES[""])
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        page.section("Commands", [(name, _first_sentence(one.help or "")) for name, one in commands if one is not None])
        page.section(_OPTIONS, [_flag_row(one) for one in self.get_params(ctx)])


def flags_of(command: Any) -> list[str]:
    """Return all flags of a command, hidden ones included."""
    return [flag for one in command.params for flag in (*one.opts, *one.secondary_opts) if flag.startswith("-")]


class _Page:
    """Writes the parts of a help page to standard output."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, highlight=False)
        self._width = min(self._console.width, _LARGEST)

    def head(self, usage: str, text: str) -> None:
        self._print(Text.assemble(("Usage: ", "bold"), usage))
        for paragraph in text.strip().split("\n\n"):
            self._print(Text("\n" + textwrap.fill(" ".join(paragraph.split()), self._width)))

    def examples(self, lines: Sequence[str]) -> None:
        if lines:
            self._print(Text("\nExamples:", "bold"))
        for line in lines:
            self._print(Text(_MARGIN + line))

    def section(self, title: str, rows: Iterable[tuple[str, str]]) -> None:
        listed = list(rows)
        if listed:
            self._print(Text(f"\n{title}:", "bold"))
        for name, text in listed:
            self._row(name, text)

    def _row(self, name: str, text: str) -> None:
        indent = len(_MARGIN) + _FLAG_WIDTH + 2
        lines = textwrap.wrap(text, max(20, self._width - indent), break_on_hyphens=False) or [""]
        beside = [] if len(name) > _FLAG_WIDTH else [lines.pop(0)]
        row = Text.assemble(_MARGIN, (name, "cyan"))
        for first in beside:
            row.append(" " * (indent - len(_MARGIN) - len(name)) + first)
        for line in lines:
            row.append("\n" + " " * indent + line)
        row.rstrip()
        self._print(row)

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def _flag_row(option: Any) -> tuple[str, str]:
    shown = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        shown += f"/{option.secondary_opts[0]}"
    if not option.is_flag and option.metavar:
        shown += f" {option.metavar}"
    return shown, " ".join((option.help or "").split())


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split()).partition(". ")[0].removesuffix(".")

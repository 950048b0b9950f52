"""One prompt, several ways to go on: the answers side by side.

Owns: the order of the answers and how they read as values and JSON. Does not know: how they were computed, how they
are drawn (unspool.results.render.side_by_side).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unspool.results.drawing import draw
from unspool.results.figures import Figures
from unspool.results.generation import Generation

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One entry of a comparison.

    name: as given. generation: its whole answer; times in it are those of all entries together, which ran in one batch.
    figures: of its first output, the best one where the strategy ranks them.
    unread: the shared options that its strategy does not read, and that were left out for it.
    """

    name: str
    generation: Generation
    figures: Figures
    unread: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, generation: Generation, *, unread: tuple[str, ...] = ()) -> Compared:
        """Return the entry with its figures."""
        return cls(name=name, generation=generation, figures=Figures.of(generation.completions[0]), unread=unread)

    @property
    def text(self) -> str:
        """Text of the first output, with the prompt in front where `echo` was asked."""
        return self.generation.text

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; without times, since those of a shared batch belong to no entry."""
        answer = self.generation.to_dict()
        del answer["timing"]
        return {
            "name": self.name,
            "text": self.text,
            "figures": self.figures.to_dict(),
            "unread": list(self.unread),
            "generation": answer,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Comparison(Mapping[str, Generation]):
    """The answers of several strategies to one prompt: `comparison["beam"]` is a Generation, in the order given.

    Prints side by side, in a terminal and in a notebook, with the figures below.

    rows: the entries, at least one, with their figures.
    """

    rows: tuple[Compared, ...]

    def __getitem__(self, name: str) -> Generation:
        for row in self.rows:
            if row.name == name:
                return row.generation
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (row.name for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def prompt(self) -> str | None:
        """The prompt's text; None where token ids were given and there is no tokenizer."""
        return self.rows[0].generation.prompt

    @property
    def figures(self) -> dict[str, Figures]:
        """The figures of each entry by name."""
        return {row.name: row.figures for row in self.rows}

    @property
    def unread(self) -> dict[str, tuple[str, ...]]:
        """The shared options that not every entry reads: option --> the entries that it was left out for."""
        options = sorted({option for row in self.rows for option in row.unread})
        return {option: tuple(row.name for row in self.rows if option in row.unread) for option in options}

    @property
    def seconds(self) -> float:
        """Wall-clock time until the last entry was finished. All entries ran in one batch and share it."""
        return max(row.generation.timing.seconds for row in self.rows)

    def __repr__(self) -> str:
        return f"Comparison({', '.join(map(repr, self))})"

    def __str__(self) -> str:
        return str(draw(self, "plain"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield draw(self, "terminal", width=options.max_width)

    def _repr_html_(self) -> str:
        return str(draw(self, "html"))

    def to_markdown(self) -> str:
        """Return the table of figures, then every text in a block of its own."""
        return str(draw(self, "markdown"))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {"prompt": self.prompt, "seconds": self.seconds, "rows": [row.to_dict() for row in self.rows]}

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return `to_dict()` as JSON text.

        Args:
            indent: spaces per level; None for one line.
        """
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent, allow_nan=False)

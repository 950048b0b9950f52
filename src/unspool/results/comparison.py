"""Comparison: the generations of several strategies for one prompt, side by side.

Owns: the order of the entries, their values and their JSON form. Does not know: how they were computed, or how they are
drawn (unspool.results.render.side_by_side).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unspool.results.drawing import Drawn, draw
from unspool.results.figures import Figures
from unspool.results.generation import Generation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One entry of a comparison.

    name: the entry's name. generation: its generation; all entries ran in one batch, so its times are shared.
    figures: of its first output, which is the best output if the strategy ranks them.
    unread: names of the shared options that its strategy does not read; they were left out for this entry.
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
        """Text of the first output; starts with the prompt if `echo` is on."""
        return self.generation.text

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain JSON values, without times, because all entries share them."""
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
class Comparison(Drawn, Mapping[str, Generation]):
    """The generations of several strategies for one prompt: `comparison["beam"]` is a Generation.

    Prints side by side, in a terminal and in a notebook, with the figures below. The order is that of the call.

    rows: the entries with their figures; at least one.
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
        """The prompt's text; None for token ids without a tokenizer."""
        return self.rows[0].generation.prompt

    @property
    def figures(self) -> dict[str, Figures]:
        """The figures of each entry, by name."""
        return {row.name: row.figures for row in self.rows}

    @property
    def unread(self) -> dict[str, tuple[str, ...]]:
        """Shared options that some entries do not read: option --> names of those entries."""
        options = sorted({option for row in self.rows for option in row.unread})
        return {option: tuple(row.name for row in self.rows if option in row.unread) for option in options}

    @property
    def seconds(self) -> float:
        """Wall-clock time in seconds until the last entry finished; all entries ran in one batch."""
        return max(row.generation.timing.seconds for row in self.rows)

    def __repr__(self) -> str:
        return f"Comparison({', '.join(map(repr, self))})"

    def plot(self, ax: Sequence[Axes] | None = None) -> Figure:
        """Draw log-probability per token, distinct-n and rep-n of each entry with matplotlib, as bars in three panels.

        Args:
            ax: three axes to draw on; None for a new figure.

        Returns:
            The figure.

        Raises:
            MissingExtra: if matplotlib is not installed.
            OptionError: if `ax` has another number of axes.
        """
        from unspool.results.plots.comparison import plot_comparison

        return plot_comparison(self, ax)

    def to_markdown(self) -> str:
        """Return the table of figures as Markdown, followed by one block per text."""
        return str(draw(self, "markdown"))

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain JSON values."""
        return {"prompt": self.prompt, "seconds": self.seconds, "rows": [row.to_dict() for row in self.rows]}

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return `to_dict()` as JSON text.

        Args:
            indent: spaces per level; None for one line.
        """
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent, allow_nan=False)

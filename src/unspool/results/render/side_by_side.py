"""Renderer of comparisons for a terminal, a notebook and Markdown: texts in columns, and a table of figures below.

Owns: the shown figures, and the choice of the best value per figure. Colors only repeat the signs.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from unspool.results.comparison import Compared, Comparison
from unspool.results.drawing import draws
from unspool.results.render.marks import visible

PLAIN_WIDTH: Final = 100
_NARROWEST: Final = 30
_WIDEST: Final = 72
_GAP: Final = 3
_STAR: Final = "* best of its column: the most probable, or the least repetitive"
_LEGEND: Final = (
    "log-prob: of the text under the model; per token: mean; perplexity: exp(-mean)",
    "distinct-n: share of different n-grams; rep-n: share of repeated ones",
    "diversity: (1 - rep-2) (1 - rep-3) (1 - rep-4)",
    "passes: forward passes of the model in which the entry took part",
)
_FAINT: Final = "opacity:0.65"
_PRE: Final = "white-space:pre-wrap"
_CELL: Final = "border:none;background:transparent;padding:1px 10px 1px 0;text-align:left;white-space:nowrap"
_NUMBER: Final = f"{_CELL};text-align:right;font-variant-numeric:tabular-nums"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """A column of the table of figures. best: returns the best value; None for a neutral figure."""

    title: str
    value: Callable[[Compared], float | str | None]
    form: str
    best: Callable[[Sequence[float]], float] | None = None


# Probabilities of whole outputs are not ranked: a longer output has a lower one.
_COLUMNS: Final = (
    _Column(title="tokens", value=lambda row: row.figures.num_tokens, form="d"),
    _Column(title="log-prob", value=lambda row: row.figures.logprob, form=".2f"),
    _Column(title="per token", value=lambda row: row.figures.mean_logprob, form=".3f", best=max),
    _Column(title="perplexity", value=lambda row: row.figures.perplexity, form=".2f", best=min),
    _Column(title="distinct-1", value=lambda row: row.figures.distinct_1, form=".3f", best=max),
    _Column(title="distinct-2", value=lambda row: row.figures.distinct_2, form=".3f", best=max),
    _Column(title="distinct-3", value=lambda row: row.figures.distinct_3, form=".3f", best=max),
    _Column(title="rep-2", value=lambda row: row.figures.rep_2, form=".3f", best=min),
    _Column(title="rep-3", value=lambda row: row.figures.rep_3, form=".3f", best=min),
    _Column(title="rep-4", value=lambda row: row.figures.rep_4, form=".3f", best=min),
    _Column(title="diversity", value=lambda row: row.figures.diversity, form=".3f", best=max),
    _Column(title="passes", value=lambda row: row.generation.usage.forward_passes, form="d"),
    _Column(title="ended by", value=lambda row: row.figures.finish_reason, form="s"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """A formatted column. bests: True for rows with the best value; all False if all rows have the same value."""

    title: str
    cells: tuple[str, ...]
    bests: tuple[bool, ...]
    is_text: bool

    @property
    def width(self) -> int:
        return max(map(cell_len, (self.title, *self.marked)))

    @property
    def marked(self) -> tuple[str, ...]:
        """The cells, with a star before the best values."""
        return tuple(f"*{cell}" if best else cell for cell, best in zip(self.cells, self.bests, strict=True))


@draws(Comparison, "terminal")
def comparison_terminal(comparison: Comparison, *, width: int) -> Group:
    """Return the texts in as many columns as fit into `width` cells, stacked if one fits, and the figures below."""
    parts: list[RenderableType] = []
    if comparison.prompt:
        parts += [Text(_printable(comparison.prompt), style="dim"), Text()]
    parts += _texts(comparison.rows, width)
    shown = _shown(comparison)
    for columns in _packed(shown, _name_width(comparison), width):
        parts += [_figures(comparison, columns), Text()]
    parts.append(Text("\n".join(_remarks(comparison, shown)), style="dim"))
    return Group(*parts)


@draws(Comparison, "plain")
def comparison_plain(comparison: Comparison) -> str:
    """Return the picture for a terminal of 100 columns, without colors."""
    console = Console(
        file=io.StringIO(), width=PLAIN_WIDTH, color_system=None, force_jupyter=False, legacy_windows=False
    )
    with console.capture() as captured:
        console.print(comparison_terminal(comparison, width=PLAIN_WIDTH))
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n"))


@draws(Comparison, "markdown")
def comparison_markdown(comparison: Comparison) -> str:
    """Return the table of figures, with the best values in bold, and each text in a literal block."""
    shown = _shown(comparison)
    lines = [
        f"| | {' | '.join(column.title for column in shown)} |",
        f"|---|{'|'.join('---' if column.is_text else '---:' for column in shown)}|",
    ]
    for index, row in enumerate(comparison.rows):
        cells = (f"**{column.cells[index]}**" if column.bests[index] else column.cells[index] for column in shown)
        lines.append(f"| {_markdown_name(row.name)} | {' | '.join(cells)} |")
    lines += ["", *(f"- {remark}" for remark in _remarks(comparison, shown) if remark != _STAR)]
    texts = [(_markdown_name(row.name), _shown_text(row)) for row in comparison.rows]
    for title, text in [("Prompt", _printable(comparison.prompt)), *texts] if comparison.prompt else texts:
        lines += ["", f"**{title}**", "", *_fenced(text)]
    return "\n".join(lines) + "\n"


@draws(Comparison, "html")
def comparison_html(comparison: Comparison) -> str:
    """Return self-contained HTML: texts in as many columns as fit the page, and the figures below."""
    prompt = f'<div dir="auto" style="{_PRE};{_FAINT}">{escape(comparison.prompt)}</div>' if comparison.prompt else ""
    shown = _shown(comparison)
    head = "".join(f'<th style="{_NUMBER};font-weight:normal;{_FAINT}">{escape(c.title)}</th>' for c in shown)
    remarks = "".join(f"<div>{escape(remark)}</div>" for remark in _remarks(comparison, shown))
    return (
        f'<div style="line-height:1.5;color:inherit">{prompt}'
        '<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax(16em,1fr));gap:12px 24px;margin:8px 0">'
        f"{''.join(map(_html_text, comparison.rows))}</div>"
        f'<table style="border-collapse:collapse;border:none;margin:0;color:inherit"><thead>'
        f'<tr style="background:transparent"><th style="{_CELL}"></th>{head}</tr></thead><tbody>'
        f"{''.join(_html_row(index, row, shown) for index, row in enumerate(comparison.rows))}</tbody></table>"
        f'<div style="font-size:12px;{_FAINT}">{remarks}</div></div>'
    )


# --- the texts -----------------------------------------------------------------------------------------------------


def _texts(rows: Sequence[Compared], width: int) -> Iterator[RenderableType]:
    """Yield rows of columns, of similar length; each row has the names on one line and the texts below."""
    fitting = max(1, (width + _GAP) // (_NARROWEST + _GAP))
    screens = math.ceil(len(rows) / fitting)
    across = math.ceil(len(rows) / screens)
    column = max(1, (width - _GAP * (across - 1)) // across)
    if across > 1:
        column = min(_WIDEST, column)
    for start in range(0, len(rows), across):
        grid = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
        some = rows[start : start + across]
        for _ in some:
            grid.add_column(width=column, overflow="fold")
        grid.add_row(*(_heading(row, column) for row in some))
        grid.add_row(*(Text(_shown_text(row), overflow="fold") for row in some))
        yield grid
        yield Text()


def _heading(row: Compared, width: int) -> Text:
    """Return the entry's name, its facts, and a rule over the rest of the line."""
    text = Text(visible(row.name), style="bold", overflow="ellipsis", no_wrap=True)
    text.append(f"{_facts(row)} ", style="dim not bold")
    text.append("─" * max(0, width - text.cell_len), style="dim not bold")
    return text


def _facts(row: Compared) -> str:
    """Return the strategy, if the entry has another name, and the number of outputs, if there are several."""
    facts = [row.generation.strategy] if row.generation.strategy != row.name else []
    count = len(row.generation.completions)
    if count > 1:
        facts.append(f"1 of {count} outputs")
    return f" ({', '.join(facts)})" if facts else ""


def _shown_text(row: Compared) -> str:
    """Return the stripped text, safe to print; token ids without a tokenizer."""
    completion = row.generation.completions[0]
    if completion.token_ids and not completion.tokens:
        return " ".join(map(str, completion.token_ids))
    return _printable(row.text.strip()) or "(no text)"


def _printable(text: str) -> str:
    """Return the text with marks and escapes for invisible characters, except spaces and line ends."""
    return re.sub(r"[^ \n]+", lambda run: visible(run[0]), text)


# --- the figures ---------------------------------------------------------------------------------------------------


def _shown(comparison: Comparison) -> list[_Shown]:
    return [_show(column, comparison.rows) for column in _COLUMNS]


def _show(column: _Column, rows: Sequence[Compared]) -> _Shown:
    values = [column.value(row) for row in rows]
    cells = tuple("" if value is None else format(value, column.form) for value in values)
    numbers = [value for value in values if isinstance(value, int | float)]
    # Equal formatted values tie, so that rounding differences in a batch do not decide.
    best = format(column.best(numbers), column.form) if column.best and len(set(cells) - {""}) > 1 else None
    return _Shown(
        title=column.title, cells=cells, bests=tuple(cell == best for cell in cells), is_text=column.form == "s"
    )


def _name_width(comparison: Comparison) -> int:
    return max(cell_len(visible(row.name)) for row in comparison.rows)


def _packed(shown: Sequence[_Shown], name_width: int, width: int) -> Iterator[list[_Shown]]:
    """Yield groups of columns for as few tables as possible, each table with at least one column."""
    table: list[_Shown] = []
    used = name_width
    for column in shown:
        if table and used + 2 + column.width > width:
            yield table
            table, used = [], name_width
        table.append(column)
        used += 2 + column.width
    yield table


def _figures(comparison: Comparison, columns: Sequence[_Shown]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", overflow="fold")
    for column in columns:
        table.add_column(column.title, justify="left" if column.is_text else "right", no_wrap=True)
    for index, row in enumerate(comparison.rows):
        cells = (Text(column.marked[index], style="bold" if column.bests[index] else "") for column in columns)
        table.add_row(Text(visible(row.name)), *cells)
    return table


def _remarks(comparison: Comparison, shown: Sequence[_Shown]) -> list[str]:
    """Return the legend of the columns, the time, the seed if all share it, and the unread options."""
    remarks = [*_LEGEND, *([_STAR] if any(any(column.bests) for column in shown) else [])]
    remarks.append(f"{comparison.seconds:.2f} s for all entries together, in one batch")
    seeds = {generation.seed for generation in comparison.values()}
    if len(seeds) == 1:
        remarks.append(f"seed {seeds.pop()}")
    return remarks + [f"{option}: not read by {', '.join(names)}" for option, names in comparison.unread.items()]


# --- notebooks and Markdown ----------------------------------------------------------------------------------------


def _markdown_name(name: str) -> str:
    return re.sub(r"([\\|*`<\[])", r"\\\1", visible(name))


def _fenced(text: str) -> list[str]:
    """Return the lines of a fenced block; the fence is longer than any run of backticks in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}text", text, fence]


def _html_text(row: Compared) -> str:
    return (
        f'<div><div><span style="font-weight:600">{escape(visible(row.name))}</span>'
        f'<span style="{_FAINT}">{escape(_facts(row))}</span></div>'
        f'<div dir="auto" style="{_PRE}">{escape(_shown_text(row))}</div></div>'
    )


def _html_row(index: int, row: Compared, shown: Sequence[_Shown]) -> str:
    cells = "".join(
        f'<td style="{_CELL if column.is_text else _NUMBER}{";font-weight:600" if column.bests[index] else ""}">'
        f"{escape(column.marked[index])}</td>"
        for column in shown
    )
    name = f'<td style="{_CELL}">{escape(visible(row.name))}</td>'
    return f'<tr style="background:transparent">{name}{cells}</tr>'

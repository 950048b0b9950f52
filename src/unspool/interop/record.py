"""Records whole rows of logits and scores, and returns them in the layout of transformers' output classes.

Owns: the rows, and the two layouts. Does not know: processors, strategies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import torch

from unspool.interop.batch_layout import BatchLayout, TokenPath
from unspool.processors.rows import FORBIDDEN
from unspool.protocols import RowKey

RowKind: TypeAlias = Literal["logits", "scores"]


class Record:
    """The rows of a call.

    Args:
        layout: of the call, which has arranged each row.
        names: the kinds to record: "logits" are rows before the processors, "scores" rows after them.

    Attributes:
        layout: as given.
    """

    def __init__(self, layout: BatchLayout, names: Iterable[RowKind] = ()) -> None:
        self.layout = layout
        self._kept: dict[RowKind, dict[TokenPath, dict[int, torch.Tensor]]] = {name: {} for name in names}
        self._steps: dict[RowKind, list[dict[int, torch.Tensor]]] = {name: [] for name in self._kept}
        self._made: dict[tuple[RowKind, int], torch.Tensor] = {}

    @property
    def names(self) -> tuple[RowKind, ...]:
        return tuple(self._kept)

    def keep(self, name: RowKind, paths: Sequence[TokenPath], keys: Sequence[RowKey], rows: torch.Tensor) -> None:
        """Copy the rows if this kind is recorded. rows: [rows, vocab]"""
        if name not in self._kept:
            return
        steps = self._steps[name]
        for path, key, row in zip(paths, keys, rows.clone(), strict=True):
            self._kept[name].setdefault(path, {})[key.output] = row
            steps += [{} for _ in range(path.length + 1 - len(steps))]
            steps[path.length][self.layout.batch_row_of(path, key.output)] = row
            self._made.pop((name, path.length), None)

    def rows(self, name: RowKind, prompt: int, output: int, tokens: Sequence[int]) -> list[torch.Tensor]:
        """Return the row [vocab] that each token of an output was chosen from."""
        path, found = self.layout.roots[prompt], []
        for token in tokens:
            rows = self._kept[name][path]
            # Best-of returns a sample that was drawn under another output index.
            chosen = rows.get(output)
            if chosen is None or chosen[token] == FORBIDDEN:
                chosen = next((row for row in rows.values() if row[token] > FORBIDDEN), next(iter(rows.values())))
            found.append(chosen)
            path = path.follow(token)
        return found

    def batch_rows(self, prompt: int, tokens: Sequence[int]) -> list[int]:
        """Return the batch row from which each token of a beam search's output was chosen."""
        path, found = self.layout.roots[prompt], []
        for token in tokens:
            found.append(self.layout.batch_row_of(path, 0))
            path = path.follow(token)
        return found

    def steps(self, name: RowKind, count: int | None, pad_token_id: int | None) -> tuple[torch.Tensor, ...]:
        """Return the first `count` steps, None for all: one [batch rows, vocab] tensor per step.

        If a prompt has fewer rows than batch rows, its first row is repeated, because beams begin equal. An ended
        prompt has rows with 0 for the pad and -inf elsewhere.
        """
        number = len(self._steps[name]) if count is None else count
        return tuple(self._step(name, step, pad_token_id) for step in range(number))

    def _step(self, name: RowKind, number: int, pad_token_id: int | None) -> torch.Tensor:
        made = self._made.get((name, number))
        if made is None:
            rows = self._steps[name][number]
            ended, rows_per_prompt = _ended(next(iter(rows.values())), pad_token_id), self.layout.rows_per_prompt
            resting = [
                rows.get(batch_row - batch_row % rows_per_prompt, ended) if self.layout.ranked else ended
                for batch_row in self._range
            ]
            made = torch.stack(
                [rows.get(batch_row, rest) for batch_row, rest in zip(self._range, resting, strict=True)]
            )
            self._made[name, number] = made
        return made

    @property
    def _range(self) -> range:
        return range(self.layout.num_rows)


def _ended(row: torch.Tensor, pad_token_id: int | None) -> torch.Tensor:
    """Return a row in which only the pad is possible: 0 for the pad and -inf for all other tokens."""
    ended = torch.full_like(row, FORBIDDEN)
    if pad_token_id is not None and 0 <= pad_token_id < len(ended):
        ended[pad_token_id] = 0.0
    return ended


def steps_of(
    outputs: Sequence[Sequence[torch.Tensor]], pad_token_id: int | None, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Return the rows of all outputs, step by step.

    After an output's end its rows allow only the pad, so that pads add 0 to a sequence's score.

    Args:
        outputs: for each output, one row [vocab] per token.
        pad_token_id: None only if all outputs have the same length.
        device: of the result.

    Returns:
        One tensor [outputs, vocab] float32 per step of the longest output.
    """
    ended = _ended(outputs[0][0], pad_token_id)
    longest = max(map(len, outputs))
    steps = ([rows[step] if step < len(rows) else ended for rows in outputs] for step in range(longest))
    return tuple(torch.stack(rows).to(device) for rows in steps)

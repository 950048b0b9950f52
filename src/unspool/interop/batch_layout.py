"""The batch of a call in transformers' layout, updated while rows of the engine start and end.

transformers gives its processors and criteria one matrix per step. Each prompt has as many rows as beams or outputs,
and each row holds the padded prompt and then the new tokens. Here these rows are called batch rows:

    batch_row = prompt * rows_per_prompt + index        index: the rank of a beam, or the index of an output

Owns: the batch row of each engine row, and the tokens of batch rows without an engine row. Does not know: scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from unspool.protocols import RowKey


class TokenPath:
    """The new tokens of a row: a node of its prompt's tree of tokens. Equal tokens give the same object.

    total: the sum of the tokens' scores, set only by a beam search's criteria.
    """

    __slots__ = ("_children", "length", "parent", "prompt", "token", "total")

    def __init__(self, prompt: int, parent: TokenPath | None = None, token: int = -1, total: float = 0.0) -> None:
        self.prompt, self.parent, self.token, self.total = prompt, parent, token, total
        self.length: int = parent.length + 1 if parent else 0
        self._children: dict[int, TokenPath] = {}

    def follow(self, token: int) -> TokenPath:
        """Return the path with one more token."""
        child = self._children.get(token)
        if child is None:
            child = self._children[token] = TokenPath(self.prompt, self, token)
        return child

    def at(self, length: int) -> TokenPath:
        """Return the path as it was at this length."""
        path = self
        while path.length > length and path.parent is not None:
            path = path.parent
        return path

    @property
    def tokens(self) -> list[int]:
        """Its tokens, oldest first."""
        tokens: list[int] = []
        path = self
        while path.parent is not None:
            tokens.append(path.token)
            path = path.parent
        return tokens[::-1]


class ObjectCall(NamedTuple):
    """The arguments of one call of an object of transformers.

    outputs: the new tokens of each batch row, all of one length. shown: for each batch row the index of the engine row
    that it shows, or None. engine_rows: batch row --> index of the engine row that receives the answer.
    """

    outputs: list[list[int]]
    shown: list[int | None]
    engine_rows: dict[int, int]


class BatchLayout:
    """The batch rows of one call.

    Args:
        input_ids: [prompts, width], the caller's, pads included.
        pad_token_id: fills a row after its end.
        rows_per_prompt: rows per prompt in transformers' batch.
        ranked: True if the rows of a prompt are beams, sorted by rank; False if they are outputs, by index.
    """

    def __init__(self, input_ids: torch.Tensor, *, pad_token_id: int, rows_per_prompt: int, ranked: bool) -> None:
        self.rows_per_prompt, self.ranked = rows_per_prompt, ranked
        self.roots: list[TokenPath] = []
        self.batch_rows: dict[TokenPath, list[int]] = {}
        """path --> its batch rows, in the order in which they were arranged."""
        self._input_ids, self._pad = input_ids, pad_token_id
        self._known: dict[tuple[TokenPath, int], int] = {}
        self._steps: list[dict[int, TokenPath]] = []
        self._latest: dict[int, TokenPath] = {}
        self._ended: dict[int, TokenPath] = {}

    @property
    def num_rows(self) -> int:
        """The number of batch rows of all prompts."""
        return len(self._input_ids) * self.rows_per_prompt

    @property
    def num_prompts(self) -> int:
        return len(self._input_ids)

    @property
    def device(self) -> torch.device:
        """The device of the caller's prompts."""
        return self._input_ids.device

    @property
    def newest(self) -> TokenPath:
        """The root of the prompt that was begun last."""
        return self.roots[-1]

    def begin(self) -> TokenPath:
        """Return the empty path of the next prompt. Requests must start in the order of their prompts."""
        self.roots.append(TokenPath(len(self.roots)))
        return self.newest

    def batch_row_of(self, path: TokenPath, output: int) -> int:
        """Return the batch row of an engine row.

        Raises:
            KeyError: if the engine row was never arranged.
        """
        return self._known[path, 0 if self.ranked else output]

    def arrange_rows(self, paths: Sequence[TokenPath], keys: Sequence[RowKey]) -> None:
        """Give each engine row of a step its batch row. A row that was arranged before keeps its batch row."""
        ranks: dict[tuple[int, int], int] = {}
        for path, key in zip(paths, keys, strict=True):
            rank = ranks.get((path.prompt, path.length), 0)
            ranks[path.prompt, path.length] = rank + 1
            output, index = (0, rank) if self.ranked else (key.output, key.output)
            if (path, output) not in self._known:
                self._known[path, output] = path.prompt * self.rows_per_prompt + index
                self.batch_rows.setdefault(path, []).append(path.prompt * self.rows_per_prompt + index)
            self._latest[self._known[path, output]] = path
            self._steps += [{} for _ in range(path.length + 1 - len(self._steps))]
            self._steps[path.length][self._known[path, output]] = path

    def end(self, output: int, path: TokenPath) -> None:
        """Store the whole output, its end token included; only pads follow it."""
        if not self.ranked:
            self._ended[path.prompt * self.rows_per_prompt + output] = path

    def paths_at(self, step: int) -> list[TokenPath | None]:
        """Return the path of each batch row at a step; of an ended output its whole path, of an idle beam None."""
        live = self._steps[step] if step < len(self._steps) else {}
        return [live.get(batch_row) or self._ended.get(batch_row) for batch_row in range(self.num_rows)]

    def ended_outputs(self) -> list[tuple[int, tuple[int, ...]]]:
        """Return (prompt, output tokens) of each output that has ended. Beams do not end here."""
        return [(path.prompt, tuple(path.tokens)) for path in self._ended.values()]

    def newest_outputs(self) -> torch.Tensor:
        """Return the output tokens of each batch row that the newest step read. --> [batch rows, steps - 1] int64"""
        length = len(self._steps) - 1
        rows = [self.idle_tokens(row, length) for row in range(self.num_rows)]
        return torch.tensor(rows, dtype=torch.int64, device=self.device)

    def calls(self, rows: Iterable[tuple[TokenPath, int]]) -> list[ObjectCall]:
        """Return the calls that show every engine row once: one call, or more if rows share a batch row.

        Args:
            rows: one (path, batch row) per engine row, in order.
        """
        paths: list[TokenPath] = []
        layers: dict[int, list[dict[int, int]]] = {}
        for row, (path, batch_row) in enumerate(rows):
            paths.append(path)
            calls = layers.setdefault(path.length, [])
            free = next((call for call in calls if batch_row not in call), None)
            if free is None:
                calls.append(free := {})
            free[batch_row] = row
        return [self._call(paths, engine_rows, size) for size in sorted(layers) for engine_rows in layers[size]]

    def _call(self, paths: Sequence[TokenPath], engine_rows: dict[int, int], length: int) -> ObjectCall:
        outputs: list[list[int]] = []
        shown: list[int | None] = []
        first = {batch_row // self.rows_per_prompt: row for batch_row, row in sorted(engine_rows.items(), reverse=True)}
        for batch_row in range(self.num_rows):
            row = engine_rows.get(batch_row)
            if row is None and batch_row not in self._ended and (self.ranked or batch_row not in self._latest):
                # Beams begin as equal rows, and a prompt can have fewer beams than batch rows.
                row = first.get(batch_row // self.rows_per_prompt)
            outputs.append(self.idle_tokens(batch_row, length) if row is None else paths[row].tokens)
            shown.append(row)
        return ObjectCall(outputs, shown, engine_rows)

    def idle_tokens(self, batch_row: int, length: int) -> list[int]:
        """Return the tokens of a batch row without an engine row: its last tokens, cut or padded to the length."""
        path = (
            self._ended.get(batch_row)
            or self._latest.get(batch_row)
            or self._latest.get(batch_row - batch_row % self.rows_per_prompt)
        )
        tokens = path.at(length).tokens if path is not None else []
        return tokens + [self._pad] * (length - len(tokens))

    def ids(self, outputs: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
        """Return the caller's prompts, each followed by its outputs. --> [outputs, width + length] int64"""
        prompts = self._input_ids.repeat_interleave(len(outputs) // len(self._input_ids), dim=0)
        written = torch.tensor(outputs, dtype=torch.int64, device=device).view(len(outputs), -1)
        return torch.cat([prompts.to(device), written], dim=1)

    def row_ids(self, path: TokenPath, device: torch.device) -> torch.Tensor:
        """Return one row: the caller's padded prompt and the new tokens. --> [width + length] int64"""
        written = torch.tensor(path.tokens, dtype=torch.int64, device=device)
        return torch.cat([self._input_ids[path.prompt].to(device), written])

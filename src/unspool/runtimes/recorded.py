"""A model's plain pass, recorded once it has run often enough, and from then on replayed without the module tree.

Owns when to record, and the proof that what is replayed gives what the model gives. Knows no sequences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from unspool.runtimes.attention import attending
from unspool.runtimes.program import SIZES, Program, Size
from unspool.runtimes.tape import Tape, TapedCache, Unrecordable

Pass: TypeAlias = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(cache, ids [1, rows], positions [1, rows], keep [asked]) --> logits [asked, vocab]"""

MOST_ROWS = 64
"""What the module tree costs is nothing beside the work on more rows."""

_WARM_UP = 24
"""Passes before the recording, which costs about four, so that short texts do not pay for it."""


def patience(size: Size) -> int:
    """Return how many passes of a size to wait for before the recording is tried on one.

    The trial costs as many rows more, and what a replay saves is worth about two rows' work.
    """
    return size.rows // 2


class Recorded:
    """A pass that is run as it is until it has been recorded.

    For each number of rows, the recording is trusted once it has given exactly what the model gave. That costs a pass,
    so a size is tried only when it has come often enough to be likely to come again.

    Args:
        num_layers: of the model's cache.
        least: fewest rows, and rows of logits, for which all that is done is of the same kind.

    Attributes:
        obstacle: why the pass cannot be recorded; "" where nothing is known to stand against it.
    """

    def __init__(self, num_layers: int, least: int = 1) -> None:
        self._num_layers, self._least = num_layers, least
        self.obstacle = ""
        self._program: Program | None = None
        self._num_passes = 0
        self._proven: set[Size] = set()
        self._seen: Counter[Size] = Counter()

    def run(self, model: Pass, *given: Any) -> torch.Tensor:
        """Run the pass, which is always the same `model`. given: its arguments."""
        _, ids, _, keep = given
        size = Size(ids.shape[1], keep.shape[0])
        if self.obstacle or not self._least <= size.asked <= size.rows <= MOST_ROWS:
            return model(*given)
        if self._program is None:
            self._num_passes += 1
            if self._num_passes > _WARM_UP:
                self.record(model, ids.device)
        if self._program is None:
            return model(*given)
        if size in self._proven:
            return self._program(*given)
        self._seen[size] += 1
        if self._seen[size] <= patience(size):
            return model(*given)
        return self._prove(model, self._program, size, given)

    def record(self, model: Pass, device: torch.device) -> None:
        """Record the pass now; sets `obstacle` where that cannot be done."""
        try:
            tapes, results = zip(*(self._tape(model, size, device) for size in SIZES), strict=True)
            if results[0] != results[1]:
                raise Unrecordable("what it calls depends on the number of tokens")
            self._program = Program(tapes, results[0])
        except Unrecordable as reason:
            self.obstacle = str(reason)

    def forget(self) -> None:
        """Record anew, after the tensors that the model computes with have changed."""
        self._program, self._num_passes, self.obstacle = None, 0, ""
        self._proven.clear()
        self._seen.clear()

    def _tape(self, model: Pass, size: Size, device: torch.device) -> tuple[Any, int]:
        ids = torch.arange(size.rows, device=device)[None]
        positions = torch.arange(size.rows, device=device)[None]
        keep = torch.arange(size.asked, device=device)
        tape = Tape(ids, positions, keep)
        cache = TapedCache(tape, self._num_layers)
        with attending(cache), tape:
            result = model(cache, ids, positions, keep)
        return tape.steps, tape.number_of(result)

    def _prove(self, model: Pass, program: Program, size: Size, given: Any) -> torch.Tensor:
        """Run both, and trust the program for this size if they agree; writing the same keys twice changes nothing."""
        expected = model(*given)
        found = program(*given)
        if found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True):
            self._proven.add(size)
        else:
            self.obstacle = f"replayed, it gave other results for {size.rows} tokens"
            self._program = None
        return expected

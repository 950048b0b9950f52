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
    so a size is tried only when it has come often enough to be likely to come again. A recording that fails the trial
    gives way to the plainer one of the same calls, and that one to the model.

    Args:
        num_layers: of the model's cache.
        least: fewest rows, and rows of logits, for which all that is done is of the same kind.

    Attributes:
        obstacle: why the pass cannot be recorded; "" where nothing is known to stand against it.
    """

    def __init__(self, num_layers: int, least: int = 1) -> None:
        self._num_layers, self._least = num_layers, least
        self.obstacle = ""
        self._programs: list[Program] = []
        self._num_passes = 0
        self._proven: set[Size] = set()
        self._seen: Counter[Size] = Counter()

    def run(self, model: Pass, *given: Any) -> torch.Tensor:
        """Run the pass, which is always the same `model`. given: its arguments."""
        _, ids, _, keep = given
        size = Size(ids.shape[1], keep.shape[0])
        if self.obstacle or not self._least <= size.asked <= size.rows <= MOST_ROWS:
            return model(*given)
        if not self._programs:
            self._num_passes += 1
            if self._num_passes > _WARM_UP:
                self.record(model, ids.device)
        if not self._programs:
            return model(*given)
        if size in self._proven:
            return self._programs[0](*given)
        self._seen[size] += 1
        if self._seen[size] <= patience(size):
            return model(*given)
        return self._prove(model, size, given)

    def record(self, model: Pass, device: torch.device) -> None:
        """Record the pass now; sets `obstacle` where that cannot be done."""
        try:
            tapes, results = zip(*(self._tape(model, size, device) for size in SIZES), strict=True)
            if results[0] != results[1]:
                raise Unrecordable("what it calls depends on the number of tokens")
            best, plain = (Program(tapes, results[0], fused=fused) for fused in (True, False))
            self._programs = [plain] if best.source == plain.source else [best, plain]
        except Unrecordable as reason:
            self.obstacle = str(reason)

    def forget(self) -> None:
        """Record anew, after the tensors that the model computes with have changed."""
        self._programs, self._num_passes, self.obstacle = [], 0, ""
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

    def _prove(self, model: Pass, size: Size, given: Any) -> torch.Tensor:
        """Run both, and trust the best program that agrees for this size.

        That the same keys are written twice changes nothing.
        """
        expected = model(*given)
        while self._programs:
            if _gives(self._programs[0], given, expected):
                self._proven.add(size)
                return expected
            self._programs.pop(0)
            self._proven.clear()
        self.obstacle = f"replayed, it gave other results for {size.rows} tokens"
        return expected


def _gives(program: Program, given: Any, expected: torch.Tensor) -> bool:
    try:
        found = program(*given)
    except RuntimeError:  # shapes that do not fit
        return False
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True)

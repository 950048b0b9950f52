"""Replay of a model's forward pass: recorded after some passes, then run without the module tree.

Owns when to record, the check of a replay against the model, and the return to the model if a replay fails. Knows no
sequences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from unspool.runtimes.kv.attention import attending
from unspool.runtimes.replay.program import SIZES, Program, Size
from unspool.runtimes.replay.tracer import TracedCache, Tracer, Unrecordable

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


class Replay:
    """A forward pass that runs the model until it has been recorded, and its replay from then on.

    For each number of rows, a replay is trusted once it has given the model's exact result. That check costs a pass, so
    it runs only for a size that has come often enough to come again. A recording that fails the check gives way to the
    plainer one of the same calls, and that one to the model. If a replay raises, the model runs the same pass instead,
    and every later one.

    Args:
        num_layers: number of layers of the model's cache.
        least: fewest rows, and rows of logits, that run the same kernels as more rows do.

    Attributes:
        obstacle: why the pass is not replayed; "" if nothing is known against it.
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
        _, ids, positions, keep = given
        size = Size(ids.shape[1], keep.shape[0])
        if self.obstacle or not self._least <= size.asked <= size.rows <= MOST_ROWS:
            return model(*given)
        if not self._programs:
            self._num_passes += 1
            if self._num_passes > _WARM_UP:
                self.record(model, ids, positions)
        if not self._programs:
            return model(*given)
        if size in self._proven:
            return self._replay(model, given)
        self._seen[size] += 1
        if self._seen[size] <= patience(size):
            return model(*given)
        return self._prove(model, size, given)

    def record(self, model: Pass, ids: torch.Tensor, positions: torch.Tensor) -> None:
        """Record the pass now; set `obstacle` if that is impossible.

        Args:
            ids, positions: [1, rows] of a real pass. The recording repeats them, so that each is one the model has.
        """
        try:
            tapes, results = zip(*(self._tape(model, size, ids, positions) for size in SIZES), strict=True)
            if results[0] != results[1]:
                raise Unrecordable("what it calls depends on the number of tokens")
            best, plain = (Program(tapes, results[0], fused=fused) for fused in (True, False))
            self._programs = [plain] if best.source == plain.source else [best, plain]
        except Unrecordable as reason:
            self.obstacle = str(reason)
        except Exception as error:  # a model may refuse two tokens at one position in any way it likes
            self.obstacle = f"it does not run while it is recorded: {type(error).__name__}: {error}"

    def forget(self) -> None:
        """Record anew, after the tensors of the model have changed. An obstacle stays."""
        self._programs, self._num_passes = [], 0
        self._proven.clear()
        self._seen.clear()

    def _tape(self, model: Pass, size: Size, ids: torch.Tensor, positions: torch.Tensor) -> tuple[Any, int]:
        places = torch.arange(size.rows, device=ids.device) % ids.shape[1]
        ids, positions = ids[:, places], positions[:, places]
        keep = torch.arange(size.asked, device=ids.device)
        tracer = Tracer(ids, positions, keep)
        cache = TracedCache(tracer, self._num_layers)
        with attending(cache), tracer:
            result = model(cache, ids, positions, keep)
        return tracer.steps, tracer.number_of(result)

    def _replay(self, model: Pass, given: Any) -> torch.Tensor:
        """Run the program; if it raises, run the model from now on.

        The model writes the same keys and values into the same places of the cache, over what the program has written.
        """
        try:
            return self._programs[0](*given)
        except Exception as error:
            self._programs.clear()
            self.obstacle = f"its replay failed: {type(error).__name__}: {error}"
        return model(*given)

    def _prove(self, model: Pass, size: Size, given: Any) -> torch.Tensor:
        """Run both, and trust the best program for this size if it agrees; the next one gets its turn another time.

        The model runs last, so that the keys and values that stay are its own.
        """
        found = _result(self._programs[0], given)
        expected = model(*given)
        if found is not None and _same_bits(found, expected):
            self._proven.add(size)
            return expected
        self._programs.pop(0)
        self._proven.clear()
        if not self._programs:
            self.obstacle = f"replayed, it gave other results for {size.rows} tokens"
        return expected


def _same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True)


def _result(program: Program, given: Any) -> torch.Tensor | None:
    """Return what a program gives; None if it raises, for its calls can raise anything that the model's can."""
    try:
        return program(*given)
    except Exception:
        return None

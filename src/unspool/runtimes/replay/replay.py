"""Replay of a model's forward pass: recorded after some passes, then run without the module tree.

Owns when to record, the check of a replay against the model, and the return to the model if a replay fails. Knows no
sequences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeAlias

import torch

from unspool.runtimes.kv.attention import attending
from unspool.runtimes.replay.operators import Unrecordable
from unspool.runtimes.replay.program import SIZES, Program, Size
from unspool.runtimes.replay.tracer import TracedCache, Tracer
from unspool.runtimes.weights.invariant_calls import InvariantCalls
from unspool.tuning import REPLAY_MAX_ROWS, REPLAY_MIN_PASSES

Pass: TypeAlias = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(cache, ids [1, rows], positions [1, rows], keep [asked]) --> logits [asked, vocab]"""


def patience(size: Size) -> int:
    """Return how many passes of a size run before its replay is verified.

    The check costs as many rows again, and a replay saves about two rows' work per pass.
    """
    return size.rows // 2


class Replay:
    """A forward pass that runs the model until it is recorded, and its replay from then on.

    For each size, a replay is trusted once it has given the model's exact logits. That check costs a pass, so it runs
    only for sizes that are likely to come again. If a replay gives other logits, or raises, the model runs this pass
    and every later one.

    Args:
        num_layers: number of layers of the model's cache.
        calls: the mode that the model runs in. A replay calls the functions that the mode calls. None for no mode.

    Attributes:
        obstacle: why the pass is not replayed; "" if no reason is known.
    """

    def __init__(self, num_layers: int, calls: InvariantCalls | None = None) -> None:
        self._num_layers, self._calls = num_layers, calls
        self.obstacle = ""
        self._program: Program | None = None
        self._num_passes = 0
        self._verified: set[Size] = set()
        self._seen: Counter[Size] = Counter()

    def run(self, model: Pass, *given: Any) -> torch.Tensor:
        """Run the pass. model: always the same function. given: its arguments."""
        _, ids, positions, keep = given
        size = Size(ids.shape[1], keep.shape[0])
        if self.obstacle or not 1 <= size.asked <= size.rows <= REPLAY_MAX_ROWS:
            return self._run_model(model, given)
        if self._program is None:
            self._num_passes += 1
            if self._num_passes > REPLAY_MIN_PASSES:
                self.record(model, ids, positions)
        if self._program is None:
            return self._run_model(model, given)
        self._seen[size] += 1
        if size not in self._verified and self._seen[size] <= patience(size):
            return self._run_model(model, given)
        return self._replay(self._program, model, size, given)

    def record(self, model: Pass, ids: torch.Tensor, positions: torch.Tensor) -> None:
        """Record the pass now; set `obstacle` if that is impossible.

        Args:
            ids, positions: [1, rows] of a real pass. The recording repeats them, so that the model knows each of them.
        """
        try:
            traces = (self._trace(model, size, ids, positions) for size in SIZES)
            self._program = Program(*traces, rewritten=None if self._calls is None else self._calls.rewritten)
        except Unrecordable as reason:
            self.obstacle = str(reason)
        except Exception as error:  # a model can refuse two tokens at one position in any way
            self.obstacle = f"it does not run while it is recorded: {type(error).__name__}: {error}"

    def forget(self) -> None:
        """Record anew, after the tensors of the model have changed. An obstacle stays."""
        self._program, self._num_passes = None, 0
        self._verified.clear()
        self._seen.clear()

    def _trace(self, model: Pass, size: Size, ids: torch.Tensor, positions: torch.Tensor) -> Tracer:
        columns = torch.arange(size.rows, device=ids.device) % ids.shape[1]
        ids, positions = ids[:, columns], positions[:, columns]
        keep = torch.arange(size.asked, device=ids.device)
        tracer = Tracer(ids, positions, keep)
        cache = TracedCache(tracer, self._num_layers)
        with attending(cache), tracer:
            result = model(cache, ids, positions, keep)
        tracer.finish(result)
        return tracer

    def _replay(self, program: Program, model: Pass, size: Size, given: Any) -> torch.Tensor:
        """Run the program; verify its logits if its size is not trusted yet.

        The model can always run behind the program: it writes the same keys and values to the same positions.
        """
        try:
            found = program(*given)
        except Exception as error:
            self._stop(f"its replay failed: {type(error).__name__}: {error}")
            return self._run_model(model, given)
        if size in self._verified:
            return found
        expected = self._run_model(model, given)
        if _are_identical(found, expected):
            self._verified.add(size)
        else:
            self._stop(f"replayed, it gave other results for {size.rows} tokens")
        return expected

    def _run_model(self, model: Pass, given: Any) -> torch.Tensor:
        with nullcontext() if self._calls is None else self._calls:
            return model(*given)

    def _stop(self, reason: str) -> None:
        self.obstacle, self._program = reason, None
        self._verified.clear()


def _are_identical(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True)

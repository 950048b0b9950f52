"""Replay of a model's forward pass: recorded after some passes, then run without the module tree.

Owns when to record, the check of a replay against the model, and the return to the model if a replay fails. Knows no
sequences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable
from contextlib import nullcontext
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from unspool.runtimes.replay.graph_function import are_identical
from unspool.runtimes.replay.operators import Unrecordable
from unspool.runtimes.replay.program import Program
from unspool.runtimes.replay.tracer import Tracer
from unspool.runtimes.weights.invariant_calls import InvariantCalls
from unspool.tuning import REPLAY_MAX_ROWS, REPLAY_MIN_PASSES


class ReplayedPass(Protocol):
    """One pass of a backend. The model can run behind a replay that failed, with the same result.

    cache_calls: methods of the cache that attend by a kernel; see `SlotCache.kernel_call`.
    """

    cache_calls: ClassVar[Collection[str]]

    @property
    def rows(self) -> int:
        """Number of tokens that the pass reads."""
        ...

    @property
    def size(self) -> Hashable:
        """The size of the pass. A replay is trusted size by size."""
        ...

    def model(self) -> Any:
        """Run the model. Returns a tensor, or a tuple of tensors."""
        ...

    def inputs(self) -> tuple[Any, ...]:
        """Return the arguments of the program, which can change those tensors that the trace declares as written."""
        ...

    def trace(self, number: int) -> Tracer:
        """Trace the pass in the first size (0) or the second size (1) of two, over the tokens of this pass.

        Raises:
            Unrecordable: if a list of calls cannot repeat it.
        """
        ...


class StepSize(NamedTuple):
    """Size of a traced step of one token per row. rows: number of sequences. start, stop: tokens of each around it."""

    rows: int
    start: int
    stop: int


# A pair of numbers names one kind of size: no pair is a multiple of two kinds.
STEP_SIZES: Final = (StepSize(11, 5, 6), StepSize(13, 7, 8))


def patience(rows: int) -> int:
    """Return how many passes of a size run before its replay is verified.

    The check costs as many rows again, and a replay saves about two rows' work per pass.
    """
    return rows // 2


class Replay:
    """Passes that run the model until they are recorded, and their replay from then on.

    For each size, a replay is trusted once it has given the model's exact results. That check costs a pass, so it runs
    only for sizes that are likely to come again. If a replay gives other results, or raises, the model runs this pass.
    After a program with fused operators comes a plain one; if that fails too, the model runs every later pass.

    Args:
        calls: the mode that the model runs in. A replay calls the functions that the mode calls. None for no mode.
        version: returns the number of changes of the model's tensors. After a change, passes are recorded anew.
            None if the tensors never change.

    Attributes:
        obstacle: why passes are not replayed; "" if no reason is known.
    """

    def __init__(self, calls: InvariantCalls | None = None, *, version: Callable[[], int] | None = None) -> None:
        self._calls = calls
        self._version = version or (lambda: 0)
        self._recorded_version = self._version()
        self.obstacle = ""
        self._fuses = True
        self._program: Program | None = None
        self._num_passes = 0
        self._verified: set[Hashable] = set()
        self._seen: Counter[Hashable] = Counter()

    def waits(self, rows: int) -> bool:
        """Return True, and count the pass, if `run` would only run the model: it is too early to record.

        A caller can then run the model by simpler means.
        """
        self._follow_version()
        waits = self._program is None and self._num_passes < REPLAY_MIN_PASSES and rows <= REPLAY_MAX_ROWS
        self._num_passes += waits
        return waits

    def _follow_version(self) -> None:
        if self._recorded_version != (version := self._version()):
            self.forget()
            self._recorded_version = version

    def run(self, each: ReplayedPass) -> Any:
        """Run a pass. Returns the results of the model."""
        self._follow_version()
        if self.obstacle or each.rows > REPLAY_MAX_ROWS:
            return self._model(each)
        if self._program is None:
            self._num_passes += 1
            if self._num_passes > REPLAY_MIN_PASSES:
                self.record(each)
        if self._program is None:
            return self._model(each)
        size = each.size
        if size in self._verified:
            return self._replayed(self._program, each)
        self._seen[size] += 1
        return self._model(each) if self._seen[size] <= patience(each.rows) else self._verify(self._program, each)

    def record(self, each: ReplayedPass) -> None:
        """Record the pass now; set `obstacle` if that is impossible."""
        try:
            rewritten = None if self._calls is None else self._calls.rewritten
            first, second = each.trace(0), each.trace(1)
            self._program = Program(first, second, rewritten=rewritten, fuses=self._fuses, cache_calls=each.cache_calls)
        except Unrecordable as reason:
            self.obstacle = str(reason)
        except Exception as error:  # a model can refuse two tokens at one position in any way
            self.obstacle = f"it does not run while it is recorded: {type(error).__name__}: {error}"

    def forget(self) -> None:
        """Record anew, after the tensors of the model have changed. An obstacle stays."""
        self._program, self._num_passes = None, 0
        self._verified.clear()
        self._seen.clear()

    def _replayed(self, program: Program, each: ReplayedPass) -> Any:
        try:
            return program(*each.inputs())
        except Exception as error:
            self._stop(f"its replay failed: {type(error).__name__}: {error}")
            return self._model(each)

    def _verify(self, program: Program, each: ReplayedPass) -> Any:
        """Run the program and the model; trust the size from now on if the results are the same."""
        found = self._replayed(program, each)
        if self._program is None:
            return found
        expected = self._model(each)
        if are_identical(found, expected):
            self._verified.add(each.size)
        else:
            self._stop(f"replayed, it gave other results for {each.rows} tokens")
        return expected

    def _model(self, each: ReplayedPass) -> Any:
        with nullcontext() if self._calls is None else self._calls:
            return each.model()

    def _stop(self, reason: str) -> None:
        """Drop the program. After a fused program comes a plain one, and after a plain program the model."""
        has_fused = self._program is not None and self._program.num_fused > 0
        self.obstacle = "" if has_fused else reason
        self._fuses, self._program = False, None
        self._verified.clear()
        self._seen.clear()

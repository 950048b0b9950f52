"""Autotuning of linear layers: the fastest form per shape and the number of streams, from times on this machine.

Owns the environment variables `UNSPOOL_LINEAR` and `UNSPOOL_AUTOTUNE`, the decision, and the time that trials can take.
Knows shapes, dtypes and threads. Does not know modules.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Final, Literal, TypeAlias, cast, get_args

import torch

from unspool.errors import OptionError
from unspool.kernels.library import kernels
from unspool.kernels.packed import set_streams
from unspool.runtimes.weights.trial import Form, Shape, Times, Trial
from unspool.runtimes.weights.tuning_file import TuningFile
from unspool.tuning import CLEARLY_FASTER, LARGEST_TRIAL, SMALLEST_TRIAL, TRIAL_PASSES, TUNING_SECONDS

Choice: TypeAlias = Literal["auto", "plain", "native"]

VARIABLE: Final = "UNSPOOL_LINEAR"
"""Environment variable, a `Choice`: "auto" takes the fastest form of each layer; the others force one form for all."""

AUTOTUNE: Final = "UNSPOOL_AUTOTUNE"
"""Environment variable: 0 turns autotuning off, so that large layers stay plain; 1 turns it on; not set is 1."""

_USUAL_TRIAL: Final = 0.3
"""The seconds that a trial is expected to take. Later trials are expected to take as long as the longest one."""


def choice() -> Choice:
    """Return the value of the environment variable `UNSPOOL_LINEAR`; "auto" if it is not set.

    Raises:
        OptionError: if its value is not allowed.
    """
    given = os.environ.get(VARIABLE) or "auto"
    if given not in get_args(Choice):
        raise OptionError(VARIABLE, given, f"must be one of {', '.join(get_args(Choice))}", 'unset it for "auto"')
    return cast(Choice, given)


def is_small(in_features: int, out_features: int) -> bool:
    """Return whether a layer is too small for a trial."""
    return in_features * out_features < SMALLEST_TRIAL


def shape_of(in_features: int, out_features: int, dtype: torch.dtype) -> Shape:
    """Return the shape to time for a layer, with the current number of threads. Very large layers are cut."""
    most = max(1, LARGEST_TRIAL // in_features)
    return Shape(in_features, min(out_features, most), dtype, torch.get_num_threads())


def best_forms(shapes: Iterable[Shape]) -> dict[Shape, Form]:
    """Return the form of each shape: the forced one, else the fastest. New shapes are timed if there is time left.

    Trials take at most `TUNING_SECONDS` on a machine, in all processes together. The first shape of a dtype and thread
    count is timed even after that. A shape without times has the form of the most similar shape of its kind.

    Args:
        shapes: of large layers that can be packed; see `is_small`.

    Raises:
        OptionError: if the value of an environment variable is not allowed.
    """
    wanted = list(dict.fromkeys(shapes))
    forced = choice()
    if wanted and forced != "plain":
        choose_streams()
    if forced != "auto":
        return dict.fromkeys(wanted, forced)
    if not is_autotuned():
        return dict.fromkeys(wanted, "plain")
    tune(wanted, tuning_file())
    return {shape: _form_of(shape, tuning_file()) for shape in wanted}


def choose_streams(*, again: bool = False) -> None:
    """Read packed weights in the number of streams that is fastest here, timed once per machine and number of threads.

    Nothing changes without kernels, or if `UNSPOOL_AUTOTUNE` is 0.

    Args:
        again: True to time a known number of threads too, whatever `UNSPOOL_AUTOTUNE` is.
    """
    if kernels() is None or not (again or is_autotuned()):
        return
    file, threads = tuning_file(), torch.get_num_threads()
    if again or threads not in file.streams:
        with _trials(file, again=again) as trial:
            file.streams[threads] = trial.streams()
    set_streams(fastest_streams(file.streams[threads]))


def fastest_streams(seconds: Mapping[int, float]) -> int:
    """Return the number of streams with the least time. Noise changes no result, so that a small gain is enough."""
    return min(seconds, key=seconds.__getitem__)


@cache
def tuning_file() -> TuningFile:
    """Return the times of this machine, read once per process."""
    return TuningFile()


def tune(
    shapes: Iterable[Shape], file: TuningFile, *, again: bool = False, tell: Callable[[Shape], None] | None = None
) -> None:
    """Time shapes and keep the times: for this process only if other programs disturbed them, unless `again`.

    Args:
        shapes: to time.
        file: the known times, which grow.
        again: True to time known shapes too, for as long as it takes; False for unknown ones within the time limit.
        tell: called before each shape; None for no call.
    """
    # The largest ones first: they take most of the time of a step.
    pending = sorted(
        (shape for shape in shapes if again or shape not in file.times),
        key=lambda shape: shape.in_features * shape.out_features,
        reverse=True,
    )
    known = {_kind(shape) for shape in file.times}
    if not again and file.seconds >= TUNING_SECONDS:
        pending = [shape for shape in pending if _kind(shape) not in known]
    if not pending:
        return
    end = math.inf if again else time.perf_counter() + TUNING_SECONDS - file.seconds
    longest = _USUAL_TRIAL
    with _trials(file, again=again) as trial:
        for shape in pending:
            before, is_first = time.perf_counter(), _kind(shape) not in known
            if before + longest > end and not is_first:
                continue
            if tell is not None:
                tell(shape)
            file.times[shape] = trial.times(shape, until=math.inf if is_first else end)
            known.add(_kind(shape))
            longest = max(longest, time.perf_counter() - before)


@contextmanager
def _trials(file: TuningFile, *, again: bool) -> Iterator[Trial]:
    """Yield a trial. Its time counts if `again` is False. Disturbed times are written only if `again` is True."""
    started, trial = time.perf_counter(), Trial()
    yield trial
    if not again:
        file.seconds += time.perf_counter() - started
    if again or not trial.was_disturbed:
        file.write()


def is_autotuned() -> bool:
    """Return whether `UNSPOOL_AUTOTUNE` allows autotuning.

    Raises:
        OptionError: if it is neither 0 nor 1.
    """
    given = os.environ.get(AUTOTUNE) or "1"
    if given not in ("0", "1"):
        raise OptionError(AUTOTUNE, given, "must be 0 or 1", "unset it for 1")
    return given == "1"


def _kind(shape: Shape) -> tuple[torch.dtype, int]:
    """Return the facts that shapes must share to be compared."""
    return shape.dtype, shape.threads


def _form_of(shape: Shape, file: TuningFile) -> Form:
    alike = [known for known in file.times if _kind(known) == _kind(shape)]
    return fastest(file.times[min(alike, key=lambda known: _distance(known, shape))])


def _distance(one: Shape, other: Shape) -> float:
    """Return how much two shapes differ: the sum of the differences of the logarithms of their sides."""
    pairs = ((one.in_features, other.in_features), (one.out_features, other.out_features))
    return sum(abs(math.log(first / second)) for first, second in pairs)


def fastest(times: Times) -> Form:
    """Return the native form if it is clearly faster than the plain one in a usual mix of passes, else the plain one.

    The mix has `TRIAL_PASSES` passes of each number of rows. So a small loss with one row does not outweigh a large
    gain with more.
    """
    seconds = {
        form: sum(count * each for count, each in zip(TRIAL_PASSES, found, strict=True))
        for form, found in times.items()
    }
    return "native" if seconds["native"] <= CLEARLY_FASTER * seconds["plain"] else "plain"

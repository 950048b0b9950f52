"""Segments: the parts of a window's output between two timestamps, and the start of the next window.

Owns: cutting an output at its timestamps. Does not know: the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

TIME_PRECISION: Final = 0.02
"""Seconds per timestamp token."""

FRAME_SECONDS: Final = 0.01
"""Seconds per frame of features."""


class Segment(NamedTuple):
    """A part of a transcript.

    start, end: in seconds from the start of the audio. offset: the start of its window, in the same. token_ids: without
    the end token, with its timestamps. first, last: it is tokens [first, last) of its window's output. decoded: the
    window's result.
    """

    start: float
    end: float
    offset: float
    token_ids: tuple[int, ...]
    first: int
    last: int
    decoded: Any


class Cut(NamedTuple):
    """A window's output in segments. num_frames: how many frames of the window are done."""

    segments: list[Segment]
    num_frames: int


def cut_into_segments(
    tokens: Sequence[int],
    *,
    begin: int | None,
    offset: float,
    num_frames: int,
    frames_per_position: int,
    decoded: Any,
    time_precision: float = TIME_PRECISION,
    frame_seconds: float = FRAME_SECONDS,
) -> Cut:
    """Cut the output of a window at its pairs of timestamps.

    If the output ends in the middle of a segment, that segment is dropped, and the next window begins at its start.

    Args:
        tokens: without the end token.
        begin: the first timestamp token; None without any.
        offset: seconds before the window.
        num_frames: frames of audio in the window.
        frames_per_position: frames per timestamp token.
        decoded: kept in the segments.

    Source: Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision, section 3.8.
    """
    marks = [begin is not None and token >= begin for token in tokens]
    ends = [place + 1 for place in range(len(tokens) - 1) if marks[place] and marks[place + 1]]
    if begin is None or not ends:
        end = offset + _end_of_one(tokens, marks, begin, num_frames, time_precision, frame_seconds) * time_precision
        return Cut([Segment(offset, end, offset, tuple(tokens), 0, len(tokens), decoded)], num_frames)
    is_complete = marks[-2:] == [False, True]
    if is_complete:
        ends.append(len(tokens))
    else:
        ends[-1] += 1  # the second timestamp of the last pair shows that the segment is closed
    segments = []
    for first, last in zip([0, *ends], ends):  # noqa: B905 (one more start than ends)
        times = (tokens[first], tokens[last - (1 if last < ends[-1] or is_complete else 2)])
        start, end = (offset + (time - begin) * time_precision for time in times)
        segments.append(Segment(start, end, offset, tuple(tokens[first:last]), first, last, decoded))
    if is_complete:
        return Cut(segments, num_frames)
    done = (tokens[ends[-1] - 2] - begin) * frames_per_position
    return Cut(segments, done if done > 0 else num_frames)


def _end_of_one(
    tokens: Sequence[int],
    marks: Sequence[bool],
    begin: int | None,
    num_frames: int,
    time_precision: float,
    frame_seconds: float,
) -> int:
    """Return the end of an output without pairs, in timestamp tokens: its last timestamp, else the window's end."""
    last = next((token for token, mark in zip(reversed(tokens), reversed(marks), strict=True) if mark), begin)
    if last != begin and last is not None and begin is not None:
        return last - begin
    # In float32 as in transformers: for some lengths the quotient rounds to just below a whole number.
    return int(np.float32(num_frames) * np.float32(frame_seconds) / np.float32(time_precision))

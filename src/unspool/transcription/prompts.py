"""The decoder prompt of a window: the text before it, then the start tokens.

Owns: which text precedes a window. Does not know: how the start tokens are found.
"""

from __future__ import annotations

from collections.abc import Sequence

from unspool.source_info import Speech
from unspool.transcription.settings import TranscriptSettings


def window_prompt(
    start: Sequence[int],
    history: Sequence[Sequence[int]],
    settings: TranscriptSettings,
    speech: Speech,
    *,
    conditions: bool,
    max_length: int,
) -> tuple[int, ...]:
    """Return the decoder prompt of a window.

    Args:
        start: the start tokens.
        history: the tokens of all segments before, `prompt_ids` of the first segment included.
        conditions: True if the text before belongs into the prompt.
        max_length: tokens that the decoder can hold. The text before takes at most half of them.
    """
    if not conditions or not history:
        return (*settings.prompt_ids, *start)
    keeps_prompt = settings.prompt_ids and settings.prompt_condition_type == "all-segments"
    before = settings.prompt_ids if keeps_prompt else () if speech.previous is None else (speech.previous,)
    text = [token for segment in history for token in _without_repeated_end(segment, speech)]
    return (*before, *text[-(max_length // 2 - 1) :], *start)


def first_history(settings: TranscriptSettings, speech: Speech) -> list[tuple[int, ...]]:
    """Return the text before the first window: `prompt_ids` without its first token, if they count as such text."""
    ids = settings.prompt_ids
    if not ids or settings.prompt_condition_type != "first-segment":
        return []
    return [ids[1:] if ids[0] == speech.previous else ids]


def _without_repeated_end(segment: Sequence[int], speech: Speech) -> Sequence[int]:
    """Return a segment with one timestamp at its end, if it ends in two."""
    if speech.no_timestamps is not None and len(segment) > 2 and segment[-2] > speech.no_timestamps:
        return segment[:-1]
    return segment

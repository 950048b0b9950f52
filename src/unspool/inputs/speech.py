"""The decoder prompt of a transcript: Whisper's language and task tokens, and language detection.

Knows no audio. Runs one pass of the model if the language must be detected.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from unspool.engine.locked_runtime import locked
from unspool.protocols import Runtime
from unspool.source_info import Speech
from unspool.types import Feed, Source

_DETECTIONS = itertools.count(-2, -1)


def transcript_prompt(
    source: Source, speech: Speech, language: str | None, task: str | None, runtime: Callable[[], Runtime]
) -> tuple[int, ...]:
    """Return what the transcript of a source begins with; the language is found out where nobody names it.

    Args:
        language, task: as in Speech.prompt.
        runtime: returns what runs the model; called only where the language has to be found out.

    Raises:
        OptionError: as Speech.prompt.
    """
    prompt = speech.prompt(language, task)
    if None in prompt:
        found = detect_language(locked(runtime()), source, speech)
        return tuple(found if token is None else token for token in prompt)
    return tuple(token for token in prompt if token is not None)


def detect_language(runtime: Runtime, source: Source, speech: Speech) -> int:
    """Return the id of the language that the model hears: the likeliest to follow its first token.

    Reads the source once; the sequence is released again.

    Source: Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision, section 2.3.
    """
    seq = next(_DETECTIONS)
    try:
        logits = runtime.forward([Feed(seq=seq, tokens=(speech.start,), asked=(0,), source=source)]).logits[0]
    finally:
        runtime.release(seq)
    return max(speech.languages.values(), key=lambda token: float(logits[token]))

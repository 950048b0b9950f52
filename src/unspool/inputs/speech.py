"""The decoder prompt of a transcript: Whisper's language and task tokens, and language detection.

Runs one pass of the model if the language must be detected. Does not read audio itself.
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
    source: Source,
    speech: Speech,
    language: str | None,
    task: str | None,
    runtime: Callable[[], Runtime],
    *,
    timestamps: bool = False,
) -> tuple[int, ...]:
    """Return the decoder's prompt for a source. Detects the language if neither the call nor the model names one.

    Args:
        source: the audio.
        speech: the model's stored prompt.
        language, task, timestamps: as in Speech.prompt.
        runtime: returns the model's runtime; called only if the language must be detected.

    Raises:
        OptionError: if the model does not know the language or the task.
    """
    prompt = speech.prompt(language, task, timestamps=timestamps)
    if None in prompt:
        found = detect_language(locked(runtime()), source, speech)
        return tuple(found if token is None else token for token in prompt)
    return tuple(token for token in prompt if token is not None)


def detect_language(runtime: Runtime, source: Source, speech: Speech) -> int:
    """Return the token id of the source's language: the most probable language token after the start token.

    Releases the sequence afterwards. The runtime keeps the encoded source for a request with the same source.

    Source: Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision, section 2.3.
    """
    seq = next(_DETECTIONS)
    try:
        logits = runtime.forward([Feed(seq=seq, tokens=(speech.start,), asked=(0,), source=source)]).logits[0]
    finally:
        runtime.release(seq)
    return max(speech.languages.values(), key=lambda token: float(logits[token]))

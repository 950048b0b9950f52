"""Transcript: the text of an audio in segments with times.

Owns: the values and their JSON form. Does not know: how they were computed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from unspool.results.json_text import JsonText


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptSegment:
    """A part of a transcript.

    start, end: in seconds from the start of the audio. text: without timestamps; empty without a tokenizer. token_ids:
    with timestamp tokens. token_times: the start of each token, in seconds from the start of the audio; None unless
    requested. The other fields describe the window of the segment, which can have several segments: mean_logprob: mean
    log-probability per token, after the processors and before temperature. compression_ratio: of its token ids.
    no_speech_prob: probability of "no speech"; NaN if the model lacks a token for it. temperature: of its last attempt;
    None for the decoding options as they are.
    """

    start: float
    end: float
    text: str
    token_ids: tuple[int, ...]
    token_times: tuple[float, ...] | None
    mean_logprob: float
    compression_ratio: float
    no_speech_prob: float
    temperature: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript(JsonText):
    """The transcript of one audio.

    text: of all segments. segments: in the order of the audio. language: its code, such as "en"; None if the model has
    one language.
    """

    text: str
    segments: tuple[TranscriptSegment, ...]
    language: str | None

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; non-finite numbers become None."""
        found = asdict(self)
        for segment in found["segments"]:
            for name, value in segment.items():
                if isinstance(value, float) and not math.isfinite(value):
                    segment[name] = None
                elif isinstance(value, tuple):
                    segment[name] = list(value)
        return {**found, "segments": list(found["segments"])}

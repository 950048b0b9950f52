"""The quality of a window's output: must it be tried again, or is the window silent?

Owns: the measures and the decision. Does not know: the model.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Literal, TypeAlias

from unspool.transcription.settings import TranscriptSettings

Verdict: TypeAlias = Literal["good", "again", "silence"]


def compression_ratio(tokens: Sequence[int], vocab_size: int) -> float:
    """Return by which factor zlib compresses token ids; repetitions compress well.

    Source: transformers, `WhisperGenerationMixin._retrieve_compression_ratio`.
    """
    width = int(math.log2(vocab_size) / 8) + 1
    data = b"".join(token.to_bytes(width, "little") for token in tokens)
    return len(data) / len(zlib.compress(data))


def judge(
    settings: TranscriptSettings,
    *,
    ratio: float | None,
    mean_logprob: float | None,
    no_speech_prob: float | None,
) -> Verdict:
    """Return whether an output is good, must be tried again at the next temperature, or comes from a silent window.

    Args:
        ratio: its compression ratio. mean_logprob: per token. no_speech_prob: of its window. Each can be None if its
            threshold is.
    """
    is_improbable = _is_below(mean_logprob, settings.logprob_threshold)
    if is_improbable and _is_below(settings.no_speech_threshold, no_speech_prob):
        return "silence"
    repeats = _is_below(settings.compression_ratio_threshold, ratio)
    return "again" if is_improbable or repeats else "good"


def _is_below(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and low < high

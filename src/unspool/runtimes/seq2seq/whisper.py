"""The stored prompt of a Whisper model: its languages, tasks and forced tokens."""

from __future__ import annotations

import itertools
from typing import Any

from unspool.source_info import Speech


def speech_of(model: Any, start: int | None) -> Speech | None:
    """Return the stored prompt of a Whisper model; None for any other model.

    Args:
        model: a transformers model.
        start: its decoder start token.
    """
    if model.config.model_type != "whisper" or start is None:
        return None
    generation = model.generation_config
    stored = getattr(generation, "forced_decoder_ids", None) or getattr(model.config, "forced_decoder_ids", None) or ()
    follow = dict(stored)
    return Speech(
        start=start,
        stored=tuple(follow[place] for place in itertools.takewhile(follow.__contains__, itertools.count(1))),
        languages=dict(getattr(generation, "lang_to_id", None) or {}),
        tasks=dict(getattr(generation, "task_to_id", None) or {}),
        no_timestamps=getattr(generation, "no_timestamps_token_id", None),
        language=_name(getattr(generation, "language", None)),
        task=_name(getattr(generation, "task", None)),
        previous=_previous(generation),
        max_initial_timestamp=getattr(generation, "max_initial_timestamp_index", None),
        sums_timestamps=getattr(generation, "_detect_timestamp_from_logprob", True),
        alignment_heads=tuple((layer, head) for layer, head in getattr(generation, "alignment_heads", None) or ()),
        frames_per_position=frames_per_position(model),
        median_filter_width=model.config.median_filter_width,
    )


def frames_per_position(model: Any) -> int:
    """Return how many feature frames one position of a Whisper encoder's output covers."""
    encoder = model.get_encoder()
    return int(encoder.conv1.stride[0] * encoder.conv2.stride[0])


def _previous(generation: Any) -> int | None:
    """Return the token before the text of previous windows. Older checkpoints store it among the suppressed tokens."""
    stored = getattr(generation, "prev_sot_token_id", None)
    suppressed: list[int] = list(getattr(generation, "suppress_tokens", None) or ())
    return suppressed[-2] if stored is None and len(suppressed) > 1 else stored


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) else None

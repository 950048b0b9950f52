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
    )


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) else None

"""TranscriptSettings: the options of a transcription beside those of decoding, checked.

Owns: their ranges and how they exclude each other. Does not know: the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final

from unspool.errors import OptionError

PROMPT_CONDITIONS: Final = ("first-segment", "all-segments")


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptSettings:
    """The options of a transcription. Each has the name and the meaning of transformers' argument.

    return_timestamps: True to write timestamps, which cut the output into segments.
    return_token_timestamps: True to give each token a time by the model's cross-attention.
    temperature: sampling temperatures, tried in this order; 0 is greedy or beam search. None for the decoding options
        as they are.
    compression_ratio_threshold: an output is tried again if zlib compresses its ids by a greater factor, at the next
        temperature; None for no limit.
    logprob_threshold: an output with a lower mean log-probability per token is tried again; None for no limit.
    no_speech_threshold: a window is skipped if its probability of "no speech" is greater and its mean log-probability
        is below `logprob_threshold`; in [0, 1], None to skip none.
    condition_on_prev_tokens: True to put the text of the windows before into the prompt, unless the last one was
        written at a temperature of 0.5 or more.
    prompt_ids: token ids before the decoder prompt, such as names that occur; empty for none.
    prompt_condition_type: "first-segment" counts `prompt_ids` as text before the first window; "all-segments" keeps
        them before every window, with `condition_on_prev_tokens`.
    """

    return_timestamps: bool = False
    return_token_timestamps: bool = False
    temperature: tuple[float, ...] | None = None
    compression_ratio_threshold: float | None = None
    logprob_threshold: float | None = None
    no_speech_threshold: float | None = None
    condition_on_prev_tokens: bool = False
    prompt_ids: tuple[int, ...] = ()
    prompt_condition_type: str = PROMPT_CONDITIONS[0]

    def __post_init__(self) -> None:
        for name in ("return_timestamps", "return_token_timestamps", "condition_on_prev_tokens"):
            if not isinstance(value := getattr(self, name), bool):
                raise OptionError(name, value, "must be True or False", "leave it out for the default")
        for name in ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold"):
            if (value := getattr(self, name)) is not None and not _is_number(value):
                raise OptionError(name, value, "must be a number", "leave it out for no limit")
        if self.no_speech_threshold is not None and self.logprob_threshold is None:
            allowed = "needs `logprob_threshold`: only windows below it can be silent"
            raise OptionError("no_speech_threshold", self.no_speech_threshold, allowed, "give both, such as -1.0")
        if self.prompt_condition_type not in PROMPT_CONDITIONS:
            allowed = f"must be {PROMPT_CONDITIONS[0]!r} or {PROMPT_CONDITIONS[1]!r}"
            raise OptionError("prompt_condition_type", self.prompt_condition_type, allowed, "leave it out")
        if self.prompt_condition_type == "all-segments" and not self.condition_on_prev_tokens:
            allowed = "needs `condition_on_prev_tokens`"
            raise OptionError("prompt_condition_type", "all-segments", allowed, "set condition_on_prev_tokens=True")


def read_temperatures(given: Any) -> tuple[float, ...] | None:
    """Return the temperatures of an option: a number, or a list of numbers; None if it is not given.

    Raises:
        OptionError: if it is neither, is empty, or holds a negative number.
    """
    if given is None:
        return None
    several = tuple(given) if isinstance(given, list | tuple) else (given,)
    if not several or not all(_is_number(each) and each >= 0 for each in several):
        allowed = "must be a number of at least 0, or a list of them"
        raise OptionError("temperature", given, allowed, "such as (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)")
    return tuple(float(each) for each in several)


def read_prompt_ids(given: Any) -> tuple[int, ...]:
    """Return `prompt_ids` as token ids; empty for None.

    Raises:
        OptionError: if it is not one row of token ids.
    """
    ids = given.tolist() if hasattr(given, "tolist") else given
    if ids is None:
        return ()
    if not isinstance(ids, Sequence) or isinstance(ids, str) or not all(isinstance(each, int) for each in ids):
        shown = f"shape {tuple(given.shape)}" if hasattr(given, "shape") else given
        allowed = "must be one row of token ids"
        raise OptionError("prompt_ids", shown, allowed, "such as processor.get_prompt_ids(text)")
    return tuple(map(int, ids))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)

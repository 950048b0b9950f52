"""Reads the arguments of a call on a Whisper model that transcribes window by window.

Owns: which calls need windows, and the origin of each setting. Does not know: decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from unspool.config.foreign import is_set
from unspool.errors import OptionError, PromptError
from unspool.interop.arguments import Arguments
from unspool.interop.encoders import sort_inputs
from unspool.interop.own_forward import STATES
from unspool.source_info import SourceInfo
from unspool.transcription.segments import FRAME_SECONDS, TIME_PRECISION
from unspool.transcription.settings import TranscriptSettings, read_prompt_ids, read_temperatures

_THRESHOLDS: Final = ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold")
_BY_WINDOW: Final = (
    *_THRESHOLDS,
    "return_timestamps",
    "condition_on_prev_tokens",
    "return_token_timestamps",
    "return_segments",
    "prompt_ids",
    "monitor_progress",
)
"""Settings that a single output cannot honor."""

_UNREAD: Final = {
    "num_segment_frames": "is not read: the model reads windows of one length",
    "num_frames": "is not read: `attention_mask` says how many frames of each row count",
}
"""Settings that transformers accepts and ignores: name --> reason."""


_ROWS: Final = ("input_ids", "encoder_input", "attention_mask")
"""Arguments with one row per audio, beside those of the encoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowedCall:
    """A call that transcribes window by window.

    arguments: without `temperature` and `num_return_sequences`. settings: of the transcription. features: [rows, mel
    bins, frames]. num_frames: per row, the frames that count. audible: per row, the frames under the attention mask;
    None without a mask. start_ids: the caller's decoder prompt for the first window, or None. repeats: outputs per row.
    returns_segments, returns_dict, unique: as transformers' `return_segments`, `return_dict_in_generate` and
    `force_unique_generate_call`. states: the requested names of STATES. time_precision: seconds per timestamp.
    frame_seconds: seconds per frame. monitor: gets [rows, 2], the current and the last frame, before each window.
    """

    arguments: Arguments
    settings: TranscriptSettings
    features: torch.Tensor
    num_frames: tuple[int, ...]
    audible: tuple[int, ...] | None
    start_ids: Any
    repeats: int
    returns_segments: bool
    returns_dict: bool
    unique: bool
    states: tuple[str, ...]
    time_precision: float
    frame_seconds: float
    monitor: Callable[[torch.Tensor], object] | None

    @property
    def is_whole(self) -> bool:
        """True if the result is an output class with one window per row; False for transcripts and segments."""
        return self.returns_dict and (self.unique or not self.settings.return_timestamps)


class _Settings:
    """The settings of a call: its arguments, then its generation config, then the model's."""

    def __init__(self, arguments: Arguments, *configs: Any) -> None:
        self._given = {**arguments.options, **arguments.encoder}
        self._configs = configs

    def __call__(self, name: str) -> Any:
        """Return a setting; None if it is not given."""
        found = (self._given.get(name), *(getattr(config, name, None) for config in self._configs))
        return next((value for value in found if value is not None), None)


def windowed_call(
    model: Any, info: SourceInfo, arguments: Arguments, config: Any, ignored: list[OptionError] | None
) -> WindowedCall | None:
    """Return the call; None for another model, or if the outputs of one window are shown whole, or are several.

    Args:
        arguments: of the call.
        config: its generation config, as given; None for none.
        ignored: collects the errors of options that are not read; None to raise.

    Raises:
        OptionError: if a setting is out of range, or does not fit the model or the other settings.
        PromptError: if several long audios come without an attention mask.
    """
    if info.speech is None or info.shape is None:
        return None
    given = _Settings(arguments, config, model.generation_config)
    _ignore({name: _UNREAD[name] for name in _UNREAD if name in arguments.encoder}, given, "leave it out", ignored)
    features, start_ids = sort_inputs(arguments, info)
    if features.ndim != 3 or features.shape[1] != info.shape[0] or not features.is_floating_point():
        found = f"{features.dtype} {tuple(features.shape)}"
        raise PromptError(f"`{info.input_name}` must have the shape (rows, {info.shape[0]}, frames), got {found}")
    if arguments.position_ids is not None:
        raise OptionError("position_ids", arguments.position_ids, f"is not read by {info.model}", "leave it out")
    is_long = features.shape[2] > info.shape[1]
    is_whole = given("return_dict_in_generate") or (given("num_return_sequences") or 1) > 1
    returns_dict, unique = bool(given("return_dict_in_generate")), bool(given("force_unique_generate_call"))
    by_window = any(is_set(given(name)) for name in _BY_WINDOW) or (unique and not returns_dict)
    if is_whole and not is_long and not by_window and not _tempers(arguments, greedy_too=not returns_dict):
        return None
    _check_model(given, info)
    settings = TranscriptSettings(
        return_timestamps=_timestamps(arguments, given, info, is_long),
        return_token_timestamps=bool(given("return_token_timestamps")),
        temperature=read_temperatures(arguments.options.get("temperature")),
        **{name: given(name) for name in _THRESHOLDS},
        condition_on_prev_tokens=bool(given("condition_on_prev_tokens")),
        prompt_ids=read_prompt_ids(given("prompt_ids")),
        prompt_condition_type=given("prompt_condition_type") or "first-segment",
    )
    gone = ("temperature", "num_return_sequences")
    options = {name: value for name, value in arguments.options.items() if name not in gone}
    audible = None if arguments.attention_mask is None else tuple(map(int, arguments.attention_mask.sum(-1).tolist()))
    counts = (features.shape[2],) * len(features)
    if is_long and len(features) > 1:
        if audible is None:
            raise PromptError("several long audios need `attention_mask`: processor(..., return_attention_mask=True)")
        counts = audible
    return WindowedCall(
        arguments=replace(arguments, options=options),
        settings=settings,
        features=features,
        num_frames=counts,
        audible=audible,
        start_ids=arguments.encoder.get("decoder_input_ids", start_ids),
        repeats=given("num_return_sequences") or 1,
        returns_segments=bool(given("return_segments")),
        returns_dict=returns_dict,
        unique=unique,
        states=tuple(name for name in STATES if returns_dict and given(name)),
        time_precision=given("time_precision") or TIME_PRECISION,
        frame_seconds=given("time_precision_features") or FRAME_SECONDS,
        monitor=given("monitor_progress"),
    )


def _tempers(arguments: Arguments, *, greedy_too: bool) -> bool:
    """Return True if the temperature alone decides about sampling, as in transformers' Whisper.

    greedy_too: whether a temperature of 0 counts.
    """
    temperature = arguments.options.get("temperature")
    if isinstance(temperature, list | tuple):
        return True
    if temperature == 0:
        return greedy_too
    return temperature is not None and not arguments.options.get("do_sample")


def without_zero_temperature(model: Any, arguments: Arguments, config: Any) -> tuple[Arguments, int]:
    """Return the arguments without a temperature of 0, and the number of times that each row is then in them.

    Such a temperature turns sampling off in transformers' Whisper. Several outputs of a row are then equal.

    config: the call's generation config, as given; None for none.
    """
    if arguments.options.get("temperature") != 0:
        return arguments, 1
    given = _Settings(arguments, config, model.generation_config)
    outputs = given("num_return_sequences") or 1
    options = {name: value for name, value in arguments.options.items() if name != "temperature"}
    options["do_sample"] = False
    if outputs == 1 or (given("num_beams") or 1) > 1:
        return replace(arguments, options=options), 1
    repeated = {name: _repeated(getattr(arguments, name), outputs) for name in _ROWS}
    encoder = {name: _repeated(value, outputs) for name, value in arguments.encoder.items()}
    return replace(arguments, **repeated, encoder=encoder, options={**options, "num_return_sequences": 1}), outputs


def _repeated(value: Any, count: int) -> Any:
    """Return a tensor, a list with one entry per row, or an output of the encoder with each row so many times."""
    if isinstance(value, torch.Tensor) and value.ndim:
        return value.repeat_interleave(count, dim=0)
    if isinstance(value, list):
        return [each for each in value for _ in range(count)]
    if isinstance(value, tuple):
        return tuple(_repeated(each, count) for each in value)
    if isinstance(value, Mapping):
        return type(value)(**{name: _repeated(each, count) for name, each in value.items()})
    return value


def _ignore(reasons: Mapping[str, str], given: _Settings, hint: str, ignored: list[OptionError] | None) -> None:
    """Note settings that are not read. reasons: name --> reason. ignored: as in `windowed_call`.

    Raises:
        OptionError: if there is one and `ignored` is None.
    """
    for name, reason in reasons.items():
        error = OptionError(name, given(name), reason, hint)
        if ignored is None:
            raise error
        ignored.append(error)


def _timestamps(arguments: Arguments, given: _Settings, info: SourceInfo, is_long: bool) -> bool:
    """Return whether the model writes timestamps. Long audio needs them."""
    asked = arguments.encoder.get("return_timestamps")
    if is_long and asked is False:
        allowed = f"must be True for more than {info.shape and info.shape[1]} frames: they cut long audio into windows"
        raise OptionError("return_timestamps", False, allowed, "leave it out")
    wanted = is_long or bool(given("return_timestamps"))
    if wanted and (info.speech is None or info.speech.no_timestamps is None):
        allowed = f"needs `no_timestamps_token_id` in the generation config of {info.model}"
        raise OptionError("return_timestamps", True, allowed, "store it there")
    return wanted


def _check_model(given: _Settings, info: SourceInfo) -> None:
    """Check the settings that a model can lack."""
    assert info.speech is not None, "only speech models have windows"
    if given("return_token_timestamps") and not info.speech.alignment_heads:
        allowed = f"needs `alignment_heads` in the generation config of {info.model}"
        raise OptionError("return_token_timestamps", True, allowed, "store them there, or leave this out")
    for name in ("language", "task"):
        if given(name) is not None and given("is_multilingual") is False:
            allowed = "cannot be given for a model of one language"
            raise OptionError(name, given(name), allowed, "leave it out, or give is_multilingual=True")

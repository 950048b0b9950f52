"""Reads `SourceInfo` from the config of a model with an encoder: the encoder's input, and the start of the output.

Knows configs only; knows neither tensors nor inputs.
"""

from __future__ import annotations

from typing import Any

from unspool.runtimes.model_info import generation_obstacle
from unspool.runtimes.seq2seq.whisper import frames_per_position, speech_of
from unspool.source_info import SourceInfo, SourceKind

_KINDS: dict[str, SourceKind] = {"input_ids": "text", "input_features": "audio", "pixel_values": "image"}
_DECODER_LIMITS = ("max_target_positions", "max_decoder_position_embeddings", "max_position_embeddings", "n_positions")
_ENCODER_LIMITS = ("max_encoder_position_embeddings", "max_position_embeddings")
# In these models, position ids start after the id of the padding token.
_PADDED_POSITIONS = ("camembert", "roberta", "xlm-roberta", "xlm-roberta-xl")
_WHISPER_SAMPLING_RATE = 16_000


def source_obstacle(model: Any) -> str | None:
    """Return why a model cannot run with an encoder input, according to its config; None if it can.

    The final decision is the probe of `Seq2SeqModel`.
    """
    if reason := generation_obstacle(model):
        return reason
    if has_prefix_image(model):
        return None
    name = type(model).__name__
    if not getattr(model.config, "is_encoder_decoder", False):
        return f"{name} has no encoder: it is loaded as a decoder"
    if model.main_input_name not in _KINDS:
        return f"{name} reads `{model.main_input_name}`: not supported in this version"
    return None


def has_prefix_image(model: Any) -> bool:
    """Return True if the model is a causal language model that caches an image before the text (GIT)."""
    return bool(model.config.model_type == "git" and getattr(model, "can_generate", lambda: False)())


def source_info(model: Any) -> SourceInfo:
    """Return the encoder's input and the start of the output, for a model that `source_obstacle` accepts."""
    config, name = model.config, "pixel_values" if has_prefix_image(model) else model.main_input_name
    kind, start = _KINDS[name], _start(model)
    return SourceInfo(
        model=getattr(config, "_name_or_path", "") or type(model).__name__,
        kind=kind,
        input_name=name,
        max_length=_encoder_limit(config) if kind == "text" else None,
        vocab_size=_encoder_vocabulary(model) if kind == "text" else None,
        shape=_shape(model, kind),
        sampling_rate=_WHISPER_SAMPLING_RATE if kind == "audio" else None,
        decoder_start_token_id=start,
        begins_freely=has_prefix_image(model) or config.model_type == "whisper" or _is_donut(config),
        speech=speech_of(model, start),
    )


def decoder_limit(config: Any) -> int | None:
    """Return the most tokens that the decoder can hold, with its prompt; None for no limit. config: its text config."""
    limit = None if _has_relative_positions(config) else _first(config, _DECODER_LIMITS)
    return _without_padding(limit, config)


def _without_padding(limit: int | None, config: Any) -> int | None:
    if limit is None or config.model_type not in _PADDED_POSITIONS:
        return limit
    return limit - (config.pad_token_id or 0) - 1


def _has_relative_positions(config: Any) -> bool:
    return getattr(config, "relative_attention_num_buckets", None) is not None


def _encoder_vocabulary(model: Any) -> int | None:
    """Return the number of the encoder's token embeddings; None if it is unknown."""
    try:
        return int(model.get_encoder().get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError):
        return None


def _encoder_limit(config: Any) -> int | None:
    config = getattr(config, "encoder", config)
    limit = None if _has_relative_positions(config) else _first(config, _ENCODER_LIMITS)
    return _without_padding(limit, config)


def _first(config: Any, names: tuple[str, ...]) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((limit for limit in found if isinstance(limit, int) and limit > 0), None)


def _shape(model: Any, kind: SourceKind) -> tuple[int, ...] | None:
    config = model.config
    if kind == "audio" and config.model_type == "whisper":
        return config.num_mel_bins, config.max_source_positions * frames_per_position(model)
    if kind == "image":
        vision = config.vision_config if has_prefix_image(model) else getattr(config, "encoder", config)
        size, channels = getattr(vision, "image_size", None), getattr(vision, "num_channels", None)
        if isinstance(channels, int) and size is not None:
            return (channels, size, size) if isinstance(size, int) else (channels, *size)
    return None


def _start(model: Any) -> int | None:
    """Return the decoder's start token by transformers' rules; None if the model does not define one."""
    generation, config = getattr(model, "generation_config", None), model.config
    names = ("bos_token_id",) if has_prefix_image(model) else ("decoder_start_token_id", "bos_token_id")
    for owner in (generation, config, getattr(config, "decoder", None)):
        for name in names:
            if isinstance(found := getattr(owner, name, None), int):
                return found
    return None


def _is_donut(config: Any) -> bool:
    return "donut" in str(getattr(getattr(config, "encoder", None), "model_type", ""))

"""Reads encoder inputs: a text, audio, an image, or tensors for the encoder.

Owns their validation. Does not know how an encoder runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from unspool.errors import PromptError
from unspool.inputs.audio import audio_features
from unspool.text.encode import token_ids
from unspool.types import Source

if TYPE_CHECKING:
    import torch

    from unspool.source_info import SourceInfo

_PROCESSOR = "give the model's processor (transformers.AutoProcessor)"


def read_source(
    given: Any, info: SourceInfo, *, tokenizer: Any = None, processor: Any = None, sampling_rate: int | None = None
) -> Source:
    """Return the encoder input for a model.

    Args:
        given: a Source; a mapping of the encoder's arguments, tensors of one row each; or, by the model's kind:
            text: a string, or token ids as a list or tensor. Ids of several rows are refused: see `source_rows`.
            audio: samples in [-1, 1], one-dimensional (numpy, torch or a list of floats); or a mapping with "array" and
            "sampling_rate"; or features, a tensor of (mel bins, frames).
            image: a PIL image, a numpy array (height, width, channels) or any other input of the processor; or pixel
            values, a tensor of (channels, height, width).
        info: of the model.
        tokenizer: for a text.
        processor: a processor, feature extractor or image processor, for samples and images.
        sampling_rate: of samples, in hertz; None for the model's own rate.

    Raises:
        PromptError: if the object is of another type, is too long, or needs a tokenizer or processor that is missing.
    """
    if isinstance(given, Source):
        return given
    if isinstance(given, Mapping) and info.input_name in given:
        rows = source_rows(given, info)
        if len(rows) != 1:
            raise PromptError(f"`{info.input_name}` must hold one source, got {len(rows)}; give them one by one")
        return rows[0]
    if info.kind == "text":
        return _read_text(given, info, tokenizer)
    if info.kind == "audio":
        features = audio_features(given, info, processor=processor, sampling_rate=sampling_rate)
        return _tensor_source(features, info)
    return _read_image(given, info, processor)


def source_rows(inputs: Mapping[str, Any], info: SourceInfo) -> list[Source]:
    """Return one source per row of a batch of encoder arguments.

    Token ids with `attention_mask` 0 are removed, so that padding on either side is never encoded.

    Raises:
        PromptError: if the tensors do not fit each other or the model, or if a row is empty.
    """
    import torch

    tensors = {name: torch.as_tensor(value) for name, value in inputs.items() if value is not None}
    main = tensors.get(info.input_name)
    if main is None:
        raise PromptError(f"{info.model} reads `{info.input_name}`, got {', '.join(inputs) or 'nothing'}")
    if any(len(tensor) != len(main) for tensor in tensors.values() if tensor.ndim):
        shapes = ", ".join(f"`{name}` {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise PromptError(f"the encoder's arguments must have as many rows each: {shapes}")
    if info.kind != "text":
        return [_tensor_source(row, info) for row in main]
    if main.ndim != 2:
        raise PromptError(f"`{info.input_name}` must have two dimensions, rows and tokens, got {tuple(main.shape)}")
    mask = tensors.get("attention_mask", torch.ones_like(main)).bool()
    if mask.shape != main.shape:
        raise PromptError(f"`attention_mask` {tuple(mask.shape)} and ids {tuple(main.shape)} must have one shape")
    return [_text_source(ids[kept].tolist(), info) for ids, kept in zip(main, mask, strict=True)]


def decoder_prompt(info: SourceInfo, given: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the decoder's prompt: the given tokens, with the start token before them if they lack it.

    Args:
        info: of the model.
        given: the decoder's first tokens; None for the start token only.

    Raises:
        PromptError: if no tokens are given and the model lacks a start token.
    """
    start = info.decoder_start_token_id
    if given is not None and (info.begins_freely or start is None or given[:1] == [start] or given[:1] == (start,)):
        return tuple(given)
    if start is None:
        raise PromptError(f"{info.model} has no decoder start token; give `decoder_input_ids`")
    return (start, *(given or ()))


# --- text -----------------------------------------------------------------------------------------------------------


def _read_text(given: Any, info: SourceInfo, tokenizer: Any) -> Source:
    if isinstance(given, str):
        if tokenizer is None:
            raise PromptError("a text source needs a tokenizer; give `tokenizer=` to load(), or give token ids")
        given = list(token_ids(tokenizer, given))
    elif hasattr(given, "tolist"):
        given = given.tolist()
    if isinstance(given, Sequence) and len(given) == 1 and isinstance(given[0], Sequence):
        given = given[0]
    if not isinstance(given, Sequence) or not all(_is_id(token) for token in given):
        raise PromptError(f"{info.model} reads a text, or the token ids of one, got {_describe(given)}")
    return _text_source(given, info)


def _is_id(token: Any) -> bool:
    return isinstance(token, Integral) and not isinstance(token, bool)


def _text_source(ids: Sequence[int], info: SourceInfo) -> Source:
    import torch

    if not ids:
        raise PromptError("the source holds no token; give at least one")
    if any(token < 0 for token in ids):
        raise PromptError(f"the source holds the token id {min(ids)}; ids count from 0")
    if info.vocab_size is not None and max(ids) >= info.vocab_size:
        place = next(place for place, token in enumerate(ids) if token >= info.vocab_size)
        raise PromptError(f"source token {place} is {ids[place]}, outside the vocabulary of {info.vocab_size}")
    if info.max_length is not None and len(ids) > info.max_length:
        raise PromptError(
            f"the source has {len(ids)} tokens and {info.model} reads at most {info.max_length}; shorten it, or give "
            "it in parts"
        )
    return Source(inputs={info.input_name: torch.tensor([list(ids)], device="cpu")}, token_ids=tuple(map(int, ids)))


# --- images, and tensors for the encoder ----------------------------------------------------------------------------


def _read_image(given: Any, info: SourceInfo, processor: Any) -> Source:
    import torch

    if isinstance(given, torch.Tensor) and given.is_floating_point():
        return _tensor_source(given, info)
    reader = getattr(processor, "image_processor", processor)
    if reader is None:
        raise PromptError(f"an image needs an image processor; {_PROCESSOR}, or give pixel values")
    try:
        values = reader(given, return_tensors="pt")[info.input_name]
    except (TypeError, ValueError) as error:
        raise PromptError(f"the image processor cannot read {_describe(given)}: {error}") from error
    return _tensor_source(values, info)


def _tensor_source(values: torch.Tensor, info: SourceInfo) -> Source:
    """Return the source of features or pixel values. Adds the dimension of the row if it is missing."""
    shape = info.shape
    rank = len(shape) if shape is not None else {"audio": 2, "image": 3}[info.kind]
    if values.ndim == rank:
        values = values[None]
    found = tuple(values.shape[1:])
    if values.ndim != rank + 1 or len(values) != 1 or not values.is_floating_point():
        raise PromptError(f"`{info.input_name}` must be one row of {shape or rank} floats, got {_describe(values)}")
    if shape is None or found == shape:
        return Source(inputs={info.input_name: values})
    if info.kind == "audio" and found[0] == shape[0]:
        bound = "more" if found[1] > shape[1] else "fewer"
        remedy = "use LanguageModel.transcribe" if bound == "more" else "pad them"
        raise PromptError(
            f"`{info.input_name}` has {found[1]} frames, {bound} than the {shape[1]} of {info.model}; {remedy}"
        )
    raise PromptError(f"`{info.input_name}` must have the shape {shape} for {info.model}, got {found}")


def _describe(given: Any) -> str:
    shape = getattr(given, "shape", None)
    return type(given).__name__ if shape is None else f"{type(given).__name__} of shape {tuple(shape)}"

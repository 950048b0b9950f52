"""Reads prompts with images or audio: the model's processor makes token ids and tensors from a text and its media.

Owns: the only calls of such processors, and the message parts of a chat. Does not know: how a model reads the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any, Final

from unspool.errors import OptionError, PromptError
from unspool.inputs.prompts import Prompts
from unspool.inputs.reader import EncodedPrompt, Reader
from unspool.text.chat import Message
from unspool.types import PromptInputs, Source

_KINDS: Final = {
    "image": "image",
    "image_url": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "video": "video",
}
"""Types of message parts that are not text, and the kind of each."""


def has_media(messages: Sequence[Message]) -> bool:
    """Return True if a message has a part that is an image, audio or a video."""
    return any(part.get("type") in _KINDS for message in messages for part in _parts(message))


def _parts(message: Message) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, list | tuple) else []


def with_media(message: Message, images: Any, audio: Any) -> Message:
    """Return a message with images and audio as parts before its text.

    Raises:
        PromptError: if its content is neither text nor a list of parts.
    """
    if images is None and audio is None:
        return message
    content = message.get("content")
    text = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(text, list | tuple):
        raise PromptError(f"`images` and `audio` belong to a message with content, got {type(content).__name__}")
    added = [{"type": "image", "image": each} for each in _several(images)]
    added += [{"type": "audio", "audio": each} for each in _several(audio)]
    return {**message, "content": [*added, *text]}


def with_turn_media(
    conversations: Sequence[Sequence[Message]], images: Any, audio: Any, *, single: bool
) -> list[list[Message]]:
    """Return conversations with images and audio in the last message of each. single: True for one conversation.

    Raises:
        OptionError: if there are several conversations, and not one entry for each.
    """
    count = None if single else len(conversations)
    pairs = zip(_entries("images", images, count), _entries("audio", audio, count), strict=True)
    return [
        [*messages[:-1], with_media(messages[-1], *media)] for messages, media in zip(conversations, pairs, strict=True)
    ]


def read_media(prompts: Prompts, images: Any, audio: Any, reader: Reader) -> Prompts:
    """Return the prompts of a call as the model's processor reads them together with images and audio.

    Args:
        prompts: as `Reader.split` returns them; texts with the processor's placeholders.
        images, audio: of one prompt: one or a list; of several prompts: a list with an entry for each. None for none.
        reader: of the model.

    Raises:
        OptionError: if the model reads no such input, or if there are not as many entries as prompts.
        PromptError: if a prompt is not a text, or if the processor refuses it.
    """
    name, given = ("images", images) if images is not None else ("audio", audio)
    _check(reader, name, given)
    count = None if prompts.single else len(prompts.items)
    pairs = zip(_entries("images", images, count), _entries("audio", audio, count), strict=True)
    items = [_read(text, *media, reader) for text, media in zip(prompts.items, pairs, strict=True)]
    return Prompts(items, prompts.single)


def _check(reader: Reader, name: str, given: Any) -> None:
    info, processor = reader.info, reader.processor
    if info.needs_source and reader.embedder is None:
        allowed = f"is not read by {info.name}: its prompt is the input of its encoder"
        raise OptionError(name, given, allowed, "give an image or audio as the prompt")
    if not (info.needs_source or info.takes_source):
        raise OptionError(name, given, f"is not read by {info.name} ({info.backend})", "leave it out")
    if processor is None:
        allowed = f"needs the processor of {info.name}"
        raise OptionError(name, given, allowed, "give `processor=` to load() (transformers.AutoProcessor)")


def _entries(name: str, given: Any, count: int | None) -> list[Any]:
    """Return one entry per prompt. count: of several prompts; None for a single prompt."""
    if count is None:
        return [given]
    if given is None:
        return [None] * count
    if not isinstance(given, list | tuple) or len(given) != count:
        allowed = f"must be a list with one entry for each of the {count} prompts (None for none)"
        raise OptionError(name, given, allowed, "give a list of lists if a prompt has several")
    return list(given)


def _several(given: Any) -> list[Any]:
    """Return one or several images or audio inputs as a list. A list of numbers is one audio input."""
    if given is None:
        return []
    if isinstance(given, list | tuple) and not (given and isinstance(given[0], Number)):
        return list(given)
    return [given]


def _read(text: Any, images: Any, audio: Any, reader: Reader) -> EncodedPrompt:
    if not isinstance(text, str):
        raise PromptError("a prompt with `images` or `audio` must be a text, with the placeholders of the processor")
    arguments: dict[str, Any] = {"text": text, "return_tensors": "pt"}
    if found := _several(images):
        arguments["images"] = found
    if found := _several(audio):
        arguments["audio"], rate = _samples(found, reader.processor)
        arguments |= {} if rate is None else {"sampling_rate": rate}
    try:
        features = reader.processor(**arguments)
    except Exception as error:  # a processor can refuse its input with any error
        raise PromptError(f"the processor cannot read the prompt: {_reason(error)}") from error
    return _encoded(features, text, reader)


def _samples(given: Sequence[Any], processor: Any) -> tuple[list[Any], int | None]:
    """Return arrays of samples, and the rate of the model's feature extractor.

    Raises:
        PromptError: if a mapping names another rate.
    """
    import numpy as np

    rate = getattr(getattr(processor, "feature_extractor", processor), "sampling_rate", None)
    found = []
    for each in given:
        if isinstance(each, Mapping) and {"array", "sampling_rate"} <= each.keys():
            if rate is not None and each["sampling_rate"] != rate:
                raise PromptError(f"the model reads audio at {rate} Hz, got {each['sampling_rate']} Hz; resample it")
            each = each["array"]
        found.append(np.asarray(each, dtype=np.float32))
    return found, rate


def encode_media_chat(
    messages: Sequence[Message],
    reader: Reader,
    *,
    tools: Sequence[Any] | None,
    continue_final_message: bool,
    chat_template: str | None,
    template_options: Mapping[str, Any] | None,
) -> EncodedPrompt:
    """Return a conversation with images or audio as the processor's chat template writes it.

    Args: as in `encode_chat`. reader: of the model.

    Raises:
        OptionError: if the model reads no such input.
        PromptError: if the template or the processor refuses the messages.
    """
    processor = reader.processor
    _check(reader, "messages", "parts that are images or audio")
    loadable = [_loadable(message) for message in messages]
    try:
        features = processor.apply_chat_template(
            loadable,
            tools=None if tools is None else list(tools),
            chat_template=chat_template,
            add_generation_prompt=not continue_final_message,
            continue_final_message=continue_final_message,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **(template_options or {}),
        )
    except Exception as error:  # a template is a program by its author, and can raise any exception
        raise PromptError(f"the processor rejects these messages: {_reason(error)}") from error
    return _encoded(features, None, reader)


def _loadable(message: Message) -> Message:
    """Return a message with parts in the form of transformers. OpenAI's parts have their data in a mapping.

    Raises:
        PromptError: if an "input_audio" part lacks its data.
    """
    if not _parts(message):
        return message
    return {**message, "content": [_loadable_part(part) for part in message["content"]]}


def _loadable_part(part: Any) -> Any:
    name = part.get("type") if isinstance(part, Mapping) else None
    if name == "input_audio":
        found = part.get(name)
        data = found.get("data") if isinstance(found, Mapping) else None
        if not isinstance(data, str) or not data:
            raise PromptError('a part of type "input_audio" must have {"input_audio": {"data": base64, "format": ...}}')
        return {"type": "audio", "audio": data}  # transformers reads base64, and finds out the format
    if name not in ("image_url", "audio_url"):
        return part
    address = part[name]
    return {"type": _KINDS[name], "url": address["url"] if isinstance(address, Mapping) else address}


def _encoded(features: Mapping[str, Any], text: str | None, reader: Reader) -> EncodedPrompt:
    """Return the output of a processor as a prompt."""
    import torch

    inputs = PromptInputs((name, value) for name, value in features.items() if value is not None)
    ids = inputs["input_ids"] = torch.as_tensor(inputs["input_ids"]).reshape(1, -1)
    mask = torch.as_tensor(inputs.get("attention_mask", torch.ones_like(ids))).reshape(1, -1)
    if not ids.numel() or not bool(mask.all()):
        raise PromptError("the processor returns no token, or pads one prompt; turn off its padding")
    inputs["attention_mask"] = mask
    tokens = tuple(int(token) for token in ids[0])
    source = Source(inputs=inputs, token_ids=tokens)
    if reader.embedder is not None and inputs.keys() > {"input_ids", "attention_mask"}:
        source = reader.embedder(inputs)
    return EncodedPrompt(tokens if reader.source is None else (), text, source)


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__

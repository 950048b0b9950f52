"""The batch of a call for models with an encoder: T5, BART, Whisper, image captioning.

Owns: which argument is the encoder input and which the decoder prompt, and transformers' rules on decoder prompts.
Does not know: how an encoder works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from unspool.config import GenerationConfig
from unspool.config.foreign import is_set
from unspool.errors import ModelError, OptionError, PromptError
from unspool.inputs.sources import source_rows
from unspool.inputs.speech import transcript_prompt
from unspool.interop.arguments import SPEECH, Arguments
from unspool.interop.batch import Batch, batch_of_bos, read_batch, with_tokens
from unspool.interop.own_forward import has_other_positions
from unspool.protocols import Runtime
from unspool.runtimes.seq2seq.source_info import has_prefix_image, source_info, source_obstacle
from unspool.runtimes.seq2seq.whisper import speech_of
from unspool.runtimes.wrap.model_copy import input_device
from unspool.source_info import SourceInfo, Speech
from unspool.types import Source


def encoder_of(model: Any) -> SourceInfo | None:
    """Return the facts about the model's encoder; None for a plain decoder.

    Raises:
        ModelError: if the model has an encoder that is not supported.
    """
    if not getattr(model.config, "is_encoder_decoder", False) and not has_prefix_image(model):
        return None
    if reason := source_obstacle(model):
        raise ModelError(reason)
    return source_info(model)


def source_of(model: Any, arguments: Arguments) -> SourceInfo | None:
    """Return the facts about the encoder that a call uses; None without one.

    A decoder with an image in front of its text (GIT) is a plain decoder in a call without an image.
    """
    info = encoder_of(model)
    if info is None or not has_prefix_image(model):
        return info
    ids = arguments.input_ids
    is_first = isinstance(ids, torch.Tensor) and ids.is_floating_point()
    has_image = is_first or arguments.encoder_input is not None or "pixel_values" in arguments.encoder
    return info if has_image else None


def is_irregular(model: Any, arguments: Arguments, info: SourceInfo | None) -> bool:
    """Return whether only the model's own forward reads a call's prompts. info: of `source_of`.

    Such calls have positions that do not count from 0, a mask over the decoder prompt, or no image for GIT.
    """
    if info is not None:
        mask = arguments.encoder.get("decoder_attention_mask")
        return mask is not None and not bool(torch.as_tensor(mask).all())
    return has_other_positions(arguments) or has_prefix_image(model)


def read_sources(
    model: Any,
    arguments: Arguments,
    config: GenerationConfig,
    *,
    info: SourceInfo,
    runtime: Callable[[], Runtime],
    ignored: list[OptionError] | None = None,
) -> Batch:
    """Return the encoder inputs of a call and the decoder prompts.

    Args:
        config: resolved.
        info: facts about the encoder.
        runtime: returns the model's runtime; called only to detect the language of audio.
        ignored: as in `read_batch`.

    Raises:
        PromptError: if the tensors do not fit together or do not fit the model.
        OptionError: if an option does not fit the model or the decoder prompts.
    """
    embeds = arguments.embedded.get("inputs_embeds")
    if embeds is not None:
        main, prompt, sources = embeds, None, _embedded_sources(embeds, arguments, info, ignored)
    else:
        encoded = arguments.encoder.get("encoder_outputs")
        main, prompt = sort_inputs(arguments, info)
        if has_prefix_image(model):
            return _captions(main, prompt, arguments, config, info, ignored)
        if encoded is None:
            if info.kind == "text" and _masks(main, arguments.attention_mask):
                arguments = replace(arguments, attention_mask=with_tokens(arguments.attention_mask, ignored).long())
            sources = _sources(main, arguments, info)
        else:
            sources = _encoded_sources(encoded[0], arguments.attention_mask, main if info.kind == "text" else None)
    given = arguments.encoder.get("decoder_input_ids")
    given = prompt if given is None else given
    starts = start_tokens(config, info, len(sources))
    speech = speech_of(model, starts[0]) if starts else None
    check_speech(arguments.encoder, speech, given, info)
    if given is not None:
        rows = _with_starts(token_rows("decoder_input_ids", given, len(sources)), starts, info)
    elif speech is not None:
        heard = languages_and_tasks(arguments.encoder, len(sources))
        pairs = zip(sources, heard, strict=True)
        rows = [list(transcript_prompt(source, speech, *each, runtime)) for source, each in pairs]
        if len(set(map(len, rows))) > 1:
            raise PromptError("the rows' languages need prompts of different lengths: transcribe them one by one")
    elif starts:
        rows = [[start] for start in starts]
    else:
        raise PromptError(f"{info.model} needs a start token for its decoder; give `decoder_input_ids`")
    return Batch(
        input_ids=torch.tensor(rows, dtype=torch.int64, device=main.device),
        prompts=tuple(map(tuple, rows)),
        sources=tuple(sources),
        task="rewrite" if speech is None else "transcribe",
    )


def _masks(ids: torch.Tensor, mask: Any) -> bool:
    """Return whether a mask has the shape of the ids. Others are refused later."""
    return isinstance(mask, torch.Tensor) and mask.shape == ids.shape


def with_default_input(model: Any, arguments: Arguments, config: GenerationConfig, info: SourceInfo) -> Arguments:
    """Return the arguments; without any encoder input, the begin-of-sequence token is the text, as in transformers."""
    is_given = arguments.input_ids is not None or arguments.embedded or arguments.encoder.get("encoder_outputs")
    if info.kind != "text" or is_given or config.bos_token_id is None:
        return arguments
    return replace(arguments, input_ids=torch.tensor([[config.bos_token_id]], device=input_device(model)))


def forward_inputs(arguments: Arguments, info: SourceInfo, batch: Batch) -> dict[str, Any]:
    """Return the tensors of a call, as keyword arguments of transformers' `generate`. batch: of `read_sources`."""
    decoder = "decoder_input_ids" if batch.task != "continue" else "input_ids"
    given = {
        info.input_name: None if arguments.embedded else sort_inputs(arguments, info)[0],
        "attention_mask": arguments.attention_mask,
        **{name: arguments.encoder.get(name) for name in ("decoder_attention_mask", "encoder_outputs")},
        **arguments.embedded,
        decoder: batch.input_ids,
    }
    mask, width = given["decoder_attention_mask"], batch.input_ids.shape[1]
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape[1] == width - 1:  # of rows without start token
        given["decoder_attention_mask"] = torch.nn.functional.pad(mask, (1, 0), value=1)
    return {name: value for name, value in given.items() if value is not None}


def prepared_sources(
    arguments: Arguments, info: SourceInfo, main: torch.Tensor, decoder_ids: torch.Tensor, states: torch.Tensor | None
) -> Batch:
    """Return the batch of a call that transformers has prepared.

    Args:
        main: the encoder input. With `states` only its token ids are read; ids below 0 are skipped.
        decoder_ids: [rows, width].
        states: [rows, positions, width], the output of the encoder; None to run it over `main`.

    Raises:
        PromptError: if `states` has another number of rows or positions than the ids or the mask.
    """
    if states is None:
        sources = _sources(main, arguments, info)
    else:
        if len(states) != len(decoder_ids):
            raise PromptError(f"`encoder_outputs` has {len(states)} rows, and there are {len(decoder_ids)} prompts")
        sources = _encoded_sources(
            states, arguments.attention_mask, main if info.kind == "text" and not main.is_floating_point() else None
        )
    return Batch(
        input_ids=decoder_ids,
        prompts=tuple(map(tuple, decoder_ids.tolist())),
        sources=tuple(sources),
        task="rewrite",
    )


def _encoded_sources(states: torch.Tensor, mask: torch.Tensor | None, ids: torch.Tensor | None) -> list[Source]:
    """Return one source per row of the encoder's output, without masked positions."""
    rows = states.detach()
    if mask is not None and mask.shape != rows.shape[:2] and ids is not None:
        shapes = f"{tuple(mask.shape)} and `encoder_outputs` {tuple(rows.shape)}"
        raise PromptError(f"`attention_mask` {shapes} must have as many rows and positions")
    sources = []
    for row, state in enumerate(rows):
        kept = mask[row].bool() if mask is not None and mask.shape == rows.shape[:2] else None
        tokens = ids[row] if ids is not None else torch.empty(0, dtype=torch.int64, device="cpu")
        if kept is not None and len(kept) == len(tokens):
            tokens = tokens[kept.to(tokens.device)]
        state = state if kept is None else state[kept.to(state.device)]
        known = tuple(token for token in tokens.tolist() if token >= 0)
        sources.append(Source(inputs={"encoder_outputs": state[None]}, token_ids=known))
    return sources


# --- encoder inputs -------------------------------------------------------------------------------------------------


def sort_inputs(arguments: Arguments, info: SourceInfo) -> tuple[torch.Tensor, Any]:
    """Return the encoder input, and the decoder prompt if `input_ids` holds it, else None.

    As in transformers, the first positional argument is the encoder input, whatever its kind.
    """
    ids, name = arguments.input_ids, info.input_name
    for other in ("input_features", "pixel_values"):
        if other != name and arguments.encoder.get(other) is not None:
            raise OptionError(other, "a tensor", f"is not read by {info.model}, which reads `{name}`", "leave it out")
    if name == "input_ids":
        _check_no_encoder_input(arguments, info.model)
        main, prompt = ids, None
    else:
        main, prompt, first = arguments.encoder.get(name), ids, arguments.encoder_input
        if isinstance(ids, torch.Tensor) and ids.is_floating_point():
            first, prompt = ids, None
        if first is not None:
            if main is not None:
                raise OptionError("inputs", first, f"is another name for `{name}`", "leave out one of the two")
            main = first
    encoded = arguments.encoder.get("encoder_outputs")
    if main is None and encoded is not None:
        main = torch.full(encoded[0].shape[:2], -100, device=encoded[0].device)  # transformers' stand-in for ids
    if not isinstance(main, torch.Tensor):
        got = "nothing" if main is None else type(main).__name__
        raise PromptError(f"{info.model} needs `{name}`, a tensor with one row per output; got {got}")
    return main, prompt


def _sources(main: torch.Tensor, arguments: Arguments, info: SourceInfo) -> list[Source]:
    inputs: dict[str, Any] = {info.input_name: main}
    if info.kind == "text":
        inputs["attention_mask"] = arguments.attention_mask
    elif info.kind == "audio" and info.shape is not None and main.ndim == 3:
        # transformers pads audio that is shorter than the encoder's window with silence.
        missing = info.shape[1] - main.shape[2]
        inputs[info.input_name] = torch.nn.functional.pad(main, (0, max(0, missing)))
    if info.kind == "audio" and info.speech is None and arguments.attention_mask is not None:
        if not bool(arguments.attention_mask.all()):
            allowed = f"must be all ones for {info.model}: its encoder reads whole audios"
            raise OptionError("attention_mask", arguments.attention_mask, allowed, "give the audios one by one")
    elif info.kind == "image" and arguments.attention_mask is not None:
        raise OptionError("attention_mask", "a tensor", f"is not read by {info.model}", "leave it out")
    if arguments.position_ids is not None:
        raise OptionError("position_ids", "a tensor", f"is not read by {info.model}", "leave it out")
    return source_rows(inputs, info)


def _embedded_sources(
    embeds: torch.Tensor, arguments: Arguments, info: SourceInfo, ignored: list[OptionError] | None
) -> list[Source]:
    """Return one source per row of embeddings, without masked positions. ignored: as in `read_batch`."""
    if info.kind != "text":
        raise OptionError("inputs_embeds", "a tensor", f"is not read by {info.model}", f"give `{info.input_name}`")
    if arguments.input_ids is not None:
        allowed = "cannot be given together with `input_ids`: the encoder reads one of them"
        raise OptionError("inputs_embeds", "a tensor", allowed, "leave out one of the two")
    mask = arguments.attention_mask
    mask = torch.ones(embeds.shape[:2], device=embeds.device) if mask is None else mask
    if embeds.ndim != 3 or mask.shape != embeds.shape[:2]:
        shapes = f"{tuple(embeds.shape)} and `attention_mask` {tuple(mask.shape)}"
        raise PromptError(f"`inputs_embeds` {shapes} must have as many rows and positions")
    mask = with_tokens(mask, ignored)
    rows = zip(embeds.detach(), mask, strict=True)
    return [Source(inputs={"inputs_embeds": row[kept.to(row.device)][None]}) for row, kept in rows]


def _captions(
    main: torch.Tensor,
    prompt: Any,
    arguments: Arguments,
    config: GenerationConfig,
    info: SourceInfo,
    ignored: list[OptionError] | None,
) -> Batch:
    """Return the batch of a decoder that reads an image before its prompt."""
    for name in ("decoder_input_ids", "decoder_attention_mask"):
        if arguments.encoder.get(name) is not None:
            raise OptionError(name, "a tensor", f"is not read by {info.model}", "give the prompt as `input_ids`")
    sources = source_rows({info.input_name: main}, info)
    if prompt is None:
        one = batch_of_bos(config.bos_token_id, main.device)
        batch = Batch(input_ids=one.input_ids.repeat(len(sources), 1), prompts=one.prompts * len(sources))
    else:
        batch = read_batch(
            prompt,
            arguments.attention_mask,
            arguments.position_ids,
            pad_token_id=config.pad_token_id,
            eos_token_ids=config.eos_token_id or (),
            ignored=ignored,
        )
    if len(batch.prompts) != len(sources):
        raise PromptError(
            f"there are {len(sources)} images and {len(batch.prompts)} prompts; give one prompt per image"
        )
    return replace(batch, sources=tuple(sources))


# --- decoder prompts ------------------------------------------------------------------------------------------------


def start_tokens(config: GenerationConfig, info: SourceInfo, count: int) -> list[int]:
    """Return the start token of each row by transformers' rules; an empty list without any."""
    starts = config.decoder_start_token_id
    if starts is None and config.bos_token_id is not None:
        starts = (config.bos_token_id,)
    if starts is None and info.decoder_start_token_id is not None:
        starts = (info.decoder_start_token_id,)
    if starts is not None and len(starts) not in (1, count):
        allowed = f"must be one token id, or one for each of the {count} rows"
        raise OptionError("decoder_start_token_id", tuple(starts), allowed, "give one id per row")
    return [] if starts is None else list(starts) * (count if len(starts) == 1 else 1)


def token_rows(name: str, given: Any, count: int) -> list[list[int]]:
    """Return rows of token ids; a single row is repeated."""
    ids = torch.as_tensor(given)
    if ids.ndim != 2 or not ids.numel() or ids.is_floating_point() or len(ids) not in (1, count):
        raise PromptError(f"`{name}` must be token ids [{count}, width], got {ids.dtype} of shape {tuple(ids.shape)}")
    found: list[list[int]] = ids.expand(count, -1).tolist()
    return found


def _with_starts(rows: list[list[int]], starts: Sequence[int], info: SourceInfo) -> list[list[int]]:
    """Prepend the start tokens, unless a row begins with its own or the model does not need them."""
    if info.begins_freely or not starts or any(row[0] == start for row, start in zip(rows, starts, strict=True)):
        return rows
    return [[start, *row] for row, start in zip(rows, starts, strict=True)]


def check_decoder_mask(mask: Any) -> None:
    """Check that a decoder mask masks nothing; None is accepted."""
    if mask is not None and not bool(torch.as_tensor(mask).all()):
        allowed = "must be all ones in a call that transcribes window by window"
        raise OptionError("decoder_attention_mask", "a mask with zeros", allowed, "give rows of one length each time")


def check_speech(encoder: Mapping[str, Any], speech: Speech | None, given: Any, info: SourceInfo) -> None:
    """Check the arguments for speech models. given: the caller's decoder prompt, or None.

    Raises:
        OptionError: if the model does not read speech, or if the decoder prompt leaves no place for language and task.
    """
    for name in SPEECH:
        value = encoder.get(name)
        if is_set(value) and speech is None:
            allowed = f"is read by speech models, and {info.model} is not one"
            raise OptionError(name, value, allowed, "leave it out")
    for name in ("language", "task"):
        value = encoder.get(name)
        if value is not None and given is not None:
            raise OptionError(name, value, "cannot be given together with `decoder_input_ids`", "leave one out")


def languages_and_tasks(encoder: Mapping[str, Any], count: int) -> list[tuple[str | None, str | None]]:
    """Return (language, task) of each row. The language is one name for all rows, or a list with one per row."""
    language, task = encoder.get("language"), encoder.get("task")
    languages = list(language) if isinstance(language, list | tuple) else [language] * count
    if len(languages) != count or not all(isinstance(each, str) or language is None for each in languages):
        raise OptionError(
            "language", language, f"must be one name, or one for each of the {count} rows", "see the model's card"
        )
    if not isinstance(task, str | None):
        raise OptionError("task", task, "must be a name, one for all rows", "such as 'transcribe'")
    return [(each, task) for each in languages]


def check_plain(arguments: Arguments, model: Any) -> None:
    """Check that a plain decoder gets no arguments for models with an encoder.

    Raises:
        OptionError: if one is given.
    """
    name = type(model).__name__
    _check_no_encoder_input(arguments, name)
    for option, value in arguments.encoder.items():
        if is_set(value):
            allowed = f"belongs to encoder-decoder models, and {name} is not one"
            raise OptionError(option, value, allowed, "give the prompt as `input_ids`")


def _check_no_encoder_input(arguments: Arguments, model: str) -> None:
    if arguments.encoder_input is not None:
        allowed = f"cannot be given beside `input_ids`: {model} reads nothing else"
        raise OptionError("inputs", arguments.encoder_input, allowed, "leave out one of the two")

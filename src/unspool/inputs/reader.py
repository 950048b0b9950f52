"""Reads prompts for one model: token ids for a decoder, or an encoder input and a decoder prompt.

Knows only the options that set the decoder prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Number
from typing import TYPE_CHECKING, Any, NamedTuple

from unspool.errors import OptionError, PromptError
from unspool.inputs.prompts import Prompts, encode, read_prompts
from unspool.inputs.sources import decoder_prompt, read_source
from unspool.types import ModelInfo, Source

if TYPE_CHECKING:
    from unspool.protocols import Runtime
    from unspool.runtimes.wrap.passing_on import Embedder
    from unspool.source_info import SourceInfo


class DecoderPrompt(NamedTuple):
    """Options of a call that set the start of the output; None for the model's default.

    decoder_input_ids: token ids for all prompts. decoder_start_token_id: one for all prompts, or one per prompt.
    language, task: of a speech model; language can be one per prompt. bos_token_id: replaces an empty text. Models
    without an encoder read `bos_token_id` only; models with an encoder read all the others.
    """

    decoder_input_ids: tuple[int, ...] | None = None
    decoder_start_token_id: tuple[int, ...] | None = None
    language: str | tuple[str, ...] | None = None
    task: str | None = None
    bos_token_id: int | None = None

    @property
    def asked(self) -> str | None:
        """The name of the first given option that only models with an encoder read, or None."""
        names = (name for name in self._fields if name != "bos_token_id")
        return next((name for name in names if getattr(self, name) is not None), None)


DEFAULT_DECODER_PROMPT = DecoderPrompt()
"""The model's default."""


def read_decoder_prompt(options: dict[str, Any]) -> DecoderPrompt:
    """Remove `decoder_input_ids`, `language` and `task` from a call's options, and return them.

    Raises:
        OptionError: if `decoder_input_ids` is not a list of token ids, or if `language` or `task` is not a name.
    """
    given = options.pop("decoder_input_ids", None)
    language, task = options.pop("language", None), options.pop("task", None)
    if isinstance(language, list | tuple) and language and all(isinstance(each, str) for each in language):
        language = tuple(language)
    elif language is not None and not isinstance(language, str):
        raise OptionError(
            "language", language, "must be a name such as 'en', or a list with one per prompt", "see its model card"
        )
    if task is not None and not isinstance(task, str):
        raise OptionError("task", task, "must be a name: 'transcribe' or 'translate'", "leave it out")
    if given is None:
        return DecoderPrompt(language=language, task=task)
    ids = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(ids, Sequence) and len(ids) == 1 and isinstance(ids[0], Sequence) and not isinstance(ids, str):
        ids = ids[0]
    if not isinstance(ids, Sequence) or isinstance(ids, str) or not ids or not all(_is_id(token) for token in ids):
        allowed = "must be a list of token ids, the same for all prompts"
        raise OptionError("decoder_input_ids", given, allowed, "leave it out for the model's own beginning")
    return DecoderPrompt(decoder_input_ids=tuple(map(int, ids)), language=language, task=task)


def _is_id(token: Any) -> bool:
    return isinstance(token, Integral) and not isinstance(token, bool) and int(token) >= 0


class EncodedPrompt(NamedTuple):
    """One prompt as its model reads it.

    ids: the decoder's prompt; empty until `Reader.read` sets the start of the output. text: the prompt as given, or
    None if it was not a text. source: the encoder's input, or images and audio in the prompt; None without.
    """

    ids: tuple[int, ...]
    text: str | None
    source: Source | None = None


class Reader:
    """Reads prompts for one model.

    Args:
        runtime: of the model.
        tokenizer: for texts, or None.
        processor: of transformers, for audio and images, or None.
        embedder: reads the processor's output for a model that decodes with a part of it; else None.
    """

    def __init__(
        self, runtime: Runtime, tokenizer: Any = None, processor: Any = None, embedder: Embedder | None = None
    ) -> None:
        self.runtime, self.tokenizer, self.processor, self.embedder = runtime, tokenizer, processor, embedder

    @property
    def info(self) -> ModelInfo:
        return self.runtime.info

    @property
    def source(self) -> SourceInfo | None:
        """The kind of the encoder's input; None for a model without an encoder."""
        return self.runtime.source if self.info.needs_source else None

    def split(self, given: Any) -> Prompts:
        """Tell one prompt from several, as `read_prompts` does. Several audio inputs or images must be in a list.

        Raises:
            PromptError: if it is not a prompt.
        """
        if isinstance(given, EncodedPrompt):
            return Prompts([given], single=True)
        several = given if isinstance(given, list | tuple) else [given]
        if several and all(isinstance(each, EncodedPrompt) for each in several):
            return Prompts(list(several), single=False)
        if self.source is None or (
            self.source.kind == "text" and not any(isinstance(each, Mapping | Source) for each in several)
        ):
            return read_prompts(given)
        if isinstance(given, list | tuple) and not all(isinstance(each, Number) for each in given):
            return Prompts(list(given), single=False)
        return Prompts([given], single=True)

    def read(self, given: Any, beginning: DecoderPrompt = DEFAULT_DECODER_PROMPT, index: int = 0) -> EncodedPrompt:
        """Return one prompt as the model reads it.

        Args:
            given: one of the items that `split` returns.
            beginning: the call's options for the start of the output.
            index: of the prompt in the call, from 0.

        Raises:
            PromptError: if the prompt cannot be read.
            OptionError: if the model does not read an option of `beginning`.
        """
        text = given if isinstance(given, str) else None
        if self.source is None:
            if beginning.asked:
                name, value = beginning.asked, getattr(beginning, beginning.asked)
                raise OptionError(name, value, f"is read by models with an encoder, and {self.info.name} has none",
                                  "leave it out")  # fmt: skip
            if isinstance(given, EncodedPrompt):
                return given
            return EncodedPrompt(encode(given, self.tokenizer, self.bos_token_id(beginning)), text)
        if isinstance(given, EncodedPrompt):
            assert given.source is not None, "a model with an encoder reads a source"
            return given._replace(ids=given.ids or self._begin(self.source, given.source, beginning, index))
        source = read_source(given, self.source, tokenizer=self.tokenizer, processor=self.processor)
        return EncodedPrompt(self._begin(self.source, source, beginning, index), text, source)

    def bos_token_id(self, beginning: DecoderPrompt) -> int | None:
        """Return the token that replaces an empty text, or None."""
        return self.info.bos_token_id if beginning.bos_token_id is None else beginning.bos_token_id

    def _begin(self, info: SourceInfo, source: Source, beginning: DecoderPrompt, index: int) -> tuple[int, ...]:
        """Return the decoder's prompt."""
        if beginning.bos_token_id is not None:
            hint = "leave it out, or give `decoder_start_token_id`"
            allowed = f"replaces an empty text, but {info.model} encodes the text, even if it is empty"
            raise OptionError("bos_token_id", beginning.bos_token_id, allowed, hint)
        self._check_speech(info, beginning)
        starts = beginning.decoder_start_token_id
        if beginning.decoder_input_ids is not None:
            start = _one_of(starts, index)
            given = beginning.decoder_input_ids
            return decoder_prompt(info, given) if start is None or given[0] == start else (start, *given)
        if starts is not None:
            return (_one_of(starts, index) or 0,)
        if info.speech is None:
            return decoder_prompt(info)
        language = beginning.language
        if isinstance(language, tuple):
            if index >= len(language):
                allowed = f"must be one name, or one per prompt, and there are more than {len(language)} prompts"
                raise OptionError("language", list(language), allowed, "give as many")
            language = language[index]
        from unspool.inputs.speech import transcript_prompt

        return transcript_prompt(source, info.speech, language, beginning.task, lambda: self.runtime)

    def _check_speech(self, info: SourceInfo, beginning: DecoderPrompt) -> None:
        for name in ("language", "task"):
            value = getattr(beginning, name)
            if value is None:
                continue
            if info.speech is None:
                allowed = f"is read by speech models, and {info.model} is not one"
                raise OptionError(name, value, allowed, "leave it out")
            if beginning.decoder_input_ids is not None:
                raise OptionError(name, value, "cannot be given together with `decoder_input_ids`", "leave one out")


def _one_of(values: Sequence[int] | None, index: int) -> int | None:
    """Return the value for one prompt: the only value, or the value at its index."""
    if values is None:
        return None
    if len(values) > 1 and index >= len(values):
        raise PromptError(
            f"`decoder_start_token_id` has {len(values)} values and there are more prompts; give one, or one each"
        )
    return values[0] if len(values) == 1 else values[index]


class EncodedReader(Reader):
    """Passes encoded prompts on unchanged, for callers with rules of their own on decoder prompts."""

    def read(self, given: Any, beginning: DecoderPrompt = DEFAULT_DECODER_PROMPT, index: int = 0) -> EncodedPrompt:
        """Return the encoded prompt. given: an EncodedPrompt, or a negative prompt, which has only a source"""
        if isinstance(given, EncodedPrompt):
            return given
        if self.source is None:
            return super().read(given, beginning, index)
        return EncodedPrompt((), None, read_source(given, self.source, tokenizer=self.tokenizer))

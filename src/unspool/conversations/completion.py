"""Chat completion, whole or streamed: the code of `LanguageModel.chat`.

Owns: turning messages into prompts, and outputs into messages. Does not know: decoding.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Protocol

from unspool.config import OPTIONS, GenerationConfig
from unspool.errors import OptionError
from unspool.inputs.media import encode_media_chat, has_media, with_turn_media
from unspool.inputs.reader import EncodedPrompt, Reader
from unspool.per_prompt import Configs
from unspool.results import Chunk, Completion, Generation
from unspool.streaming import Stream
from unspool.text.chat import (
    TRANSCRIPT_STOPS,
    Message,
    answer_of,
    check_template,
    continued,
    encode_chat,
    read_chat,
    seen_message,
    transcript,
    turn_end,
)
from unspool.types import ModelInfo, Source


class ChatModel(Protocol):
    """The part of a LanguageModel that chat completion needs."""

    tokenizer: Any
    config: GenerationConfig

    @property
    def info(self) -> ModelInfo: ...

    @property
    def _reader(self) -> Reader: ...

    def generate(self, prompt: Any, **options: Any) -> Any: ...

    def stream(self, prompt: Any, **options: Any) -> Stream: ...


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ChatGeneration(Generation):
    """The answer to one conversation: a Generation with its messages.

    history: the conversation as it was given.
    answers: one message per completion. With `continue_final_message`, the whole continued message.
    continues: True if an answer replaces the last message of `history`.
    """

    history: tuple[Message, ...]
    answers: tuple[Message, ...]
    continues: bool = False

    @property
    def message(self) -> Message:
        """The answer of the first completion."""
        return self.answers[0]

    @property
    def messages(self) -> list[Message]:
        """The conversation with the answer as its last message, ready for the next turn."""
        return [*(self.history[:-1] if self.continues else self.history), self.message]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**Generation.to_dict(self), "messages": self.messages}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedConversation:
    """One conversation ready to be answered.

    messages: as given. prompt_ids: the model's input. source: its images and audio; None without. continues: the
    continued message in the form that the model sees;
    None for a new turn. plain: True if a transcript replaces the chat template; blanks around an answer are then
    removed.
    """

    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    tools: Sequence[Any] | None
    tokenizer: Any
    source: Source | None = None
    continues: Message | None = None
    plain: bool = False

    @property
    def prompt(self) -> tuple[int, ...] | EncodedPrompt:
        """The prompt of the request."""
        return self.prompt_ids if self.source is None else EncodedPrompt(self.prompt_ids, None, self.source)

    def result(self, generation: Generation) -> ChatGeneration:
        """Return the answer as it was generated, with its messages."""
        known = {field.name: getattr(generation, field.name) for field in fields(Generation)}
        stops = generation.config.stop_strings or ()
        answers = tuple(self._answer(completion, stops) for completion in generation.completions)
        return ChatGeneration(**known, history=self.messages, answers=answers, continues=self.continues is not None)

    def _answer(self, completion: Completion, stops: Sequence[str]) -> Message:
        if self.continues is not None:
            return continued(self.continues, completion.text)
        if self.plain:
            return {"role": "assistant", "content": completion.text.strip()}
        return answer_of(
            completion.text,
            tokenizer=self.tokenizer,
            prompt_ids=self.prompt_ids,
            token_ids=completion.token_ids,
            tools=self.tools,
            stops=stops if completion.finish_reason == "stop" else (),
        )


class ChatStream:
    """Chunks of an answer as they are committed: a Stream with a ChatGeneration as its result."""

    def __init__(self, stream: Stream, conversations: Sequence[EncodedConversation]) -> None:
        self._stream, self._conversations = stream, conversations

    @property
    def generations(self) -> list[ChatGeneration | None]:
        """One per conversation, in order, after the stream has ended; None for unfinished ones."""
        pairs = zip(self._conversations, self._stream.generations, strict=True)
        return [None if one is None else conversation.result(one) for conversation, one in pairs]

    @property
    def generation(self) -> ChatGeneration:
        """The answer to the first conversation, after the stream has ended.

        Raises:
            RuntimeError: if the stream has not ended.
        """
        return self._conversations[0].result(self._stream.generation)

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self._stream)

    def __next__(self) -> Chunk:
        return next(self._stream)

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return aiter(self._stream)

    async def __anext__(self) -> Chunk:
        return await anext(self._stream)

    def close(self) -> None:
        """Cancel the unfinished answers. Does nothing after the end."""
        self._stream.close()

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> ChatStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()


def chat(
    lm: ChatModel,
    messages: Any,
    *,
    tools: Sequence[Any] | None,
    continue_final_message: bool,
    chat_template: str | None,
    chat_template_kwargs: Mapping[str, Any] | None,
    stream: bool,
    config: Configs,
    options: Mapping[str, Any],
) -> ChatGeneration | list[ChatGeneration] | ChatStream:
    """Answer one conversation or several; see LanguageModel.chat."""
    if not isinstance(stream, bool):
        raise OptionError("stream", stream, "must be True or False", "leave it out for False")
    several = isinstance(messages, list | tuple) and bool(messages) and isinstance(messages[0], str | list | tuple)
    options = dict(options)
    images, audio = (options.pop(name, None) for name in ("images", "audio"))
    turns = [read_turns(each) for each in (messages if several else [messages])]
    conversations, config = encode_conversations(
        lm,
        with_turn_media(turns, images, audio, single=not several),
        tools=tools,
        continue_final_message=continue_final_message,
        chat_template=chat_template,
        chat_template_kwargs=chat_template_kwargs,
        config=config,
        options=options,
    )
    prompts = [conversation.prompt for conversation in conversations]
    if stream:
        return ChatStream(lm.stream(prompts, config=config, **options), conversations)
    generations = lm.generate(prompts, config=config, **options)
    results = [one.result(generation) for one, generation in zip(conversations, generations, strict=True)]
    return results if several else results[0]


def encode_conversations(
    lm: ChatModel,
    conversations: Sequence[Any],
    *,
    tools: Sequence[Any] | None = None,
    continue_final_message: bool = False,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    config: Configs = None,
    options: Mapping[str, Any],
) -> tuple[list[EncodedConversation], Configs]:
    """Return conversations ready to be answered, and the config that ends their answers at the end of the turn.

    Args: as in LanguageModel.chat. conversations: a list of conversations.

    Raises:
        PromptError, OptionError: as in LanguageModel.chat.
    """
    if not isinstance(continue_final_message, bool):
        raise OptionError(
            "continue_final_message", continue_final_message, "must be True or False", "leave it out for False"
        )
    turns = [read_turns(each) for each in conversations]
    if not all(map(has_media, turns)):
        check_template(lm.tokenizer, chat_template)
    encoded = [
        _conversation(each, lm, tools, continue_final_message, chat_template, chat_template_kwargs) for each in turns
    ]
    ending = partial(_ending, options=options, end=_unknown_end(lm, chat_template, chat_template_kwargs))
    return encoded, [ending(each) for each in config] if isinstance(config, list | tuple) else ending(config)


def chat_plain(
    lm: ChatModel,
    messages: Sequence[Message],
    *,
    stream: bool,
    config: GenerationConfig | None,
    options: Mapping[str, Any],
) -> ChatGeneration | ChatStream:
    """Answer one conversation in the form of a transcript, for models without a chat template.

    An answer ends if the model begins another turn itself, at one of TRANSCRIPT_STOPS.

    Raises:
        PromptError: if a message holds more than text, or the conversation is too long for the model.
    """
    given = options.get("stop_strings", config.stop_strings if config is not None else None)
    own = OPTIONS["stop_strings"].check(given) or ()
    asked = {**options, "stop_strings": (*TRANSCRIPT_STOPS, *own)}
    page = transcript(messages)
    conversation = EncodedConversation(
        messages=tuple(messages), prompt_ids=(), tools=None, tokenizer=lm.tokenizer, plain=True
    )
    if stream:
        return ChatStream(lm.stream(page, config=config, **asked), [conversation])
    return conversation.result(lm.generate(page, config=config, **asked))


def read_turns(given: Any) -> tuple[Message, ...]:
    """Return the messages of one conversation; a text is one message of the user.

    Raises:
        PromptError: if it is neither a text nor a list of messages.
    """
    return ({"role": "user", "content": given},) if isinstance(given, str) else read_chat(given)


def _conversation(
    messages: tuple[Message, ...],
    lm: ChatModel,
    tools: Sequence[Any] | None,
    continues: bool,
    chat_template: str | None,
    template_options: Mapping[str, Any] | None,
) -> EncodedConversation:
    if continues:
        continued(messages[-1], "")  # raises now if the message cannot be continued, before work starts
    options: dict[str, Any] = {
        "tools": tools,
        "continue_final_message": continues,
        "chat_template": chat_template,
        "template_options": template_options,
    }
    source = None
    if has_media(messages):
        ids, _, source = encode_media_chat(messages, lm._reader, **options)
    else:
        ids = encode_chat(messages, lm.tokenizer, **options)
    seen = None
    if continues:
        seen = seen_message(
            messages, lm.tokenizer, tools=tools, chat_template=chat_template, template_options=template_options
        )
    return EncodedConversation(
        messages=messages, prompt_ids=ids, source=source, tools=tools, tokenizer=lm.tokenizer, continues=seen
    )


def _unknown_end(
    lm: ChatModel, chat_template: str | None, template_options: Mapping[str, Any] | None
) -> tuple[int, ...] | None:
    """Return the model's end tokens and the template's end-of-turn token, or None if the model knows the latter."""
    stored, vocabulary = lm.config.eos_token_id or lm.info.eos_token_ids, range(lm.info.vocab_size)
    end = turn_end(lm.tokenizer, chat_template, template_options)
    if end is None or end in stored or end not in vocabulary:
        return None
    return (*(token for token in stored if token in vocabulary), end)


def _ending(config: Any, *, options: Mapping[str, Any], end: tuple[int, ...] | None) -> Any:
    """Return a config that also ends an answer at the end-of-turn token, unless the caller sets the end tokens."""
    if end is None or not isinstance(config, GenerationConfig | None):
        return config  # other types are refused later, with all other options
    given = {*options, *(config.explicit if config is not None else ())}
    return (
        config if given & {"eos_token_id", "ignore_eos"} else (config or GenerationConfig()).replace(eos_token_id=end)
    )

"""A conversation that keeps its history: `unspool.Chat`, whole or streamed.

Owns: the messages, and every change to them. Does not know: how an answer is made (unspool.conversations.completion),
the file format (unspool.conversations.files), keyboards and screens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from unspool.config import GenerationConfig
from unspool.conversations.completion import ChatGeneration, ChatModel, ChatStream, chat, chat_plain
from unspool.conversations.files import read_file, write_chat
from unspool.conversations.turn import TurnStream
from unspool.errors import PromptError
from unspool.inputs.media import with_media
from unspool.planning import resolve_options
from unspool.seeds import fresh_seed
from unspool.text.chat import Message, check_template, read_chat


class Chat:
    """A conversation with a model that keeps its history.

    Args:
        lm: answers.
        system: the system message; None for none.
        messages: earlier messages, oldest first.
        plain: write the conversation as a transcript ("User: ...", "Assistant: ..."), for models without a chat
            template.
        tools, chat_template, chat_template_kwargs: as in `LanguageModel.chat`.
        config, options: of generation, for every answer, as in `LanguageModel.generate`.

    Attributes:
        messages: the conversation, oldest first. You can change it between turns.
        options: of generation, by name. You can change them between turns.
        seed: of the newest answer, known when it begins; None before the first answer.

    Raises:
        PromptError: if the model lacks a chat template, and neither `plain` nor `chat_template` is given.
        OptionError: if an option is unknown, out of range, or not read.
    """

    def __init__(
        self,
        lm: ChatModel,
        *,
        system: str | None = None,
        messages: Sequence[Message] = (),
        plain: bool = False,
        tools: Sequence[Any] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        config: GenerationConfig | None = None,
        **options: Any,
    ) -> None:
        self.messages: list[Message] = list(read_chat(list(messages))) if messages else []
        self.plain, self.tools = plain, tools
        self.chat_template, self.chat_template_kwargs = chat_template, chat_template_kwargs
        self.config, self.options = config, dict(options)
        self._open: TurnStream | None = None
        self.seed: Any = None
        self._tries = 0
        self._check(lm, self.options)
        self.lm = lm
        if system is not None:
            self.system = system

    def _check(self, lm: ChatModel, options: Mapping[str, Any]) -> None:
        """Check that this model can answer under these options.

        Raises:
            PromptError, OptionError: as the constructor.
        """
        if not self.plain:
            check_template(lm.tokenizer, self.chat_template)
        resolve_options(options, self.config, lm.config)

    def __repr__(self) -> str:
        count = len(self.messages)
        return f"<Chat with {self.lm.info.name}: {count} message{'' if count == 1 else 's'}>"

    # --- turns ----------------------------------------------------------------------------------------------------

    def say(self, message: str | Message | Sequence[Message], **options: Any) -> ChatGeneration:
        """Add a message and its answer to the conversation, and return the answer.

        Args:
            message: a text of the user, a message, or several messages, such as the results of tools.
            options: for this answer; they override those of the conversation. `images` and `audio`, as in
                `LanguageModel.generate`, become parts of the message.

        Raises:
            PromptError, OptionError, CapacityError, NumericsError: as in `LanguageModel.chat`. The conversation then
                stays unchanged.
        """
        message, options = _with_media(message, options)
        before = self._add(message)
        return self._whole(before, options)

    def stream(self, message: str | Message | Sequence[Message], **options: Any) -> TurnStream:
        """Add a message to the conversation, and stream its answer.

        The answer joins the conversation when the stream ends. If the stream is closed early, the text so far joins it.
        If the answer is empty, or an error ends the stream, the message is removed again.

        Args:
            message: as in `say`.
            options: as in `say`; `tentative` as in `LanguageModel.stream`.

        Raises:
            PromptError, OptionError, CapacityError: as in `say`.
        """
        message, options = _with_media(message, options)
        before = self._add(message)
        return self._streamed(before, options)

    @overload
    def retry(self, *, stream: Literal[False] = ..., **options: Any) -> ChatGeneration: ...

    @overload
    def retry(self, *, stream: Literal[True], **options: Any) -> TurnStream: ...

    def retry(self, *, stream: bool = False, **options: Any) -> ChatGeneration | TurnStream:
        """Remove the last answer, if there is one, and answer the last message again.

        If the conversation has a seed, each try adds 1 to it.

        Raises:
            PromptError: if the conversation lacks a message to answer; or as in `say`.
        """
        self.close()
        before = list(self.messages)
        waiting = self.messages[:-1] if before and before[-1]["role"] == "assistant" else self.messages
        if not waiting or waiting[-1]["role"] in ("assistant", "system"):
            raise PromptError("the conversation contains no message to answer again")
        self.messages, self._tries = list(waiting), self._tries + 1
        return self._streamed(before, options) if stream else self._whole(before, options)

    @overload
    def edit(self, message: str, *, stream: Literal[False] = ..., **options: Any) -> ChatGeneration: ...

    @overload
    def edit(self, message: str, *, stream: Literal[True], **options: Any) -> TurnStream: ...

    def edit(self, message: str, *, stream: bool = False, **options: Any) -> ChatGeneration | TurnStream:
        """Replace the user's last message by another text, remove all later messages, and answer it.

        Raises:
            PromptError: if the conversation lacks a message to edit; or as in `say`.
        """
        self.close()
        before = list(self.messages)
        if self.undo() is None:
            raise PromptError("the conversation contains no message to edit")
        self._add(message)
        return self._streamed(before, options) if stream else self._whole(before, options)

    def undo(self) -> str | None:
        """Remove the user's last message and all later ones. Returns its content, or None if the user said nothing."""
        self.close()
        places = [place for place, each in enumerate(self.messages) if each["role"] == "user"]
        if not places:
            return None
        text: str = self.messages[places[-1]]["content"]
        del self.messages[places[-1] :]
        self._tries = 0
        return text

    def reset(self) -> None:
        """Begin a new conversation under the same system message and options."""
        self.close()
        self.messages = [each for each in self.messages[:1] if each["role"] == "system"]
        self._tries = 0

    def close(self) -> None:
        """End an unfinished stream of an answer. The text so far joins the conversation."""
        if self._open is not None:
            self._open.close()

    @property
    def system(self) -> str | None:
        """The content of the system message; None for none."""
        first = self.messages[0] if self.messages else None
        return first["content"] if first is not None and first["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.messages[1:] if self.system is not None else self.messages
        self.messages = rest if text is None else [{"role": "system", "content": text}, *rest]

    # --- files ----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write messages and options to a file as JSON. Objects such as processors and tools are left out.

        Args:
            path: a new file, or a file with an earlier conversation, which is replaced in one step.

        Raises:
            PromptError: if the file holds something else, or a message cannot be written as JSON.
            OSError: if the file cannot be written.
        """
        given = self.config.to_dict() if self.config is not None else {}
        write_chat(Path(path), self.messages, {**given, **self.options}, model=self.lm.info.name)

    @classmethod
    def load(cls, path: str | os.PathLike[str], lm: ChatModel, **arguments: Any) -> Chat:
        """Return the conversation in a file.

        Args:
            path: of a file that `save` wrote, or of a JSON list of messages.
            lm: answers from now on; it can be another model than before.
            arguments: of `Chat`; options override those in the file.

        Raises:
            PromptError: if the file holds no conversation. OptionError: if an option does not fit this model.
            OSError: if the file cannot be read.
        """
        saved = read_file(Path(path))
        return cls(lm, messages=saved.messages, **{**saved.options, **arguments})

    # --- one answer -----------------------------------------------------------------------------------------------

    def _add(self, message: str | Message | Sequence[Message]) -> list[Message]:
        """Add messages. Returns the conversation before them."""
        self.close()
        before = list(self.messages)
        if isinstance(message, str):
            self.messages.append({"role": "user", "content": message})
        else:
            self.messages += read_chat([message] if isinstance(message, Mapping) else message)
        self._tries = 0
        return before

    def _whole(self, before: list[Message], options: Mapping[str, Any]) -> ChatGeneration:
        try:
            answer = self._ask(options, stream=False)
        except BaseException:
            self.messages = before
            raise
        assert isinstance(answer, ChatGeneration), "one conversation has one answer"
        self.messages.append(answer.message)
        return answer

    def _streamed(self, before: list[Message], options: Mapping[str, Any]) -> TurnStream:
        """Return the stream of the answer to the last message.

        Args:
            before: the conversation to restore without an answer.
            options: they override those of the conversation.
        """

        def on_end(message: Message | None) -> None:
            self._open = None
            if message is None:
                self.messages = before
            else:
                self.messages.append(message)

        try:
            chunks = self._ask(options, stream=True)
        except BaseException:
            self.messages = before
            raise
        assert isinstance(chunks, ChatStream), "a stream was asked for"
        self._open = TurnStream(chunks, on_end, trims=self.plain)
        return self._open

    def _ask(self, given: Mapping[str, Any], *, stream: bool) -> Any:
        options = {**self.options, **given}
        self.seed = options.get("seed", self.config.seed if self.config is not None else None)
        if self.seed is None:
            self.seed = fresh_seed()
        elif "seed" not in given and isinstance(self.seed, int):
            self.seed += self._tries  # the same seed would give the same answer
        options["seed"] = self.seed
        if self.plain:
            return chat_plain(self.lm, self.messages, stream=stream, config=self.config, options=options)
        return chat(
            self.lm,
            self.messages,
            tools=self.tools,
            continue_final_message=False,
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs,
            stream=stream,
            config=self.config,
            options=options,
        )


def _with_media(
    message: str | Message | Sequence[Message], options: dict[str, Any]
) -> tuple[str | Message | Sequence[Message], dict[str, Any]]:
    """Return a message with the images and audio among the options of a turn, and the other options."""
    media = [options.get("images"), options.get("audio")]
    rest = {name: value for name, value in options.items() if name not in ("images", "audio")}
    if media == [None, None]:
        return message, rest
    turns = [{"role": "user", "content": message}] if isinstance(message, str) else message
    turns = [dict(turns)] if isinstance(turns, Mapping) else list(turns)
    return [*turns[:-1], with_media(turns[-1], *media)], rest

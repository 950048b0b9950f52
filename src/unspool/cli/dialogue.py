"""A conversation in a terminal: what has been said, under which options, and who answers.

Owns: the messages, and every way they change. Does not know: keyboards, screens, commands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from unspool.config import OPTIONS, GenerationConfig
from unspool.errors import OptionError, PromptError
from unspool.text.chat import TRANSCRIPT_STOPS, Message, check_template, read_chat, transcript

if TYPE_CHECKING:
    from unspool.chat_completion import ChatStream
    from unspool.model import LanguageModel
    from unspool.streaming import Stream

Answering: TypeAlias = "Stream | ChatStream"

_ONE_ANSWER: Final[Mapping[str, str]] = {
    "num_return_sequences": "a conversation goes on from one answer; /retry brings another",
    "logprobs": "use unspool generate --json",
    "echo": "what was said stands above",
}


class Dialogue:
    """Who said what, and what comes next.

    Args:
        model: answers.
        options: of generation, checked against the model's own.
        plain: write the conversation as a transcript, for models without a chat template.
        chat_template: in Jinja; None for the tokenizer's own.
        system: what the model is told before all else; None for nothing.

    Raises:
        PromptError: there is no chat template, and neither `plain` nor `chat_template` says what to do without.
        OptionError: an option would have no effect on the answers.
    """

    def __init__(
        self,
        model: LanguageModel,
        options: Mapping[str, Any],
        *,
        plain: bool = False,
        chat_template: str | None = None,
        system: str | None = None,
    ) -> None:
        self.messages: list[Message] = []
        self.options: dict[str, Any] = {}
        self._plain, self._chat_template = plain, chat_template
        self._tries = 0
        self.answer_with(model, options)
        self.set_system(system)

    def answer_with(self, model: LanguageModel, options: Mapping[str, Any] | None = None) -> None:
        """Let this model answer from now on; the conversation and, unless others are given, the options stay.

        Raises:
            PromptError, OptionError: it cannot; then nothing changes.
        """
        if not self._plain:
            _check_has_template(model, self._chat_template)
        wanted = dict(self.options if options is None else options)
        _check_options(wanted, model)
        self.model, self.options = model, wanted

    # --- what is said -------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Add a message of the user's."""
        self.messages.append({"role": "user", "content": text})
        self._tries = 0

    def stream(self, *, tentative: bool) -> Answering:
        """Return the answer to the last message, as it comes.

        Raises:
            PromptError: the conversation is longer than the model holds, or the template does not take it.
        """
        options = dict(self.options)
        if tentative:
            options["tentative"] = True
        if self._tries and isinstance(options.get("seed"), int):
            options["seed"] += self._tries  # or another try would bring the same answer
        if not self._plain:
            return self.model.chat(self.messages, stream=True, chat_template=self._chat_template, **options)
        own = OPTIONS["stop_strings"].check(options.get("stop_strings")) or ()
        options["stop_strings"] = (*TRANSCRIPT_STOPS, *own)
        return self.model.stream(transcript(self.messages), **options)

    def heard(self, text: str) -> None:
        """Add the answer."""
        self.messages.append({"role": "assistant", "content": text})

    @property
    def trims(self) -> bool:
        """Whether blanks around an answer belong to the transcript, not to what is said."""
        return self._plain

    @property
    def turn(self) -> str | None:
        """The user's last message; None where there is none."""
        return next((each["content"] for each in reversed(self.messages) if each["role"] == "user"), None)

    def take_back_answer(self) -> bool:
        """Take the last answer back, so that there can be another. Returns whether a message waits for one."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        waiting = bool(self.messages) and self.messages[-1]["role"] == "user"
        self._tries += waiting
        return waiting

    def take_back_turn(self) -> str | None:
        """Take the user's last message back, and all that followed. Returns it, or None where there is none."""
        text = self.turn
        while text is not None and self.messages.pop()["role"] != "user":
            pass
        return text

    def reset(self) -> None:
        """Begin anew; what the model is told before all else stays."""
        self.messages = [each for each in self.messages[:1] if each["role"] == "system"]

    @property
    def system(self) -> str | None:
        """What the model is told before all else."""
        first = self.messages[0] if self.messages else None
        return first["content"] if first is not None and first["role"] == "system" else None

    def set_system(self, text: str | None) -> None:
        """Tell the model something before all else; None for nothing."""
        rest = self.messages[1:] if self.system is not None else self.messages
        self.messages = rest if text is None else [{"role": "system", "content": text}, *rest]

    # --- options ------------------------------------------------------------------------------------------------

    def set_option(self, name: str, text: str) -> None:
        """Set an option for the answers to come.

        Args:
            name: as in Python or on the command line.
            text: the value as text or JSON; "off" turns the option off, "default" takes it back.

        Raises:
            OptionError: there is none of that name, or the value cannot be had; then nothing changes.
        """
        name = name.removeprefix("--").replace("-", "_")
        row = OPTIONS.get(name)
        if row is None:
            GenerationConfig.from_dict({name: text})
            raise OptionError(name, text, "has no effect on tokens", "leave it out")
        wanted = {known: value for known, value in self.options.items() if known != name}
        if text != "default":
            words: dict[str, Any] = {"on": True, "off": False} if row.cli_type == "bool" else {"off": None}
            wanted[name] = row.check(words[text]) if text in words else row.from_text(text)
        _check_options(wanted, self.model)
        self.options = wanted

    # --- files --------------------------------------------------------------------------------------------------

    def save(self, file: Path) -> None:
        """Write the conversation to a file, which may hold an earlier one but nothing else.

        Raises:
            PromptError: the file holds something else. OSError: it cannot be written.
        """
        if file.exists():
            try:
                _read(file)
            except PromptError as error:
                raise PromptError(f"{error}; it is left as it is: name another file") from None
        known = GenerationConfig(**{name: value for name, value in self.options.items() if name in OPTIONS})
        saved = {"model": self.model.info.name, "options": known.to_dict(), "messages": self.messages}
        file.write_text(json.dumps(saved, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def load(self, file: Path) -> None:
        """Take up the conversation in a file; options stay as they are.

        Raises:
            PromptError: the file holds none. OSError: it cannot be read.
        """
        self.messages = _read(file)
        self._tries = 0


def _read(file: Path) -> list[Message]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PromptError(f"{file} holds no conversation: {error}") from None
    messages = found.get("messages") if isinstance(found, dict) else found
    if messages == []:
        return []
    try:
        read = list(read_chat(messages))
    except PromptError as error:
        raise PromptError(f"{file} holds no conversation: {error}") from None
    if not all(isinstance(each.get("content"), str) for each in read):
        raise PromptError(f"{file} holds a message that is more than text, which has no place in a terminal")
    return read


def _check_has_template(model: LanguageModel, chat_template: str | None) -> None:
    try:
        check_template(model.tokenizer, chat_template)
    except PromptError:
        raise PromptError(
            f"{model.info.name} has no chat template: it was made to go on from texts, not to answer. --plain writes "
            "the conversation as a transcript that it goes on with; --chat-template FILE says how to write it otherwise"
        ) from None


def _check_options(options: Mapping[str, Any], model: LanguageModel) -> None:
    from unspool.planning import resolve_options

    for name, hint in _ONE_ANSWER.items():
        if options.get(name) not in (None, False, 1):
            raise OptionError(name, options[name], "has no place in a conversation", hint)
    resolve_options(options, None, model.config)

"""A conversation in a terminal: `unspool.Chat` with options as text, and one answer per turn.

Owns: the words of its errors on a command line, and options that are set by text. Does not know: keyboards, screens,
commands. Importing it loads PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unspool.config import OPTIONS, GenerationConfig
from unspool.conversations.files import read_file
from unspool.conversations.session import Chat
from unspool.errors import OptionError, PromptError
from unspool.text.chat import check_template

if TYPE_CHECKING:
    from unspool.conversations.completion import ChatModel

_ONE_ANSWER: Final[Mapping[str, str]] = {
    "num_return_sequences": "a conversation goes on from one answer; /retry brings another",
    "logprobs": "use unspool generate --json",
    "echo": "what was said stands above",
}


class Dialogue(Chat):
    """A conversation in a terminal.

    Args:
        model: answers.
        options: of generation.
        plain, chat_template, system: as in Chat.

    Raises:
        PromptError: if there is no chat template, and neither `plain` nor `chat_template` stands in for it.
        OptionError: if an option would have no effect on the answers.
    """

    def __init__(
        self,
        model: ChatModel,
        options: Mapping[str, Any],
        *,
        plain: bool = False,
        chat_template: str | None = None,
        system: str | None = None,
    ) -> None:
        super().__init__(model, plain=plain, chat_template=chat_template, system=system, **options)

    def _check(self, lm: ChatModel, options: Mapping[str, Any]) -> None:
        if not self.plain:
            _check_has_template(lm, self.chat_template)
        for name, hint in _ONE_ANSWER.items():
            if options.get(name) not in (None, False, 1):
                raise OptionError(name, options[name], "has no place in a conversation", hint)
        super()._check(lm, options)

    def answer_with(self, model: ChatModel) -> None:
        """Let this model answer from now on; the conversation and the options stay.

        Raises:
            PromptError, OptionError: if it cannot; then nothing changes.
        """
        self._check(model, self.options)
        self.close()
        self.lm = model

    @property
    def turn(self) -> str | None:
        """The user's last message; None if there is none."""
        return next((each["content"] for each in reversed(self.messages) if each["role"] == "user"), None)

    def set_option(self, name: str, text: str) -> None:
        """Set an option for the answers to come.

        Args:
            name: as in Python or on the command line.
            text: the value as text or JSON; "off" turns the option off, "default" takes it back.

        Raises:
            OptionError: if there is none of that name, or the value is refused; then nothing changes.
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
        self._check(self.lm, wanted)
        self.options = wanted

    def take_up(self, file: Path) -> None:
        """Go on with the conversation in a file; options stay as they are.

        Raises:
            PromptError: if the file holds no conversation, or a message that is more than text.
            OSError: if it cannot be read.
        """
        messages = read_file(file).messages
        if not all(isinstance(each.get("content"), str) for each in messages):
            raise PromptError(f"{file} holds a message that is more than text, which has no place in a terminal")
        self.reset()
        self.messages = messages


def _check_has_template(model: ChatModel, chat_template: str | None) -> None:
    try:
        check_template(model.tokenizer, chat_template)
    except PromptError:
        raise PromptError(
            f"{model.info.name} has no chat template: it was made to go on from texts, not to answer. --plain writes "
            "the conversation as a transcript that it goes on with; --chat-template FILE says how to write it otherwise"
        ) from None

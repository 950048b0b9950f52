"""Dialogue: `unspool.Chat` for a terminal, with options set by text and one answer per turn.

Owns: error messages for the command line, and the parsing of option values. Does not know: keyboards, screens,
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
    "num_return_sequences": "a conversation has one answer per turn; /retry gives another",
    "logprobs": "use unspool generate --json",
    "echo": "the screen already shows the conversation",
}


class Dialogue(Chat):
    """A conversation in a terminal.

    Args:
        model: the model that answers.
        options: generation options.
        plain, chat_template, system: as in Chat.

    Raises:
        PromptError: if the model lacks a chat template and neither `plain` nor `chat_template` replaces it.
        OptionError: if an option does not apply to a conversation, or is invalid.
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
                raise OptionError(name, options[name], "cannot be used in a conversation", hint)
        super()._check(lm, options)

    def switch_model(self, model: ChatModel) -> None:
        """Switch to another model; the conversation and the options stay.

        Raises:
            PromptError: if the model lacks a chat template; nothing changes.
            OptionError: if an option does not apply to the model; nothing changes.
        """
        self._check(model, self.options)
        self.close()
        self.lm = model

    @property
    def turn(self) -> str | None:
        """The user's last message; None before the first message."""
        return next((each["content"] for each in reversed(self.messages) if each["role"] == "user"), None)

    def set_option(self, name: str, text: str) -> None:
        """Set an option for all later answers.

        Args:
            name: name of the option, as in Python or on the command line.
            text: the value as text or JSON; "off" turns the option off, "default" unsets it.

        Raises:
            OptionError: if the option is unknown or the value is invalid; nothing changes.
        """
        name = name.removeprefix("--").replace("-", "_")
        row = OPTIONS.get(name)
        if row is None:
            GenerationConfig.from_dict({name: text})
            raise OptionError(name, text, "does not change the tokens", "leave it out")
        wanted = {known: value for known, value in self.options.items() if known != name}
        if text != "default":
            words: dict[str, Any] = {"on": True, "off": False} if row.cli_type == "bool" else {"off": None}
            wanted[name] = row.check(words[text]) if text in words else row.from_text(text)
        self._check(self.lm, wanted)
        self.options = wanted

    def resume(self, file: Path) -> None:
        """Load the conversation from a file and continue it; options stay the same.

        Raises:
            PromptError: if the file does not contain a conversation, or a message is not plain text.
            OSError: if the file cannot be read.
        """
        messages = read_file(file).messages
        if not all(isinstance(each.get("content"), str) for each in messages):
            raise PromptError(f"{file} contains a message that is not plain text; a terminal can show only text")
        self.reset()
        self.messages = messages


def _check_has_template(model: ChatModel, chat_template: str | None) -> None:
    try:
        check_template(model.tokenizer, chat_template)
    except PromptError:
        raise PromptError(
            f"{model.info.name} has no chat template: it was trained to continue texts, not to chat. Use --plain to "
            "continue a transcript of the conversation, or --chat-template FILE to set a template"
        ) from None

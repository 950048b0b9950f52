"""Chat templates: messages to token ids, and outputs back to messages.

Owns: the only calls of chat templates, and the plain transcript for models without a template. Does not know: models,
generation.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from unspool.errors import PromptError
from unspool.text.detokenize import Detokenizer
from unspool.text.emit import text_of
from unspool.text.encode import quiet

Message: TypeAlias = dict[str, Any]
"""A turn in the format of OpenAI's API and transformers: "role" and "content", and further fields of the template."""

TRANSCRIPT_STOPS: Final = ("\nUser:", "\nAssistant:")
"""Stop strings of a transcript: the start of the next turn ends the answer."""

_NAMES: Final = {"user": "User", "assistant": "Assistant"}
_CONTENTS: Final = ("content", "tool_calls")
_MARK: Final = "mark"


def is_message(given: Any) -> bool:
    """Return True if this is a message: it has a role, and content or tool calls."""
    return isinstance(given, Mapping) and "role" in given and any(name in given for name in _CONTENTS)


def is_chat(given: Any) -> bool:
    """Return True if this is a conversation: a list of messages."""
    return isinstance(given, list | tuple) and bool(given) and is_message(given[0])


def read_chat(given: Any) -> tuple[Message, ...]:
    """Return the messages of one conversation, as copies.

    Raises:
        PromptError: if `given` is not a list of messages, or is empty.
    """
    if not isinstance(given, list | tuple) or not given:
        shape = "an empty list" if isinstance(given, list | tuple) else type(given).__name__
        raise PromptError(f"a conversation must be a list of messages, got {shape}")
    for index, each in enumerate(given):
        if not is_message(each):
            raise PromptError(
                f"message {index} must be a dict such as {{'role': 'user', 'content': 'Hello'}}, got {each!r}"
            )
    return tuple(dict(each) for each in given)


def check_template(tokenizer: Any, chat_template: str | None = None) -> None:
    """Check that there is a chat template.

    Raises:
        PromptError: if the tokenizer is None or does not support chat templates, or if neither the tokenizer nor the
            argument gives a template.
    """
    if tokenizer is None:
        raise PromptError("a conversation needs a tokenizer; give `tokenizer=` to load()")
    if not hasattr(tokenizer, "apply_chat_template"):
        raise PromptError("the tokenizer cannot apply chat templates; give a transformers tokenizer as `tokenizer=`")
    if chat_template is None and not getattr(tokenizer, "chat_template", None):
        raise PromptError(
            "the tokenizer has no chat template, the format of a conversation: the model was made for plain text. Pass "
            "a Jinja template as `chat_template=`, or generate from a text"
        )


def encode_chat(
    messages: Sequence[Message],
    tokenizer: Any,
    *,
    tools: Sequence[Any] | None = None,
    continue_final_message: bool = False,
    chat_template: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    tokenizer_options: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """Apply the chat template, and return the token ids of a conversation up to the assistant's turn.

    The template writes all special tokens, so the tokenizer does not add a second beginning-of-sequence token.

    Args:
        messages: oldest first.
        tokenizer: a transformers tokenizer.
        tools: functions, or their JSON schemas, that the template describes to the model; None for no tools.
        continue_final_message: True to continue the last message instead of a new turn.
        chat_template: a Jinja template, or the name of one of the tokenizer's templates; None for its default.
        template_options: further variables of the template, such as `documents` or `enable_thinking`.
        tokenizer_options: arguments of the tokenizer, such as `truncation` and `max_length`.

    Raises:
        PromptError: if the template is missing, or rejects these messages.
    """
    check_template(tokenizer, chat_template)
    warnings_off = {"tokenizer_kwargs": found} if (found := quiet(tokenizer)) else {}
    try:
        ids = tokenizer.apply_chat_template(
            list(messages),
            tools=None if tools is None else list(tools),
            chat_template=chat_template,
            add_generation_prompt=not continue_final_message,
            continue_final_message=continue_final_message,
            return_dict=False,
            **warnings_off,
            **(tokenizer_options or {}),
            **(template_options or {}),
        )
    except Exception as error:  # a template is a program by its author, and can raise any exception
        reason = str(error).strip() or type(error).__name__
        raise PromptError(f"the chat template rejects these messages: {reason}") from error
    if not ids:
        raise PromptError("the chat template returns an empty text for these messages")
    return tuple(ids)


def turn_end(
    tokenizer: Any, chat_template: str | None = None, template_options: Mapping[str, Any] | None = None
) -> int | None:
    """Return the special token that ends an assistant's turn in the template; None if the template lacks one.

    The end-of-sequence token of the generation config can differ: it can end whole texts, not turns.
    """
    turns = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": _MARK}]
    try:
        text = tokenizer.apply_chat_template(
            turns, chat_template=chat_template, tokenize=False, **(template_options or {})
        )
    except Exception:  # the template rejects these test messages, so its end of turn stays unknown
        return None
    rest = text[text.rfind(_MARK) + len(_MARK) :].lstrip() if _MARK in text else ""
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    fitting = [
        (len(token.content), id) for id, token in added.items() if token.special and rest.startswith(token.content)
    ]
    return max(fitting)[1] if fitting else None


def answer_of(
    text: str,
    *,
    tokenizer: Any,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    tools: Sequence[Any] | None,
    stops: Sequence[str] = (),
) -> Message:
    """Return an output as the assistant's message.

    If the tokenizer has a response template, it parses the message into content, thinking and tool calls. Otherwise, or
    if the template cannot read the text, the content is the text.

    Args:
        text: the output's text, without special tokens.
        prompt_ids, token_ids: token ids of the conversation and of the output.
        tools: as given to `encode_chat`.
        stops: the stop strings, if one of them ended the output.

    Warns:
        UserWarning: if the template cannot read the text.
    """
    if getattr(tokenizer, "response_template", None) is None:
        return {"role": "assistant", "content": text}
    before = tokenizer.decode(list(prompt_ids))
    if stops:
        raw = text_of(
            Detokenizer(tokenizer),
            prompt_ids,
            token_ids=token_ids,
            finish_reason="stop",
            stops=tuple(stops),
            special=True,
        )
    else:
        raw = tokenizer.decode(list(token_ids))
    try:
        parsed: Message = tokenizer.parse_response(raw, prefix=before, tools=None if tools is None else list(tools))
    except Exception as error:  # the parser raises errors of several kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        message = f"the tokenizer's `response_template` cannot read an answer ({reason}): its content is the whole text"
        warnings.warn(message, UserWarning, stacklevel=2)
        return {"role": "assistant", "content": text}
    return parsed


def seen_message(
    messages: Sequence[Message],
    tokenizer: Any,
    *,
    tools: Sequence[Any] | None = None,
    chat_template: str | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> Message:
    """Return the last message as `continue_final_message` shows it to the model, without whitespace that it trims.

    Args:
        messages: as given to `encode_chat`; the content of the last message is text.
        tokenizer, tools, chat_template, template_options: as in `encode_chat`.
    """
    rendered: str = tokenizer.apply_chat_template(
        list(messages),
        tools=None if tools is None else list(tools),
        chat_template=chat_template,
        continue_final_message=True,
        tokenize=False,
        **(template_options or {}),
    )
    content: str = messages[-1]["content"]
    forms = (content, content.rstrip(), content.lstrip(), content.strip())
    seen = next((form for form in forms if rendered.endswith(form)), content)
    return {**messages[-1], "content": seen}


def continued(message: Message, text: str) -> Message:
    """Return a copy of the message with the text appended to its content.

    Raises:
        PromptError: if its content is not text.
    """
    content = message.get("content")
    if not isinstance(content, str):
        raise PromptError(f"only a message with text content can be continued, got {type(content).__name__}")
    return {**message, "content": content + text}


def transcript(messages: Sequence[Message]) -> str:
    """Return a conversation as plain text up to the assistant's turn, for models without a chat template.

    Raises:
        PromptError: if a message's content is not text.

    Example:
        Answer in verse.

        User: Who are you?
        Assistant:
    """
    lines = []
    for message in messages:
        content = message.get("content")
        if not isinstance(content, str):
            raise PromptError(f"a transcript can contain only text, got a message with {type(content).__name__}")
        role = message["role"]
        lines.append(f"{content.strip()}\n" if role == "system" else f"{_NAMES.get(role, role)}: {content.strip()}")
    return "\n".join([*lines, f"{_NAMES['assistant']}:"])

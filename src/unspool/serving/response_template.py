"""The flag `--response-template`: how transformers' parser finds tool calls and reasoning in answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unspool.errors import OptionError

_OPTION = "response_template"


def set_response_template(tokenizer: Any, given: str) -> None:
    """Give a tokenizer a response template.

    Args:
        tokenizer: of transformers.
        given: the template as JSON, or the name of a file with it.

    Raises:
        OptionError: if the model lacks a tokenizer, or if transformers refuses the template.
        OSError: if the file cannot be read.
    """
    if tokenizer is None:
        raise OptionError(_OPTION, given, "needs a tokenizer, which this model lacks", "give --tokenizer as well")
    from transformers.utils.chat_parsing.response_templates import load_response_template

    try:
        text = given if given.lstrip().startswith("{") else Path(given).read_text(encoding="utf-8")
        template = json.loads(text)
        load_response_template(template)
    except ValueError as error:  # errors of JSON and of UTF-8 are ValueErrors, too
        allowed = f"must be a response template of transformers ({error})"
        raise OptionError(_OPTION, given, allowed, "see docs/serving.md") from None
    tokenizer.response_template = template

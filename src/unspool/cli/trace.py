"""`unspool trace`: draws all tokens that a strategy tried.

Owns: the default length of a trace. Does not know: how a trace is recorded or drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import typer
from rich.console import Console

from unspool.cli.endings import guarded, seeded
from unspool.cli.options import (
    AssistantFlag,
    HtmlFlag,
    JsonFlag,
    PromptArgument,
    PromptFileFlag,
    with_generation_options,
    with_model,
)
from unspool.cli.sources import ModelChoice, read_prompt
from unspool.errors import OptionError

MAX_NEW_TOKENS: Final = 12
_LENGTHS: Final = ("max_new_tokens", "max_length")


@guarded
@with_generation_options
@with_model
def trace(
    prompt: PromptArgument = None,
    *,
    prompt_file: PromptFileFlag = None,
    assistant_model: AssistantFlag = None,
    as_json: JsonFlag = False,
    html: HtmlFlag = None,
    choice: ModelChoice,
    options: Mapping[str, Any],
) -> None:
    """Draw the tokens that a decoding strategy tried, chose and dropped.

    Beams are drawn as a tree, verified drafts pass by pass, and all else token by token with the alternatives.
    By default 12 tokens are generated, to fit on a screen; change this with --max-new-tokens or --max-length.
    With --html, nothing is printed unless --json is given too.
    """
    if html is not None and not html.parent.is_dir():
        raise OptionError("html", str(html), "must be a file in a folder that exists", f"create {html.parent} first")
    text = read_prompt(prompt, prompt_file)
    asked = {**options, **choice.load_assistant(assistant_model)}
    if not any(name in asked for name in _LENGTHS):
        asked["max_new_tokens"] = MAX_NEW_TOKENS
    language_model = choice.load()
    with seeded(asked) as drawn:
        answer = language_model.generate(text, trace=True, **drawn).trace
    assert answer is not None, "a traced generation has a trace"
    if html is not None:
        answer.to_html(html)
    if as_json:
        typer.echo(answer.to_json(indent=2))
    elif html is None:
        Console(highlight=False).print(answer)

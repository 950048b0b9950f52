"""`unspool next`: the distribution of the next token, drawn.

Owns: nothing but the command. Does not know: how it is computed or drawn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

from unspool.cli.endings import guarded
from unspool.cli.options import (
    JsonFlag,
    PromptArgument,
    PromptFileFlag,
    with_generation_options,
    with_model,
)
from unspool.cli.sources import ModelChoice, read_prompt


@guarded
@with_generation_options
@with_model
def next_tokens(
    prompt: PromptArgument = None,
    *,
    prompt_file: PromptFileFlag = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many tokens to show at most.")] = 20,
    as_json: JsonFlag = False,
    choice: ModelChoice,
    options: Mapping[str, Any],
) -> None:
    """Draw the exact distribution the next token would be drawn from.

    Each token's probability under the model, after the processors, and the processor that cut it, if one did.
    """
    text = read_prompt(prompt, prompt_file)
    answer = choice.load().next_tokens(text, limit=limit, **options)
    if as_json:
        typer.echo(json.dumps(answer.to_dict(), ensure_ascii=False, indent=2))
    else:
        Console(highlight=False).print(answer)

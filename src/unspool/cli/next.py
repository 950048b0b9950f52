"""`unspool next`: draws the distribution of the next token.

Owns: the command. Does not know: how the distribution is computed or drawn.
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
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="INT", min=1, help="Most tokens to show; 20 by default.")
    ] = 20,
    as_json: JsonFlag = False,
    choice: ModelChoice,
    options: Mapping[str, Any],
) -> None:
    """Draw the exact distribution of the next token.

    For each token: its probability under the model and after the processors, or the processor that removed it.
    """
    text = read_prompt(prompt, prompt_file)
    answer = choice.load().next_tokens(text, limit=limit, **options)
    if as_json:
        typer.echo(json.dumps(answer.to_dict(), ensure_ascii=False, indent=2))
    else:
        Console(highlight=False).print(answer)

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
    DeviceFlag,
    DtypeFlag,
    GgufFileFlag,
    JsonFlag,
    ModelFlag,
    PromptArgument,
    PromptFileFlag,
    QuantizeFlag,
    with_generation_options,
)
from unspool.cli.sources import load_model, read_prompt


@guarded
@with_generation_options
def next_tokens(
    prompt: PromptArgument = None,
    *,
    prompt_file: PromptFileFlag = None,
    model: ModelFlag = None,
    gguf_file: GgufFileFlag = None,
    dtype: DtypeFlag = None,
    device: DeviceFlag = None,
    quantize: QuantizeFlag = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many tokens to show at most.")] = 20,
    as_json: JsonFlag = False,
    options: Mapping[str, Any],
) -> None:
    """Draw the exact distribution the next token would be drawn from.

    Each token's probability under the model, after the processors, and the processor that cut it, if one did.
    """
    text = read_prompt(prompt, prompt_file)
    answer = load_model(model, dtype=dtype, device=device, gguf_file=gguf_file, quantize=quantize).next_tokens(
        text, limit=limit, **options
    )
    if as_json:
        typer.echo(json.dumps(answer.to_dict(), ensure_ascii=False, indent=2))
    else:
        Console(highlight=False).print(answer)

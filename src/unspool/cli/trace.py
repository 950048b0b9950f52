"""`unspool trace`: everything a strategy tried on its way to an output, drawn.

Owns: how long a trace is unless asked otherwise. Does not know: how it is recorded or drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import typer
from rich.console import Console

from unspool.cli.endings import guarded
from unspool.cli.options import (
    AssistantFlag,
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
from unspool.cli.sources import load_assistant, load_model, read_prompt

MAX_NEW_TOKENS: Final = 12
_LENGTHS: Final = ("max_new_tokens", "max_length")


@guarded
@with_generation_options
def trace(
    prompt: PromptArgument = None,
    *,
    prompt_file: PromptFileFlag = None,
    model: ModelFlag = None,
    gguf_file: GgufFileFlag = None,
    assistant_model: AssistantFlag = None,
    dtype: DtypeFlag = None,
    device: DeviceFlag = None,
    quantize: QuantizeFlag = None,
    as_json: JsonFlag = False,
    options: Mapping[str, Any],
) -> None:
    """Draw what a decoding strategy tried, chose and gave up.

    Beams are drawn as a tree, guesses that were verified pass by pass, all else token by token with the alternatives.
    Unless --max-new-tokens or --max-length is given, 12 tokens are written, which fit on a screen.
    """
    text = read_prompt(prompt, prompt_file)
    asked = {**options, **load_assistant(assistant_model, dtype=dtype, device=device)}
    if not any(name in asked for name in _LENGTHS):
        asked["max_new_tokens"] = MAX_NEW_TOKENS
    answer = (
        load_model(model, dtype=dtype, device=device, gguf_file=gguf_file, quantize=quantize)
        .generate(text, trace=True, **asked)
        .trace
    )
    assert answer is not None, "a traced generation brings its trace"
    if as_json:
        typer.echo(answer.to_json(indent=2))
    else:
        Console(highlight=False).print(answer)

"""`unspool generate`: a prompt goes in, text streams out.

Owns: how several outputs are told apart in one stream. Does not know: how text is made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from unspool.cli.screen import Screen
from unspool.cli.sources import load_assistant, load_model, read_prompt
from unspool.errors import OptionError

if TYPE_CHECKING:
    from unspool.results import Chunk, Completion, Generation


@guarded
@with_generation_options
def generate(
    prompt: PromptArgument = None,
    *,
    prompt_file: PromptFileFlag = None,
    model: ModelFlag = None,
    gguf_file: GgufFileFlag = None,
    assistant_model: AssistantFlag = None,
    dtype: DtypeFlag = None,
    device: DeviceFlag = None,
    quantize: QuantizeFlag = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Show text as it comes, or all at once.")] = True,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No closing line on tokens, speed and seed.")] = False,
    options: Mapping[str, Any],
) -> None:
    """Go on from a prompt.

    In a terminal the prompt is shown dim before the text; a pipe gets the text alone, and the prompt with --echo.
    Several outputs are parted by a line of three dashes. In a beam search, what the best beam holds is shown dim
    behind the text until it is certain.
    """
    if not as_json and options.get("logprobs") is not None:
        raise OptionError("logprobs", options["logprobs"], "is shown in the whole result alone", "add --json")
    text = read_prompt(prompt, prompt_file)
    language_model = load_model(model, dtype=dtype, device=device, gguf_file=gguf_file, quantize=quantize)
    asked = {**options, **load_assistant(assistant_model, dtype=dtype, device=device)}
    if as_json:
        typer.echo(json.dumps(language_model.generate(text, **asked).to_dict(), ensure_ascii=False, indent=2))
        return
    # The screen shows the prompt itself, so the model is not asked to repeat it.
    screen = Screen(prompt=text, echo=asked.pop("echo", False))
    if stream:
        if screen.shows_tails:
            asked["tentative"] = True
        with language_model.stream(text, **asked) as chunks:
            show_chunks(screen, chunks)
        generation = chunks.generation
    else:
        generation = language_model.generate(text, **asked)
        show_completions(screen, generation.completions)
    for completion in generation.completions:
        if completion.unmet is not None:
            screen.remark(f"output {completion.index + 1} lacks what was asked for: {completion.unmet}")
    if not quiet:
        screen.remark(summary(generation))


def show_chunks(screen: Screen, chunks: Iterable[Chunk]) -> None:
    """Show outputs one after the other: the first unfinished one live, what comes of later ones kept until its turn."""
    waiting: dict[int, str] = {}
    finished: set[int] = set()
    current = 0
    screen.prompt()
    try:
        for chunk in chunks:
            waiting[chunk.index] = waiting.get(chunk.index, "") + chunk.text
            if chunk.finish_reason is not None:
                finished.add(chunk.index)
            screen.text(waiting.pop(current, ""), tail=chunk.tentative if chunk.index == current else None)
            while current in finished and current + 1 in waiting:
                current += 1
                screen.part()
                screen.text(waiting.pop(current))
    finally:
        screen.end_line()


def show_completions(screen: Screen, completions: Sequence[Completion]) -> None:
    """Show every output of a finished result."""
    screen.prompt()
    for completion in completions:
        if completion.index:
            screen.part()
        screen.text(completion.text)
    screen.end_line()


def summary(generation: Generation) -> str:
    """Return the closing line: what it took, how it ended, and the seed that repeats it."""
    tokens = generation.usage.completion_tokens
    reasons = sorted({completion.finish_reason for completion in generation.completions})
    return (
        f"{tokens} token{'' if tokens == 1 else 's'}, {generation.timing.tokens_per_second:.1f} tokens/s, "
        f"ended by {' and '.join(reasons)}, seed {generation.seed}"
    )

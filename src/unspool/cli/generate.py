"""`unspool generate`: streams the text for one prompt, or writes results for a file of prompts.

Owns: the separation of several outputs in one stream. Does not know: how text is generated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from unspool.cli.batch import generated, generation_text, output_to, write_results
from unspool.cli.endings import guarded, seeded
from unspool.cli.options import (
    AssistantFlag,
    JsonFlag,
    OutputFlag,
    PromptArgument,
    PromptFileFlag,
    PromptsFlag,
    with_generation_options,
    with_model,
)
from unspool.cli.records import read_records
from unspool.cli.screen import Screen
from unspool.cli.sources import ModelChoice, read_prompt
from unspool.errors import OptionError, PromptError

if TYPE_CHECKING:
    from unspool.model import LanguageModel
    from unspool.results import Chunk, Completion, Generation


@guarded
@with_generation_options
@with_model
def generate(
    prompt: PromptArgument = None,
    *,
    prompt_file: PromptFileFlag = None,
    prompts: PromptsFlag = None,
    output: OutputFlag = None,
    assistant_model: AssistantFlag = None,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Stream the text, or print it at the end.")
    ] = True,
    as_json: JsonFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not print tokens, speed and seed.")] = False,
    choice: ModelChoice,
    options: Mapping[str, Any],
) -> None:
    """Continue a prompt, or each prompt of a file.

    In a terminal the prompt is shown dim before the text. A pipe gets the text alone; --echo adds the prompt. A line
    of three dashes separates several outputs. In a beam search, the text of the best beam is dim until it is certain.

    With --prompts, results come in the order of the prompts, each as soon as it is ready; with --json one line per
    prompt. A failed prompt has its error as its result, all others continue, and the exit code is 2.
    """
    if not as_json and options.get("logprobs") is not None:
        raise OptionError("logprobs", options["logprobs"], "is only part of the JSON result", "add --json")
    if prompts is not None:
        if prompt is not None or prompt_file is not None:
            raise PromptError("prompts are given twice; leave out either --prompts or the other prompt")
        records = read_records(prompts, main="prompt")
        model, draft = choice.load(), choice.load_assistant(assistant_model)
        results = generated(model, records, options, draft, as_json=as_json)
        write_results(results, total=len(records), as_json=as_json, text_of=generation_text, to=output)
        return
    text = read_prompt(prompt, prompt_file)
    model, draft = choice.load(), choice.load_assistant(assistant_model)
    with output_to(output) as place, seeded({**options, **draft}) as asked:
        if as_json:
            found = model.generate(text, **asked).to_dict()
            place.write(json.dumps(found, ensure_ascii=False, indent=2) + "\n")
        else:
            _show(model, text, asked, place, stream=stream, quiet=quiet)


def _show(model: LanguageModel, text: str, asked: dict[str, Any], output: TextIO, *, stream: bool, quiet: bool) -> None:
    """Generate and show the outputs of one prompt."""
    # The screen shows the prompt, so the result must not contain it again.
    screen = Screen(prompt=text, echo=asked.pop("echo", False), output=output)
    if stream:
        if screen.shows_tails:
            asked["tentative"] = True
        with model.stream(text, **asked) as chunks:
            show_chunks(screen, chunks)
        generation = chunks.generation
    else:
        generation = model.generate(text, **asked)
        show_completions(screen, generation.completions)
    for completion in generation.completions:
        if completion.unmet is not None:
            screen.remark(f"output {completion.index + 1} lacks forced words: {completion.unmet}")
        if completion.parse_error is not None:
            screen.remark(f"output {completion.index + 1} lacks a value: {completion.parse_error}")
    if not quiet:
        screen.remark(summary(generation))


def show_chunks(screen: Screen, chunks: Iterable[Chunk]) -> None:
    """Show outputs one after the other: the first unfinished output streams, text of later outputs is buffered."""
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
                screen.separate()
                screen.text(waiting.pop(current))
    finally:
        screen.end_line()


def show_completions(screen: Screen, completions: Sequence[Completion]) -> None:
    """Show all outputs of a finished result."""
    screen.prompt()
    for completion in completions:
        if completion.index:
            screen.separate()
        screen.text(completion.text)
    screen.end_line()


def summary(generation: Generation) -> str:
    """Return the summary line: tokens, speed, finish reasons, and the seed that repeats the result."""
    tokens = generation.usage.completion_tokens
    reasons = sorted({completion.finish_reason for completion in generation.completions})
    return (
        f"{tokens} token{'' if tokens == 1 else 's'}, {generation.timing.tokens_per_second:.1f} tokens/s, "
        f"ended by {' and '.join(reasons)}, seed {generation.seed}"
    )

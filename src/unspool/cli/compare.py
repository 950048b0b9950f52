"""`unspool compare`: runs one prompt with several strategies and shows the texts side by side.

Owns: the flag that selects entries, and the default length of texts. Does not know: the definition of an entry, or how
texts are generated and drawn.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from unspool.cli.endings import guarded, seeded, with_parameters
from unspool.cli.options import (
    AssistantFlag,
    JsonFlag,
    PromptArgument,
    PromptFileFlag,
    with_generation_options,
    with_model,
)
from unspool.cli.sources import ModelChoice, read_prompt
from unspool.errors import OptionError

TOKENS: Final = 60
"""Default number of new tokens per text, short enough to read side by side."""

StrategiesFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--strategies",
        "--strategy",
        metavar="NAME,...",
        help="Entries of the line-up to compare, separated by commas or with the flag repeated: greedy, sample, "
        "top_k, top_p, min_p, or a strategy by name. By default all that the model can run.",
        show_default=False,
    ),
]


def with_choice(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with `--strategy` replaced by `--strategies`; it receives the list of names as `chosen`."""

    def call(*, strategy: list[str] | None, **given: Any) -> None:
        command(**given, strategy=None, chosen=[name for names in strategy or () for name in names.split(",")])

    listed = [one for one in inspect.signature(command, eval_str=True).parameters.values() if one.name != "chosen"]
    return with_parameters(
        call, command, [one.replace(annotation=StrategiesFlag) if one.name == "strategy" else one for one in listed]
    )


@guarded
@with_choice
@with_generation_options
@with_model
def compare(
    prompt: PromptArgument = None,
    *,
    prompt_file: PromptFileFlag = None,
    assistant_model: AssistantFlag = None,
    as_json: JsonFlag = False,
    chosen: Sequence[str],
    choice: ModelChoice,
    options: Mapping[str, Any],
) -> None:
    """Continue a prompt with several strategies and show the texts side by side.

    Each strategy gets the options that it reads; a note below the texts lists the others.
    By default texts end after 60 new tokens; change this with --max-new-tokens or --max-length.
    """
    if not as_json and options.get("logprobs") is not None:
        raise OptionError("logprobs", options["logprobs"], "is only part of the JSON result", "add --json")
    names = check_chosen(chosen)
    text = read_prompt(prompt, prompt_file)
    asked = dict(options)
    if asked.keys().isdisjoint(("max_new_tokens", "max_length")):
        asked["max_new_tokens"] = TOKENS
    errors = Console(stderr=True)
    with errors.status("Loading the model"):
        language_model = choice.load()
        asked |= choice.load_assistant(assistant_model)
    with errors.status(f"Writing with {', '.join(names) if names else 'every strategy'}"), seeded(asked) as drawn:
        comparison = language_model.compare(text, names, **drawn)
    if as_json:
        typer.echo(comparison.to_json())
    else:
        Console(highlight=False).print(comparison)


def check_chosen(chosen: Sequence[str]) -> list[str] | None:
    """Return the names without blanks, and with underscores for dashes; None for an empty list.

    Raises:
        OptionError: if a name is not in the line-up. The check comes before a model is loaded.
    """
    if not chosen:
        return None
    from unspool.comparing import check_names

    names = [name.strip().replace("-", "_") for name in chosen]
    check_names(names)
    return names

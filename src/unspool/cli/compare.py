"""`unspool compare`: one prompt, several strategies, their texts side by side.

Owns: how entries are chosen on the command line, and how long texts are there. Does not know: what an entry is, how
texts are made or drawn.
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
"""New tokens of each text unless the call says otherwise: what can be read side by side."""

StrategiesFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--strategies",
        "--strategy",
        metavar="NAME,...",
        help="Which entries of the line-up to compare, parted by commas or with the flag repeated: greedy, sample, "
        "top_k, top_p, min_p, or a strategy by name; all that the model can run unless given.",
        show_default=False,
    ),
]


def with_choice(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with the flag of the one strategy made one for several, which it receives as `chosen`."""

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
    """Go on from a prompt with several strategies and show the texts side by side.

    Options reach every strategy that reads them; the rest is told below the texts.
    Texts end after 60 new tokens unless --max-new-tokens or --max-length says otherwise.
    """
    if not as_json and options.get("logprobs") is not None:
        raise OptionError("logprobs", options["logprobs"], "is shown in the whole result alone", "add --json")
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
    """Return the names with blanks cut off and dashes as in options; None where none is given.

    Raises:
        OptionError: a name is not in the line-up; told before a model is loaded.
    """
    if not chosen:
        return None
    from unspool.comparing import check_names

    names = [name.strip().replace("-", "_") for name in chosen]
    check_names(names)
    return names

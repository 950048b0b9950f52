"""Shared flags: the flags of the model, and one flag per option of the option table.

Owns: the command-line form of an option. Does not know: the list and the meaning of the options (unspool.config).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import typer

from unspool.cli.endings import with_parameters
from unspool.cli.sources import ModelChoice
from unspool.config import GROUPS, OPTIONS, GenerationConfig, Option
from unspool.errors import OptionError

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
Quantize: TypeAlias = Literal["int8", "int4"]

PromptArgument = Annotated[
    str | None,
    typer.Argument(
        help="The text to continue; - reads standard input. If it is left out, a pipe is read.", show_default=False
    ),
]
PromptFileFlag = Annotated[
    Path | None, typer.Option("--prompt-file", metavar="FILE", help="Read the prompt from a file; - is standard input.")
]
PromptsFlag = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help='Read many prompts, one per line: a text, or in a .jsonl file {"prompt": ..., and options of this '
        "prompt}. - is standard input.",
    ),
]
OutputFlag = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write to a file, not to standard output."),
]
AssistantFlag = Annotated[
    str | None,
    typer.Option(
        "--assistant-model",
        metavar="NAME|FOLDER",
        help="Draft model for assisted decoding: a small model with the same tokenizer. Faster, with the same tokens; "
        "tale-draft is the draft of the embedded model.",
    ),
]
HtmlFlag = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write the trace to one HTML file, which works offline: the picture with a player, and the alternatives "
        "of each token.",
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the complete result as JSON.")]

_MODEL_FLAGS: Mapping[str, Any] = {
    "model": Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|PATH",
            help="A local folder, a GGUF file, a hub id, or smollm2; the embedded model by default.",
        ),
    ],
    "gguf_file": Annotated[
        str | None,
        typer.Option("--gguf-file", metavar="NAME", help="A GGUF file in the folder or hub repository of --model."),
    ],
    "tokenizer": Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="NAME|FOLDER", help="A tokenizer for a model that lacks one."),
    ],
    "dtype": Annotated[
        Dtype | None,
        typer.Option("--dtype", metavar="NAME", help="Data type of the weights: auto, float32, bfloat16 or float16."),
    ],
    "device": Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="Device of the model: cpu, cuda, cuda:1, mps.")
    ],
    "quantize": Annotated[
        Quantize | None,
        typer.Option(
            "--quantize",
            metavar="BITS",
            help="Quantize the weights to int8 or int4 on loading: less memory, faster.",
        ),
    ],
    "threads": Annotated[
        int | None,
        typer.Option(
            "--threads",
            metavar="INT",
            min=1,
            help="Number of CPU threads; by default all CPUs that the process can use.",
        ),
    ],
}

_TYPES: Mapping[str, Any] = {"int": int, "float": float, "str": str, "json": str}


def with_model(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with the model flags; it receives their values as `choice`, a ModelChoice."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "choice"]
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _MODEL_FLAGS.items()
    ]

    def call(**given: Any) -> None:
        choice = ModelChoice(**{name: given.pop(name) for name in _MODEL_FLAGS})
        command(**given, choice=choice)

    return with_parameters(call, command, [*own, *flags])


def generation_options() -> list[Option]:
    """Return the options with flags, in the order of `--help`: by group."""
    shown = [option for option in OPTIONS.values() if option.door != "drop_in"]
    return sorted(shown, key=lambda option: GROUPS.index(option.group))


def flag_of(option: Option) -> str:
    """Return the option's name on the command line."""
    return "--" + option.name.replace("_", "-")


def with_generation_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with one flag per option; it receives the given options as a mapping, `options`."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "options"]
    table = generation_options()

    def call(**given: Any) -> None:
        options = {option.name: value for option in table if (value := _take(option, given)) is not None}
        GenerationConfig(**options)  # check the values before a model is loaded
        command(**given, options=options)

    return with_parameters(call, command, [*own, *(one for option in table for one in _parameters(option))])


def _take(option: Option, given: dict[str, Any]) -> Any:
    """Remove the option's flags from `given`, and return its Python value; None if it is not given.

    Raises:
        OptionError: if a JSON value is malformed, or a switch is both on and off.
    """
    value = given.pop(option.name)
    if option.cli_type == "bool":
        on, off = value, given.pop(f"no_{option.name}")
        if on and off:
            raise OptionError(option.name, None, "must be turned on or off", f"leave out one of {_both(option)}")
        return True if on else False if off else None
    if option.multiple:
        return option.from_texts(value) if value else None
    if option.kind.reads_file and value is not None:
        value = _content(option, value)
    return option.from_text(value) if option.cli_type == "json" and value is not None else value


def _content(option: Option, text: str) -> str:
    """Return the value of a flag for a file or a text: the content of the file, or the text itself.

    Raises:
        OptionError: if the text can only be the name of a file, and the file is missing.
        OSError: if the file cannot be read.
    """
    if _FILE_NAME.fullmatch(text):
        if not Path(text).is_file():
            raise OptionError(option.name, text, "names a file that does not exist", "check the path")
        return Path(text).read_text(encoding="utf-8")
    return text


_FILE_NAME: Final = re.compile(r"[^{}\n\"]+\.\w+|[\w./~-]+")
"""Texts that are names of files, and neither JSON nor a grammar."""


def _both(option: Option) -> str:
    return f"{flag_of(option)} and --no-{flag_of(option)[2:]}"


def _parameters(option: Option) -> Iterator[inspect.Parameter]:
    if option.cli_type == "bool":
        yield _parameter(option.name, bool, default=False, option=option)
        # The help of the first form names the second; a column for it would leave too little room for the text.
        yield _parameter(f"no_{option.name}", bool, default=False, option=option, hidden=True)
    else:
        kind = list[str] if option.multiple else _TYPES[option.cli_type]
        yield _parameter(option.name, kind | None, default=None, option=option, metavar=_metavar(option))


def _parameter(name: str, kind: Any, *, default: Any, option: Option, **more: Any) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    declared = typer.Option(flag, help=help_of(option), rich_help_panel=option.group, show_default=False, **more)
    annotation = Annotated[kind, declared]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _metavar(option: Option) -> str:
    return "WORD" if _is_word_list(option) else option.metavar


def _is_word_list(option: Option) -> bool:
    """Return True if the values are words of a fixed list, False if any of them is a file, a text or JSON."""
    return "|" in option.metavar and option.metavar.islower()


def help_of(option: Option) -> str:
    """Return the option's help with option names written as flags, and a note on the values of its flag."""
    flag = flag_of(option)
    parts = [re.sub(r"`(\w+)`", _as_flag, option.help)]
    if option.cli_type == "bool":
        parts.append(f"--no-{flag[2:]} turns it off.")
    elif _is_word_list(option):
        parts.append(f"One of: {option.metavar.replace('|', ', ')}.")
    elif option.kind.reads_file:
        parts.append("A file, or the text itself.")
    elif option.multiple:
        parts.append(_MANY[bool(option.kind.separator)])
    return " ".join(parts)


_MANY: Mapping[bool, str] = {
    True: "Separate several by commas or give a JSON list; the flag can be repeated.",
    False: "For several, repeat the flag or give a JSON list.",
}


def _as_flag(name: re.Match[str]) -> str:
    return flag_of(OPTIONS[name[1]]) if name[1] in OPTIONS else name[0]

"""What a command works on: the prompt and the model.

Owns: where a prompt may come from. Does not know: what is done with it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unspool.errors import PromptError
from unspool.importing import uncollected
from unspool.listing import listed_once

if TYPE_CHECKING:
    from unspool.model import LanguageModel

_NO_PROMPT = "no prompt is given; write it as an argument, name a --prompt-file, or pipe it in"


def read_prompt(argument: str | None, file: Path | None) -> str:
    """Return the prompt: the argument, else the file, else what is piped in. One line end at its end is cut off a file.

    Raises:
        PromptError: none is given, two are, or it is not UTF-8 text.
        OSError: the file cannot be read.
    """
    if argument is not None and file is not None:
        raise PromptError("the prompt is given twice, as an argument and with --prompt-file; leave one out")
    if argument is not None and argument != "-":
        return argument
    if file is not None and str(file) != "-":
        return _decoded(file.read_bytes(), str(file))
    if argument is None and file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise PromptError(_NO_PROMPT)
    text = _decoded(sys.stdin.buffer.read(), "standard input")
    if not text and argument is None and file is None:
        raise PromptError(_NO_PROMPT)
    return text


def _decoded(raw: bytes, source: str) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{source} is not UTF-8 text: byte {error.start} does not fit") from None
    return text.removesuffix("\n").removesuffix("\r")


def load_model(
    name: str | None,
    *,
    dtype: str | None,
    device: str | None,
    gguf_file: str | None = None,
    quantize: Literal["int8", "int4"] | None = None,
) -> LanguageModel:
    """Return the model; other libraries' bars and advice stay silent unless the user asked for them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with uncollected(), listed_once():
        from unspool.loading import load
    return load(name, dtype=dtype, device=device, gguf_file=gguf_file, quantize=quantize)


def load_assistant(name: str | None, *, dtype: str | None, device: str | None) -> dict[str, LanguageModel]:
    """Return the draft model as an option of generation, or nothing where none is named."""
    return {} if name is None else {"assistant_model": load_model(name, dtype=dtype, device=device)}

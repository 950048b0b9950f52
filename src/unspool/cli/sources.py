"""Inputs of a command: the prompt and the model.

Owns: the sources of a prompt, and the messages while a model loads. Does not know: the commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unspool.errors import PromptError
from unspool.startup import gc_paused

if TYPE_CHECKING:
    from unspool.model import LanguageModel


def read_prompt(argument: str | None, file: Path | None, *, noun: str = "prompt") -> str:
    """Return the prompt: the argument, else the file, else the text of a pipe. One final line end is removed.

    Args:
        argument: the prompt itself; "-" reads standard input, None if not given.
        file: name of a file; "-" reads standard input, None if not given.
        noun: the name of the text in messages and in its flag, as in --prompt-file.

    Raises:
        PromptError: if the prompt is missing, given twice, or not UTF-8 text.
        OSError: if the file cannot be read.
    """
    absent = f"the {noun} is missing; give it as an argument, with --{noun}-file, or in a pipe"
    if argument is not None and file is not None:
        raise PromptError(f"the {noun} is given twice, as an argument and with --{noun}-file; leave one out")
    if argument is not None and argument != "-":
        return argument
    if file is not None and str(file) != "-":
        return decoded(file.read_bytes(), str(file))
    if argument is None and file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise PromptError(absent)
    text = decoded(sys.stdin.buffer.read(), "standard input")
    if not text and argument is None and file is None:
        raise PromptError(absent)
    return text


def decoded(raw: bytes, source: str) -> str:
    """Return UTF-8 bytes as text, without one final line end.

    Raises:
        PromptError: if the bytes are not UTF-8.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{source} is not UTF-8 text: byte {error.start} does not fit") from None
    return text.removesuffix("\n").removesuffix("\r")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """The values of the model flags; None for a flag that is not given."""

    model: str | None = None
    gguf_file: str | None = None
    tokenizer: str | None = None
    dtype: str | None = None
    device: str | None = None
    quantize: Literal["int8", "int4"] | None = None
    threads: int | None = None

    def load(self, **limits: int) -> LanguageModel:
        """Load and return the model. limits: further options of `unspool.load`."""
        return self.load_another(self.model, **limits)

    def load_another(self, name: str | None, **limits: int) -> LanguageModel:
        """Load and return the model with another name, with the same flags."""
        named = {"gguf_file": self.gguf_file, "tokenizer": self.tokenizer, "quantize": self.quantize}
        return load_model(name, threads=self.threads, **named, **limits, **self._place())

    def given(self) -> dict[str, Any]:
        """Return the flags that were given, by name."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}

    def load_assistant(self, name: str | None) -> dict[str, LanguageModel]:
        """Load the draft model, and return it as a generation option; an empty dict for None."""
        if name is None:
            return {}
        return {"assistant_model": load_model(name, **self._place())}

    def _place(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "device": self.device}


def load_model(name: str | None, *, threads: int | None = None, **how: Any) -> LanguageModel:
    """Load and return a model. Messages of other libraries are hidden unless environment variables enable them.

    Args:
        name: as in `unspool.load`.
        threads: number of CPU threads, at least 1; None for PyTorch's default.
        how: further options of `unspool.load`.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of transformers
    with gc_paused():
        from unspool.loading.load import load
        from unspool.loading.names import is_here
    if name is not None and not is_here(name) and sys.stderr.isatty():
        sys.stderr.write(f"Looking for {name} on the Hugging Face hub\n")
    if threads is not None:
        from unspool.machine.threads import set_threads

        set_threads(threads)
    with _no_loading_bars():
        return load(name, **how)


@contextmanager
def _no_loading_bars() -> Iterator[None]:
    """Hide transformers' progress bars for weights. Download bars of the hub stay if transformers has a hook."""
    from transformers.utils import logging

    bars: Any = logging
    if hasattr(logging, "set_tqdm_hook"):
        before = bars.set_tqdm_hook(lambda _, given, named: bars.EmptyTqdm(*given, **named))
        try:
            yield
        finally:
            bars.set_tqdm_hook(before)
    else:  # older releases of transformers 5
        bars.disable_progress_bar()
        yield

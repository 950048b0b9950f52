"""What a command works on: the prompt and the model.

Owns: where a prompt can come from, and what is shown while a model loads. Does not know: what is done with them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unspool.errors import PromptError
from unspool.startup import gc_paused

if TYPE_CHECKING:
    from unspool.model import LanguageModel


def read_prompt(argument: str | None, file: Path | None, *, noun: str = "prompt") -> str:
    """Return the prompt: the argument, else the file, else the text of a pipe. A file loses one line end at its end.

    Args:
        noun: what the text is; names its flag as well, as in --prompt-file.

    Raises:
        PromptError: if no prompt is given, two are, or it is not UTF-8 text.
        OSError: if the file cannot be read.
    """
    absent = f"no {noun} is given; write it as an argument, name a --{noun}-file, or pipe it in"
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
    """Return UTF-8 bytes as text, without the line end at the very end.

    Raises:
        PromptError: if they are not UTF-8.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{source} is not UTF-8 text: byte {error.start} does not fit") from None
    return text.removesuffix("\n").removesuffix("\r")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """Which model a command runs, and how: the values of the model's flags, None for those left out."""

    model: str | None = None
    gguf_file: str | None = None
    tokenizer: str | None = None
    dtype: str | None = None
    device: str | None = None
    quantize: Literal["int8", "int4"] | None = None
    threads: int | None = None

    def load(self) -> LanguageModel:
        """Return the model."""
        return self.load_another(self.model)

    def load_another(self, name: str | None) -> LanguageModel:
        """Return the model of another name, loaded as the first one."""
        named = {"gguf_file": self.gguf_file, "tokenizer": self.tokenizer, "quantize": self.quantize}
        return load_model(name, threads=self.threads, **named, **self._place())

    def load_assistant(self, name: str | None) -> dict[str, LanguageModel]:
        """Return the draft model as an option of generation; empty for None."""
        if name is None:
            return {}
        return {"assistant_model": load_model(name, **self._place())}

    def _place(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "device": self.device}


def load_model(name: str | None, *, threads: int | None = None, **how: Any) -> LanguageModel:
    """Return the model. Messages of other libraries stay silent unless the user asked for them.

    Args:
        name: as in `unspool.load`.
        threads: CPU threads to compute with, at least 1; None for PyTorch's own choice.
        how: further options of `unspool.load`.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars that transformers draws itself
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
    """Hide transformers' bars over weights. Bars of downloads are the hub's own, and stay if there is a hook."""
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

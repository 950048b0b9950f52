"""From a name to a folder of transformers: finds the GGUF file and its converted form.

Owns: names of GGUF files. Does not know: conversion, and the place of the results.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from unspool.errors import ModelError, OptionError
from unspool.loading.gguf import cache
from unspool.loading.gguf.packages import SUFFIX, packaged_file
from unspool.progress import tell

_STORED: Final = (torch.float32, torch.bfloat16, torch.float16)


class Converted(NamedTuple):
    """A converted GGUF file. tokenizer_refusal: the reason for a missing tokenizer, or None."""

    folder: Path
    tokenizer_refusal: str | None


def open_gguf(source: str, gguf_file: str | None, dtype: torch.dtype | str, hub: Mapping[str, Any]) -> Converted:
    """Return the converted form of a GGUF file, from the cache or converted now.

    Args:
        source: a file, a folder, a hub id, or a name in `PACKAGED`.
        gguf_file: the file's name in the folder or repository; None if `source` is the file itself.
        dtype: of the model; "auto" is float32, which holds dequantized weights exactly.
        hub: options of `from_pretrained` that choose the files.

    Raises:
        ModelError: if the file is absent, it cannot be converted, or the cache cannot be written.
        MissingExtra: if it must be converted and a package is absent.
    """
    path = _find(source, gguf_file, hub)
    stored = dtype if isinstance(dtype, torch.dtype) and dtype in _STORED else torch.float32
    return _converted(path, stored)


def _converted(path: Path, dtype: torch.dtype) -> Converted:
    from unspool.loading.gguf.conversion import VERSION, convert

    key = cache.identity(path, VERSION)
    # Rounding float32 weights gives any other dtype, so a second copy is not needed.
    for name in (f"{key}-float32", f"{key}-{str(dtype).removeprefix('torch.')}"):
        if (notes := cache.find(name)) is not None:
            return Converted(cache.cache_folder() / name, notes["tokenizer"])
    tell(f"converting {path.name} once; the weights are then kept in {cache.cache_folder()}")
    notes = cache.make(name, lambda folder: convert(path, folder, dtype))
    return Converted(cache.cache_folder() / name, notes["tokenizer"])


def _find(source: str, gguf_file: str | None, hub: Mapping[str, Any]) -> Path:
    """Return the full path of the file."""
    if gguf_file is None:
        path = Path(source).expanduser() if source.lower().endswith(SUFFIX) else packaged_file(source)
        if not path.is_file():
            raise ModelError(f"cannot load {source!r}: the file does not exist; a hub id takes `gguf_file` besides")
        return path.absolute()
    if not isinstance(gguf_file, str | os.PathLike) or not os.fspath(gguf_file).lower().endswith(SUFFIX):
        allowed = "must be the name of a GGUF file in the folder or repository"
        raise OptionError("gguf_file", gguf_file, allowed, "its name ends in .gguf")
    folder = Path(source).expanduser()
    if folder.is_file():
        raise OptionError(
            "gguf_file", gguf_file, "is read with a folder or a hub id, and there is a file", "leave it out"
        )
    if folder.is_dir():
        path = folder / str(hub.get("subfolder", "")) / gguf_file
        if not path.is_file():
            found = ", ".join(sorted(each.name for each in path.parent.glob(f"*{SUFFIX}"))) or "none"
            raise ModelError(f"cannot load {str(path)!r}: the file does not exist; GGUF files there: {found}")
        return path.absolute()
    return _download(source, os.fspath(gguf_file), hub)


def _download(repository: str, gguf_file: str, hub: Mapping[str, Any]) -> Path:
    from transformers.utils.hub import cached_file

    passed = {name: value for name, value in hub.items() if name != "trust_remote_code"}
    try:
        found = cached_file(repository, gguf_file, **passed)
    except Exception as error:  # names, files and the network can raise anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"cannot load {gguf_file!r} of {repository!r}: {reason[0]}") from error
    return Path(str(found)).absolute()

"""The cache of converted GGUF files: one folder per file and dtype.

Owns: the folders' paths, the file that each belongs to, and whether a folder is complete. Does not know: conversion.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from unspool.errors import ModelError

_MANIFEST: Final = "unspool_cache.json"
_PARTIAL: Final = ".partial-"
_STALE_SECONDS: Final = 24 * 3600
_HEAD_BYTES: Final = 1 << 22
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 12


def cache_folder() -> Path:
    """Return the folder of all converted files: "unspool/gguf" in the assets of the Hugging Face cache.

    It follows HF_ASSETS_CACHE, HF_HOME and XDG_CACHE_HOME.
    """
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "unspool" / "gguf"


def identity(path: Path, version: str) -> str:
    """Return a digest that identifies a file, independent of its path.

    Args:
        path: a file.
        version: of the converter; a new version converts the file again.
    """
    status = path.stat()
    digest = hashlib.sha256(f"{version} {status.st_size} {status.st_mtime_ns} ".encode())
    with path.open("rb") as file:
        digest.update(file.read(_HEAD_BYTES))
        for index in range(_SAMPLES):
            file.seek(status.st_size * index // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def find(name: str) -> dict[str, Any] | None:
    """Return the notes of a complete folder; None if it is absent, damaged or half written."""
    folder = cache_folder() / name
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        whole = manifest["files"] == _describe(folder)
        notes = manifest["notes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return notes if whole and isinstance(notes, dict) else None


def make(name: str, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Write a folder atomically: other processes see it complete or not at all.

    Args:
        name: of the folder; a damaged folder of that name is replaced.
        write: writes files into the given folder, and returns notes, which are plain JSON.

    Returns:
        the notes.

    Raises:
        ModelError: if the cache cannot be written.
    """
    parent = cache_folder()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(parent)
        partial = parent / f"{_PARTIAL}{uuid.uuid4().hex}"
        partial.mkdir()
    except OSError as error:
        raise _unwritable(error) from error
    try:
        notes = write(partial)
        text = json.dumps({"files": _describe(partial), "notes": notes}, indent=2)
        (partial / _MANIFEST).write_text(text, encoding="utf-8")
        _publish(partial, parent / name)
    except OSError as error:
        raise _unwritable(error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return notes


def _publish(partial: Path, folder: Path) -> None:
    if find(folder.name) is not None:
        return  # another process was faster
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.replace(partial, folder)
    except OSError:
        if find(folder.name) is None:
            raise


def _describe(folder: Path) -> dict[str, list[int]]:
    """Return file name --> [size in bytes, time of the last change in ns]."""
    return {
        entry.name: [entry.stat().st_size, entry.stat().st_mtime_ns]
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
        if entry.name != _MANIFEST
    }


def _remove_stale(parent: Path) -> None:
    """Remove folders that killed processes left half written."""
    for folder in parent.glob(f"{_PARTIAL}*"):
        if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _unwritable(error: OSError) -> ModelError:
    reason = error.strerror or str(error)
    return ModelError(
        f"cannot write converted weights to {str(cache_folder())!r}: {reason}; choose another folder with HF_HOME"
    )

"""Atomic writes: a file holds either its old content or the new content, even after a crash."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomically(file: Path, text: str) -> None:
    """Write a text file in UTF-8: first beside the target, then replace the target in one step.

    Args:
        file: the target, in a folder that exists. An old file keeps its mode; a link keeps pointing to its file.
        text: the new content.

    Raises:
        OSError: if the file cannot be written; its `filename` is `file`.
    """
    target = file.resolve()
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with open(beside, "x", encoding="utf-8") as written:
            written.write(text)
        if target.exists():
            os.chmod(beside, target.stat().st_mode)
        os.replace(beside, target)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(file)) from error
    finally:
        beside.unlink(missing_ok=True)

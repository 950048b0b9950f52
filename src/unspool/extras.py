"""Optional packages: the extras of this project, and the error that says how to install them.

Owns: which packages an extra needs. Does not know: their use.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final

from unspool.errors import MissingExtra

EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "accelerate": ("accelerate",),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "gguf": ("gguf", "accelerate"),
    "plot": ("matplotlib",),
    "torchao": ("torchao",),
}
"""Extra --> the packages that it installs, under their import names."""


def require_extra(extra: str, reason: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        extra: a key of `EXTRAS`.
        reason: the subject of the message, such as "`device_map` spreads weights".

    Raises:
        MissingExtra: if a package is absent; the message has the pip command.
    """
    for package in EXTRAS[extra]:
        if find_spec(package) is None:
            raise MissingExtra(extra, package, reason)

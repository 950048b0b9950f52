"""Replaces `model.generate` of all transformers models by `unspool.generate`, for programs that stay as they are.

The import does it: `import unspool.replace_generate`. Calls with `custom_generate` stay with transformers.
Owns: the replacement. Does not know: how a call is decoded.
"""

from __future__ import annotations

import functools
from typing import Any

from transformers import GenerationMixin
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from unspool.interop.drop_in import generate as unspool_generate


def undo() -> None:
    """Restore transformers' own `generate`."""
    for owner in (GenerationMixin, WhisperGenerationMixin):
        owner.generate = getattr(owner.generate, "__wrapped__", owner.generate)  # type: ignore[method-assign]


def _replace(owner: Any) -> None:
    original = owner.generate
    if getattr(original, "__module__", None) == __name__:
        return

    @functools.wraps(original)
    def generate(self: Any, *args: Any, **options: Any) -> Any:
        custom = options.get("custom_generate")
        return original(self, *args, **options) if custom is not None else unspool_generate(self, *args, **options)

    generate.__module__ = __name__
    owner.generate = generate


for _owner in (GenerationMixin, WhisperGenerationMixin):
    _replace(_owner)

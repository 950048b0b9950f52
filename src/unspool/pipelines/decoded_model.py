"""A model for transformers' own pipelines: `generate` is ours, everything else is the model's."""

from __future__ import annotations

from typing import Any


class DecodedModel:
    """A model of transformers with another `generate`: `unspool.generate` of the same model.

    Args:
        model: stays unchanged. strict: as in `unspool.generate`.
    """

    def __init__(self, model: Any, strict: bool) -> None:
        self._model, self._strict = model, strict

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, *inputs: Any, **arguments: Any) -> Any:
        """Decode as `unspool.generate` does."""
        from unspool.interop import generate

        return generate(self._model, *inputs, strict=self._strict, **arguments)

"""The pipeline "automatic-speech-recognition": transformers' own, which reads and joins audio, with our decoding.

Owns: the place of the engine in it. Does not know: chunks of audio, and how texts are joined.
"""

from __future__ import annotations

from typing import Any, Final

from unspool.errors import ModelError

_DECODED: Final = ("seq2seq_whisper", "seq2seq")
"""Kinds of models that write text with a decoder."""


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


def speech_recognition(model: Any, *, strict: bool = False, **arguments: Any) -> Any:
    """Return transformers' pipeline for speech recognition, with our engine in place of `model.generate`.

    Args:
        model: a name or folder, or a loaded model of transformers.
        strict: as in `unspool.generate`.
        arguments: of transformers.pipeline; a loaded model needs `tokenizer` and `feature_extractor`.

    Raises:
        ModelError: if the model is a LanguageModel, or writes text without a decoder.
    """
    import transformers

    from unspool.model import LanguageModel

    if isinstance(model, LanguageModel):
        raise ModelError(
            "automatic-speech-recognition takes a name, a folder or a model of transformers; with a LanguageModel use "
            "its `transcribe`"
        )
    made: Any = transformers.pipeline("automatic-speech-recognition", model=model, **arguments)
    if made.type not in _DECODED:
        name = type(made.model).__name__
        raise ModelError(f"{name} writes text without a decoder; use transformers.pipeline")
    made.model = DecodedModel(made.model, strict)
    return made

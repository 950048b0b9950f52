"""The pipeline "automatic-speech-recognition": transformers' own, which reads and joins audio, with our decoding.

Owns: the place of the engine in it. Does not know: chunks of audio, and how texts are joined.
"""

from __future__ import annotations

from typing import Any, Final

from unspool.errors import ModelError
from unspool.pipelines.decoded_model import DecodedModel

_DECODED: Final = ("seq2seq_whisper", "seq2seq")
"""Kinds of models that write text with a decoder."""


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

"""The pipeline "image-text-to-text": transformers' own, which reads images and conversations, with our decoding.

Owns: the place of the engine in it. Does not know: images, processors, and the form of results.
"""

from __future__ import annotations

from typing import Any

from unspool.errors import ModelError
from unspool.pipelines.decoded_model import DecodedModel


def image_text_to_text(model: Any, *, strict: bool = False, **arguments: Any) -> Any:
    """Return transformers' pipeline for images and text, with our engine in place of `model.generate`.

    Args:
        model: a name or folder, or a loaded model of transformers.
        strict: as in `unspool.generate`.
        arguments: of transformers.pipeline; a loaded model needs `processor`.

    Raises:
        ModelError: if the model is a LanguageModel.
    """
    import transformers

    from unspool.model import LanguageModel

    if isinstance(model, LanguageModel):
        raise ModelError(
            "image-text-to-text takes a name, a folder or a model of transformers; with a LanguageModel use `images` "
            "of its `generate` or `chat`"
        )
    made: Any = transformers.pipeline("image-text-to-text", model=model, **arguments)
    made.model = DecodedModel(made.model, strict)
    return made

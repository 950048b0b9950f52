"""Which auto class of transformers loads a model."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
)


def auto_class_of(config: Any) -> Any:
    """Return the auto class that loads models with this config: with the parts for images and audio, if it has any."""
    if not getattr(config, "is_encoder_decoder", False):
        return AutoModelForMultimodalLM if reads_media(config) else AutoModelForCausalLM
    for auto in (AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, AutoModelForImageTextToText):
        if type(config) in auto._model_mapping:
            return auto
    return AutoModelForSeq2SeqLM


def reads_media(config: Any) -> bool:
    """Return True if models with this config read images or audio in the prompt of a decoder."""
    is_decoder = not getattr(config, "is_encoder_decoder", False)
    return is_decoder and type(config) in AutoModelForMultimodalLM._model_mapping

"""Compatibility with transformers: its calls, tensors and output classes on our engine."""

from unspool.interop.custom import decoding_method
from unspool.interop.drop_in import generate

__all__ = ["decoding_method", "generate"]

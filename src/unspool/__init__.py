"""Unspool: every decoding strategy, one engine.

    import unspool

    lm = unspool.load()                                  # the embedded model; or a folder, a hub id, a loaded model
    print(lm.generate("Once upon a time", temperature=0.8))
    for chunk in lm.stream("Once upon a time", temperature=0.8):
        print(chunk.text, end="", flush=True)

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

from unspool.startup import gc_paused as _gc_paused

if TYPE_CHECKING:
    from unspool import functional as functional
    from unspool.config import GenerationConfig as GenerationConfig
    from unspool.conversations.session import Chat as Chat
    from unspool.engine import Engine as Engine
    from unspool.engine import Request as Request
    from unspool.errors import CancelledRequest as CancelledRequest
    from unspool.errors import CapacityError as CapacityError
    from unspool.errors import MissingExtra as MissingExtra
    from unspool.errors import ModelError as ModelError
    from unspool.errors import NumericsError as NumericsError
    from unspool.errors import OptionError as OptionError
    from unspool.errors import PromptError as PromptError
    from unspool.errors import StrategyError as StrategyError
    from unspool.errors import UnspoolError as UnspoolError
    from unspool.interop import decoding_method as decoding_method
    from unspool.interop import generate as generate
    from unspool.loading.load import load as load
    from unspool.model import LanguageModel as LanguageModel
    from unspool.pipelines import pipeline as pipeline
    from unspool.results import Chunk as Chunk
    from unspool.results import Comparison as Comparison
    from unspool.results import Completion as Completion
    from unspool.results import Generation as Generation
    from unspool.results import NextTokens as NextTokens
    from unspool.results import TextScore as TextScore
    from unspool.results import Trace as Trace
    from unspool.results import to_records as to_records
    from unspool.results import trace_schema as trace_schema
    from unspool.runtimes.decoder.model import refresh as refresh
    from unspool.runtimes.toy import ToyRuntime as ToyRuntime
    from unspool.seeds import set_seed as set_seed
    from unspool.streaming import Stream as Stream

__version__ = "0.1.0"

_HOMES = {
    "CancelledRequest": "unspool.errors",
    "CapacityError": "unspool.errors",
    "Chat": "unspool.conversations.session",
    "Chunk": "unspool.results",
    "Comparison": "unspool.results",
    "Completion": "unspool.results",
    "Engine": "unspool.engine",
    "Generation": "unspool.results",
    "GenerationConfig": "unspool.config",
    "LanguageModel": "unspool.model",
    "MissingExtra": "unspool.errors",
    "ModelError": "unspool.errors",
    "NextTokens": "unspool.results",
    "NumericsError": "unspool.errors",
    "OptionError": "unspool.errors",
    "PromptError": "unspool.errors",
    "Request": "unspool.engine",
    "StrategyError": "unspool.errors",
    "Stream": "unspool.streaming",
    "TextScore": "unspool.results",
    "ToyRuntime": "unspool.runtimes.toy",
    "Trace": "unspool.results",
    "UnspoolError": "unspool.errors",
    "decoding_method": "unspool.interop",
    "generate": "unspool.interop",
    "load": "unspool.loading.load",
    "pipeline": "unspool.pipelines",
    "refresh": "unspool.runtimes.decoder.model",
    "set_seed": "unspool.seeds",
    "to_records": "unspool.results",
    "trace_schema": "unspool.results",
}

__all__ = [
    "CancelledRequest",
    "CapacityError",
    "Chat",
    "Chunk",
    "Comparison",
    "Completion",
    "Engine",
    "Generation",
    "GenerationConfig",
    "LanguageModel",
    "MissingExtra",
    "ModelError",
    "NextTokens",
    "NumericsError",
    "OptionError",
    "PromptError",
    "Request",
    "StrategyError",
    "Stream",
    "TextScore",
    "ToyRuntime",
    "Trace",
    "UnspoolError",
    "decoding_method",
    "functional",
    "generate",
    "load",
    "pipeline",
    "refresh",
    "set_seed",
    "to_records",
    "trace_schema",
]


def __getattr__(name: str) -> _Any:
    if name != "functional" and name not in _HOMES:
        raise AttributeError(f"module 'unspool' has no attribute {name!r}")
    with _gc_paused():
        if name == "functional":
            return _import_module("unspool.functional")
        value = getattr(_import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names. Submodules and helpers are attributes too, but a user does not call them."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})

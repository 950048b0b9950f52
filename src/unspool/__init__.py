"""Unspool: every decoding strategy, one engine.

    import unspool

    lm = unspool.load()                                  # the embedded model; or a folder, a hub id, a loaded model
    print(lm.generate("Once upon a time", temperature=0.8))
    for chunk in lm.stream("Once upon a time", temperature=0.8):
        print(chunk.text, end="", flush=True)

Names are imported on first use, so `import unspool` is fast.

The words of strategies and runtimes (`Turn`, `Top`, `Feed`, ...) are in `unspool.types`.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

from unspool.startup import gc_paused as _gc_paused

if TYPE_CHECKING:
    from unspool import functional as functional
    from unspool.config import GenerationConfig as GenerationConfig
    from unspool.conversations.completion import ChatGeneration as ChatGeneration
    from unspool.conversations.completion import ChatStream as ChatStream
    from unspool.conversations.session import Chat as Chat
    from unspool.conversations.turn import TurnStream as TurnStream
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
    from unspool.pipelines.base import Pipeline as Pipeline
    from unspool.protocols import Criterion as Criterion
    from unspool.protocols import Processor as Processor
    from unspool.protocols import Runtime as Runtime
    from unspool.protocols import Strategy as Strategy
    from unspool.results import Chunk as Chunk
    from unspool.results import Comparison as Comparison
    from unspool.results import Completion as Completion
    from unspool.results import Generation as Generation
    from unspool.results import NextTokens as NextTokens
    from unspool.results import TextScore as TextScore
    from unspool.results import Trace as Trace
    from unspool.results import Transcript as Transcript
    from unspool.results import to_records as to_records
    from unspool.results import trace_schema as trace_schema
    from unspool.runtimes.toy import ToyRuntime as ToyRuntime
    from unspool.runtimes.wrap.wrapped import refresh as refresh
    from unspool.seeds import set_seed as set_seed
    from unspool.strategy_facts import StrategyFacts as StrategyFacts
    from unspool.streaming import Stream as Stream
    from unspool.types import ModelInfo as ModelInfo

__version__ = "0.1.0"

_HOMES = {
    "CancelledRequest": "unspool.errors",
    "CapacityError": "unspool.errors",
    "Chat": "unspool.conversations.session",
    "ChatGeneration": "unspool.conversations.completion",
    "ChatStream": "unspool.conversations.completion",
    "Chunk": "unspool.results",
    "Comparison": "unspool.results",
    "Completion": "unspool.results",
    "Criterion": "unspool.protocols",
    "Engine": "unspool.engine",
    "Generation": "unspool.results",
    "GenerationConfig": "unspool.config",
    "LanguageModel": "unspool.model",
    "MissingExtra": "unspool.errors",
    "ModelError": "unspool.errors",
    "ModelInfo": "unspool.types",
    "NextTokens": "unspool.results",
    "NumericsError": "unspool.errors",
    "OptionError": "unspool.errors",
    "Pipeline": "unspool.pipelines.base",
    "Processor": "unspool.protocols",
    "PromptError": "unspool.errors",
    "Request": "unspool.engine",
    "Runtime": "unspool.protocols",
    "Strategy": "unspool.protocols",
    "StrategyError": "unspool.errors",
    "StrategyFacts": "unspool.strategy_facts",
    "Stream": "unspool.streaming",
    "TextScore": "unspool.results",
    "ToyRuntime": "unspool.runtimes.toy",
    "Trace": "unspool.results",
    "Transcript": "unspool.results",
    "TurnStream": "unspool.conversations.turn",
    "UnspoolError": "unspool.errors",
    "decoding_method": "unspool.interop",
    "functional": "unspool.functional",
    "generate": "unspool.interop",
    "load": "unspool.loading.load",
    "pipeline": "unspool.pipelines",
    "refresh": "unspool.runtimes.wrap.wrapped",
    "set_seed": "unspool.seeds",
    "to_records": "unspool.results",
    "trace_schema": "unspool.results",
}
"""The module of every public name. The imports above say the same to type checkers; a test compares the two."""

if not TYPE_CHECKING:  # type checkers read the imports above, and so find a name that does not exist
    __all__ = list(_HOMES)

    def __getattr__(name: str) -> _Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'unspool' has no attribute {name!r}")
        with _gc_paused():
            module = _import_module(_HOMES[name])
        value = module if name == "functional" else getattr(module, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Return the public names. Submodules and helpers are attributes too, but a user does not call them."""
    return sorted({*_HOMES, *(name for name in globals() if name.startswith("__"))})

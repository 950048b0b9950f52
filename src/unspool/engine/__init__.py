"""The decode loop and its parts: scheduler, branches, logits processing, sampler."""

from unspool.engine.engine import Engine, Timing
from unspool.engine.request import Request

__all__ = ["Engine", "Request", "Timing"]

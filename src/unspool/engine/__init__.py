"""The decode loop and everything it owns: scheduling, branches, selection."""

from unspool.engine.engine import Engine, Timing
from unspool.engine.request import Request

__all__ = ["Engine", "Request", "Timing"]

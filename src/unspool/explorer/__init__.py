"""The web explorer: a page that shows decoding live, and its routes on the server."""

from __future__ import annotations

from unspool.explorer.routes import add_explorer

__all__ = ["add_explorer"]

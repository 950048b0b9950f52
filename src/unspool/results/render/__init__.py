"""Renderers of results for a terminal, a notebook, Markdown and plain text. Importing this package registers them."""

from unspool.results.render import html, plain, side_by_side, terminal, trace_html, trace_tree

__all__ = ["html", "plain", "side_by_side", "terminal", "trace_html", "trace_tree"]

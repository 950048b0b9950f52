"""Pictures of results: in a terminal, in a notebook, and in plain ASCII. Importing this registers them all."""

from unspool.results.render import html, plain, side_by_side, terminal, trace_html, trace_tree

__all__ = ["html", "plain", "side_by_side", "terminal", "trace_html", "trace_tree"]

"""How results look: in a terminal, in a notebook, and in plain ASCII."""

from unspool.rendering.html import generation_html, next_tokens_html
from unspool.rendering.plain import next_tokens_plain
from unspool.rendering.terminal import generation_terminal, next_tokens_terminal

__all__ = [
    "generation_html",
    "generation_terminal",
    "next_tokens_html",
    "next_tokens_plain",
    "next_tokens_terminal",
]

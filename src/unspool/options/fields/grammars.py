"""Options for structured output: the formal language of the output."""

from __future__ import annotations

from dataclasses import dataclass

from unspool.options.grammar_kinds import JsonSchema, json_schema, labels, source_text
from unspool.options.kinds import flag
from unspool.options.option import option

_STRUCTURE = "Structured output"


@dataclass(frozen=True, kw_only=True)
class GrammarOptions:
    """Formal languages that an output must belong to; at most one per request."""

    json_schema: JsonSchema | None = option(
        json_schema(),
        group=_STRUCTURE,
        source="unspool",
        help="JSON schema of the output. In Python also a pydantic model class.",
        hint="use None to turn it off",
    )
    json_object: bool = option(
        flag(),
        group=_STRUCTURE,
        default=False,
        source="unspool",
        help="The output is a JSON object, with any content.",
    )
    regex: str | None = option(
        source_text("a regular expression in Rust's syntax, without look-around"),
        group=_STRUCTURE,
        source="unspool",
        help="Regular expression that matches the whole output.",
        hint="use None to turn it off",
    )
    choice: tuple[str, ...] | None = option(
        labels(),
        group=_STRUCTURE,
        source="unspool",
        help="Texts; the output is one of them.",
        hint="use None to turn it off",
    )
    grammar: str | None = option(
        source_text("a grammar in llguidance's Lark dialect or in GBNF", reads_file=True),
        group=_STRUCTURE,
        source="unspool",
        help="Context-free grammar of the output: llguidance's Lark dialect, or GBNF.",
        hint="use None to turn it off",
    )

"""Pictures of fewer passes: drafts of a model, drafts by prompt lookup, and tokens that a grammar forces."""

from __future__ import annotations

from typing import Any, Final

import unspool
from tools.guide.svg import Picture
from tools.guide.tokens import Chip, flow
from unspool.model import LanguageModel
from unspool.records import TraceNode
from unspool.results.trace import Trace

PROMPT: Final = "Once upon a time"
QUOTE: Final = "The king said: I am the king of the forest. Then the king"
_WIDTH: Final = 760


def rounds(trace: Trace) -> list[tuple[list[tuple[TraceNode, bool]], TraceNode | None]]:
    """Return per pass the drafted tokens, each with True if it was accepted, and the model's own next token."""
    path = {node.id: node for node in trace.path(0)}
    places = {node.parent: node for node in path.values()}
    found: list[tuple[list[tuple[TraceNode, bool]], TraceNode | None]] = []
    for step in trace.steps:
        rows = [row for row in step.rows if not row.draft]
        if not rows:
            continue
        made = [node for node in trace.nodes if node.step == step.index and not node.draft and node.token is not None]
        guesses = made[len(made) - len(rows) + 1 :]
        last = [row.node for row in rows if row.node in path or row.node == 0][-1]
        found.append(([(node, node.id in path) for node in guesses], places.get(last)))
    return found


def _draw(trace: Trace, *, title: str, prompt: str) -> Picture:
    picture = Picture(_WIDTH, title=title)
    picture.text(16, 26, prompt, "token bold")
    y = 40.0
    for number, (guesses, own) in enumerate(rounds(trace), 1):
        picture.text(34, y + 14, str(number), "small faint end")
        chips = [Chip(node.text, "green" if good else "red gone", "✓" if good else "✗") for node, good in guesses]
        chips += [Chip(own.text, "blue", "→")] if own else []
        y = flow(picture, chips, x=44, y=y, right=_WIDTH - 10)
    picture.height = y + 8
    return picture


def _traced(lm: LanguageModel, prompt: str, **options: Any) -> Trace:
    trace = lm.generate(prompt, trace=True, **options).trace
    assert trace is not None, "a trace was asked for"
    return trace


def assisted(lm: LanguageModel) -> Picture:
    """The passes of assisted decoding with a draft model."""
    trace = _traced(lm, PROMPT, assistant_model=unspool.load("tale-draft"), max_new_tokens=24)
    return _draw(
        trace, title="Assisted decoding: accepted and rejected draft tokens, and the model's own", prompt=PROMPT
    )


def prompt_lookup(lm: LanguageModel) -> Picture:
    """The passes of prompt lookup."""
    trace = _traced(lm, QUOTE, prompt_lookup_num_tokens=4, max_new_tokens=16)
    return _draw(trace, title="Prompt lookup: accepted and rejected tokens copied from the prompt", prompt=QUOTE)


def structured(lm: LanguageModel) -> Picture:
    """The tokens of a structured output: forced ones, and choices with the forbidden favorites of the model."""
    schema = {
        "type": "object",
        "properties": {"animal": {"enum": ["fox", "hen"]}, "age": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["animal", "age"],
        "additionalProperties": False,
    }
    trace = _traced(lm, "In the forest lived a", json_schema=schema, max_new_tokens=40)
    rows = {row.node: row for step in trace.steps for row in step.rows}
    picture = Picture(_WIDTH, title="Structured output: the allowed tokens at each step, and the model's own favorite")
    x, y = 16.0, 30.0
    for node in trace.path(0):
        row = rows.get(node.parent)
        forced = row is None or row.num_allowed == 1
        width = picture.chip(x, y, Chip(node.text).words, "gray" if forced else "green", bold=not forced)
        allowed = "1" if row is None else str(row.num_allowed)
        picture.text(x + width / 2, y - 5, allowed, "small faint middle")
        favorite = next((each for each in row.best if each.cut_by), None) if row else None
        if favorite is not None and row is not None and row.best and row.best[0].cut_by:
            lost = Chip(row.best[0].text)
            width = max(width, picture.chip(x, y + 26, lost.words, "red gone"))
        x += width + 5
        if x > _WIDTH - 110:
            x, y = 16.0, y + 76
    picture.height = y + 60
    return picture

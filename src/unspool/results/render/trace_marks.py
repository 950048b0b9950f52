"""Shared parts of the trace pictures: short percentages, headings, marks of outputs, and lookups in the trace.

Does not know: the kind of picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from rich.cells import cell_len
from rich.text import Text

from unspool.results.render.flow import flow
from unspool.results.render.marks import visible

if TYPE_CHECKING:
    from unspool.records import TraceCandidate, TraceNode, TraceOutput, TraceRow, TraceToken
    from unspool.results.trace import Trace

BEST: Final = "bold bright_cyan"
OTHER: Final = "bold"
LOST: Final = "dim"
_LONGEST_OPTION: Final = 40


def share(probability: float) -> str:
    """Return the probability as a percentage of at most five characters; "100%" means certainty."""
    if 0.0 < probability < 0.001:
        return "<0.1%"
    if 0.995 <= probability < 0.9999995:
        return ">99%"
    return f"{100 * probability:.0f}%" if probability >= 0.0995 or probability == 0.0 else f"{100 * probability:.1f}%"


def heading(trace: Trace, width: int) -> list[Text]:
    """Return the end of the prompt, and below it the strategy, the requested options and the counts."""
    count = _count(len(trace.prompt_token_ids), "prompt token")
    prompt = f"({count})" if trace.prompt is None else _ending(_one_line(trace.prompt), width)
    asked = [f"{name} {_short(value)}" for name, value in trace.options.items() if name not in ("seed", "strategy")]
    target = sum(node.token is not None and not node.draft for node in trace.nodes)
    tried, taken = _count(target, "token"), _count(len(trace.steps), "step")
    facts = [trace.strategy, *asked, f"seed {trace.seed}", f"{tried} tried", taken]
    pieces = [Text(fact, style="dim") for fact in facts]
    return [Text(prompt, style="bold"), *flow(pieces, first="", rest="", width=width, gap=", ")]


def verdict(index: int, output: TraceOutput, *, ranked: bool) -> list[Text]:
    """Return the mark of an output with its number, finish reason, score, log-probability and unmet words.

    The log-probability is left out if it equals the score.

    ranked: True if outputs competed; the first output is then the best and gets a star.
    """
    best = ranked and index == 0
    score = "" if output.score is None else f", score {output.score:.3f}"
    logprob = "" if output.logprob is None else f"logprob {output.logprob:.3f}"
    words = [f"{'★' if best else '●'} {index + 1}: {output.finish_reason}{score}"]
    words += [logprob] if logprob and not score.endswith(logprob.removeprefix("logprob")) else []
    words += [f"unmet: {output.unmet}"] if output.unmet else []
    return [Text(each, style=BEST if best else OTHER) for each in words]


def style_of(node: TraceNode) -> str:
    """Return the style of a token."""
    if node.outputs:
        return BEST if 0 in node.outputs else OTHER
    return LOST if node.state in ("dropped", "finished") else ""


class Lookup:
    """Cached lookups in a trace."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    @cached_property
    def rows(self) -> Mapping[int, list[tuple[int, TraceRow]]]:
        """Node id --> (step index, row) of the target model's rows for the token after the node."""
        found: dict[int, list[tuple[int, TraceRow]]] = {}
        for step in self.trace.steps:
            for row in step.rows:
                if row.node is not None and not row.draft and row.candidates:
                    found.setdefault(row.node, []).append((step.index, row))
        return found

    @cached_property
    def similarities(self) -> Mapping[int, float]:
        """Node id --> its similarity to earlier tokens, for strategies that compute it."""
        rows = (row for step in self.trace.steps for row in step.rows)
        return {row.node: row.similarity for row in rows if row.node is not None and row.similarity is not None}

    @cached_property
    def children(self) -> Mapping[int, list[TraceNode]]:
        """Node id --> its children on the same model, in order of creation."""
        found: dict[int, list[TraceNode]] = {node.id: [] for node in self.trace.nodes}
        for node in self.trace.nodes:
            if node.parent is not None and node.draft == self.trace.nodes[node.parent].draft:
                found[node.parent].append(node)
        return found

    @cached_property
    def lengths(self) -> list[int]:
        """Step index --> number of steps so far that wrote a token: the maximum length of a branch."""
        wrote = {node.step for node in self.trace.nodes if node.token is not None and not node.draft}
        return list(accumulate(int(step.index in wrote) for step in self.trace.steps))

    def row_before(self, node: TraceNode) -> TraceRow | None:
        """Return the row that offered the node's token, or the first row for its position; None without rows."""
        rows = [row for _, row in self.rows.get(node.parent or 0, ())] if node.parent is not None else []
        offered = (row for row in rows if any(each.token == node.token for each in row.candidates))
        return next(offered, rows[0] if rows else None)

    def probability(self, node: TraceNode) -> float | None:
        """Return the model's probability of a node's token; None if it is unknown."""
        row = self.row_before(node)
        offered: list[TraceCandidate | TraceToken] = [*row.candidates, *row.best] if row else []
        return next((each.probability for each in offered if each.token == node.token), None)

    def token(self, node: TraceNode) -> str:
        """Return a node's token with its model probability."""
        return labelled(node.text, self.probability(node))


def labelled(text: str, probability: float | None) -> str:
    """Return a token with its probability, if known."""
    return visible(text) + ("" if probability is None else f" {share(probability)}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _one_line(text: str) -> str:
    return "".join(" " if character == " " else visible(character) for character in text)


def _ending(text: str, width: int) -> str:
    """Return the end of a text that fits into `width` cells."""
    if cell_len(text) <= width:
        return text
    while cell_len(text) > width - 1:
        text = text[1:]
    return f"…{text}"


def _short(value: Any) -> str:
    text = _one_line(str(value))
    return text if len(text) <= _LONGEST_OPTION else f"{text[: _LONGEST_OPTION - 1]}…"

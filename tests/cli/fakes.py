"""A model without weights for the command line's tests: it says what it is told to, and records what it was asked.

As a script it is the `unspool` command with that model, for tests that need a process of their own:

    python -m tests.cli.fakes generate "Once" --max-new-tokens 3
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from unspool.config import GenerationConfig
from unspool.results import Chunk, Completion, Generation, Timing, Usage

DRAWN = 99
"""The seed that commands draw in tests, unless they are given one."""


def undrawn(options: dict[str, Any]) -> dict[str, Any]:
    """Return options without the seed, if the command has drawn it."""
    return {name: value for name, value in options.items() if (name, value) != ("seed", DRAWN)}


def completion(text: str, *, index: int = 0, finish_reason: str = "eos") -> Completion:
    words = text.split()
    return Completion(
        index=index,
        text=text,
        token_ids=tuple(range(len(words))),
        tokens=tuple(words),
        logprobs=(-1.0,) * len(words),
        scores=(-1.0,) * len(words),
        score=-1.0 * len(words),
        finish_reason=finish_reason,
    )


class FakeStream:
    """Yields the chunks; has the whole result once they are through."""

    def __init__(self, chunks: Iterator[Chunk], generation: Generation) -> None:
        self._chunks, self._generation = chunks, generation
        self.generation: Generation | None = None
        self.closed = False

    def __iter__(self) -> Iterator[Chunk]:
        yield from self._chunks
        self.generation = self._generation

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True


class FakeNextTokens:
    """Draws itself as a line of words."""

    def __rich__(self) -> str:
        return "[bold]old[/bold] 50 %"

    def to_dict(self) -> dict[str, Any]:
        return {"tokens": [{"text": " old", "probability": 0.5}]}


def lines_of(text: str) -> list[dict[str, Any]]:
    """Return the objects of JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


class FakeModel:
    """Answers with the given texts, one output each; streams them word by word, in turns.

    pause: seconds between two chunks. error: raised after the first chunk. calls: what it was asked.
    """

    def __init__(
        self, *texts: str, pause: float = 0.0, error: BaseException | None = None, finish_reason: str = "eos"
    ) -> None:
        self.texts, self.pause, self.error, self.finish_reason = texts or (" there was",), pause, error, finish_reason
        self.calls: list[tuple[str, str, dict[str, Any]]] = []

    def generate(self, prompt: str, **options: Any) -> Generation:
        self._note("generate", prompt, options)
        if self.error:
            raise self.error
        return self._result(prompt)

    def stream(self, prompt: str, **options: Any) -> FakeStream:
        self._note("stream", prompt, options)
        return FakeStream(self._chunks(), self._result(prompt))

    def next_tokens(self, prompt: str, **options: Any) -> FakeNextTokens:
        self.calls.append(("next_tokens", prompt, options))
        return FakeNextTokens()

    def _note(self, door: str, prompt: str, options: dict[str, Any]) -> None:
        self.calls.append((door, prompt, undrawn(options)))

    def _result(self, prompt: str) -> Generation:
        outputs = tuple(
            completion(text, index=index, finish_reason=self.finish_reason) for index, text in enumerate(self.texts)
        )
        tokens = sum(len(output.token_ids) for output in outputs)
        return Generation(
            prompt=prompt,
            prompt_token_ids=(1,),
            completions=outputs,
            seed=7,
            usage=Usage(prompt_tokens=1, completion_tokens=tokens),
            timing=Timing.of(0.5, tokens=tokens),
            config=GenerationConfig(),
            strategy="sample",
        )

    def _chunks(self) -> Iterator[Chunk]:
        pieces = [[f"{word} " for word in text.split(" ")] for text in self.texts]
        for parts, text in zip(pieces, self.texts, strict=True):
            parts[-1] = text.split(" ")[-1]
        for step in range(max(len(parts) for parts in pieces)):
            for index, parts in enumerate(pieces):
                if step < len(parts):
                    last = step == len(parts) - 1
                    yield Chunk(text=parts[step], index=index, finish_reason=self.finish_reason if last else None)
            if self.error:
                raise self.error
            time.sleep(self.pause)


def main() -> int:
    """Run the command line with a model that goes on, slowly, for half a minute."""
    import unspool.cli.sources
    from unspool.cli.main import main

    model = FakeModel(" and then" * 1500, pause=0.01)
    unspool.cli.sources.load_model = lambda *_, **__: model
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

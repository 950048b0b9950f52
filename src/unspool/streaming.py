"""Streaming: turns the engine's events into chunks of text, and into a Generation at the end.

Owns the text of unfinished outputs. Knows neither models nor options.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from unspool.engine.driver import Driver, Ticket
from unspool.errors import StrategyError
from unspool.planning import PlannedRequest
from unspool.results import Chunk, Completion, Generation, Timing, Trace, Usage
from unspool.results.generation import named_tokens
from unspool.strategies import WithPromptScores
from unspool.text.detokenize import Detokenizer
from unspool.text.emit import TextEmitter
from unspool.types import Committed, Event, Failed, Finished, Tentative


class Tail(NamedTuple):
    """The tentative tokens of an output: those of the leading branch that are not committed."""

    token_ids: tuple[int, ...] = ()
    text: str = ""


class Listener:
    """Collects the events of one request.

    Args:
        job: the submitted request.
        prompt: its index among the prompts of the call.
        detokenizer: None without a tokenizer; texts are then empty.
    """

    def __init__(self, job: PlannedRequest, prompt: int, detokenizer: Detokenizer | None) -> None:
        self._job = job
        self._prompt = prompt
        self._detokenizer = detokenizer
        self._emitters: dict[int, TextEmitter] = {}
        self._tails: dict[int, Tail] = {}
        self._started = time.perf_counter()
        self._first: float | None = None

    def chunk(self, event: Committed | Tentative) -> Chunk:
        """Return the new tokens and text as a chunk. The text is empty if no character is complete."""
        if isinstance(event, Tentative):
            text, emitter = self._emitter(event.output)
            tail = emitter.tentative(event.token_ids) if emitter else ""
            tentative = self._tail(event.output, event.token_ids, tail)
            return Chunk(text=text, index=event.output, prompt=self._prompt, tentative=tentative)
        self.note(event)
        text, emitter = self._emitter(event.output)
        if emitter is not None:
            text += emitter.push(event.token_ids)
            if event.finish_reason is not None:
                text += emitter.finish(event.finish_reason)
        return Chunk(
            text=text,
            index=event.output,
            prompt=self._prompt,
            token_ids=event.token_ids,
            logprobs=event.logprobs,
            finish_reason=event.finish_reason,
            tentative=self._tail_behind(event, emitter),
            top_logprobs=None if event.top_logprobs is None else named_tokens(event.top_logprobs, self._detokenizer),
        )

    def _emitter(self, output: int) -> tuple[str, TextEmitter | None]:
        """Return (text before the output, emitter of its text). The text is empty after the first call."""
        if self._detokenizer is None:
            return "", None
        if output in self._emitters:
            return "", self._emitters[output]
        request = self._job.request
        emitter = TextEmitter(self._detokenizer, request.prompt, stops=request.config.stop_strings or ())
        self._emitters[output] = emitter
        return (self._prompt_text() or "") if request.config.echo else "", emitter

    def _tail(self, output: int, token_ids: tuple[int, ...], text: str) -> str | None:
        """Store an output's tentative tokens; returns their text, or None if it has not changed."""
        before = self._tails.get(output, Tail())
        self._tails[output] = Tail(token_ids, text)
        return None if text == before.text else text

    def _tail_behind(self, event: Committed, emitter: TextEmitter | None) -> str | None:
        """Remove committed tokens from the output's tail, or all tokens if another branch was committed."""
        if event.output not in self._tails:
            return None
        if event.finish_reason is not None or emitter is None:
            return self._tail(event.output, (), "")
        tail, count = self._tails[event.output].token_ids, len(event.token_ids)
        rest = tail[count:] if tail[:count] == event.token_ids else ()
        return self._tail(event.output, rest, emitter.tentative(rest))

    def _prompt_text(self) -> str | None:
        """Return the prompt as given, or decoded from its ids; None without a tokenizer."""
        if self._job.prompt_text is not None or self._detokenizer is None:
            return self._job.prompt_text
        return self._detokenizer.decode(self._job.request.prompt)

    def note(self, event: Committed) -> None:
        """Store the time of the first token."""
        if self._first is None and event.token_ids:
            self._first = time.perf_counter() - self._started

    def generation(self, event: Finished) -> Generation:
        """Return the final result.

        Raises:
            StrategyError: if the strategy returned no hypothesis.
        """
        request = self._job.request
        if not event.outputs:
            raise StrategyError(f"{request.strategy.name}: the strategy returned no hypothesis")
        completions = tuple(
            Completion.from_output(
                output,
                index=index,
                prompt_ids=request.prompt,
                detokenizer=self._detokenizer,
                stops=request.config.stop_strings or (),
                parse=None if request.grammar is None else request.grammar.parse,
            )
            for index, output in enumerate(event.outputs)
        )
        written = sum(len(output.token_ids) for output in event.outputs)
        seconds = time.perf_counter() - self._started
        strategy = request.strategy
        of_prompt = strategy if isinstance(strategy, WithPromptScores) else None
        return Generation(
            prompt=self._prompt_text(),
            prompt_token_ids=request.prompt,
            completions=completions,
            seed=request.seed,
            usage=Usage(
                prompt_tokens=len(request.prompt),
                completion_tokens=written,
                cached_tokens=event.cached_tokens,
                forward_passes=event.passes,
            ),
            timing=Timing.of(seconds, tokens=written, seconds_to_first_token=self._first),
            config=self._job.config,
            strategy=strategy.name,
            echo=bool(request.config.echo),
            prompt_logprobs=(None, *of_prompt.prompt_logprobs) if of_prompt else None,
            prompt_top_logprobs=(None, *named_tokens(of_prompt.prompt_top_logprobs, self._detokenizer))
            if of_prompt and of_prompt.num_top
            else None,
            trace=self._trace(event),
        )

    def _trace(self, event: Finished) -> Trace | None:
        """Return the trace with its texts; None if it was not requested."""
        if event.trace is None:
            return None
        request = self._job.request
        return Trace.from_recording(
            event.trace,
            self._detokenizer.tokenizer if self._detokenizer else None,
            model=self._job.model,
            strategy=request.strategy.name,
            seed=request.seed,
            config=self._job.config,
            prompt=self._prompt_text(),
        )


class ChunkReader:
    """Turns the events of requests that were submitted together into chunks.

    Holds back the last chunk of each output until the next one, to mark the last chunk of the stream.

    Args:
        tickets: of the requests.
        jobs: the requests, in the order of the tickets.
        detokenizer: None without a tokenizer.

    Attributes:
        generations: one per request, in order; None for unfinished ones.
    """

    def __init__(
        self, tickets: Sequence[Ticket], jobs: Sequence[PlannedRequest], detokenizer: Detokenizer | None
    ) -> None:
        self.generations: list[Generation | None] = [None] * len(jobs)
        self._listeners = [Listener(job, index, detokenizer) for index, job in enumerate(jobs)]
        self._prompts = {ticket.number: index for index, ticket in enumerate(tickets)}
        self._held: Chunk | None = None

    def push(self, event: Event) -> list[Chunk]:
        """Return the chunks that are complete after this event: at most two.

        Raises:
            Exception: the error of a request that failed.
        """
        prompt = self._prompts[event.request]
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            self.generations[prompt] = self._listeners[prompt].generation(event)
            return []
        held, self._held = [] if self._held is None else [self._held], None
        chunk = self._listeners[prompt].chunk(event)
        if chunk.finish_reason is not None:
            self._held = chunk
            return held
        return [*held, chunk] if chunk.text or chunk.token_ids or chunk.tentative is not None else held

    def finish(self) -> list[Chunk]:
        """Return the last chunk, after every request has ended."""
        held, self._held = self._held, None
        return [] if held is None else [replace(held, is_last=True)]


def _read(driver: Driver, tickets: list[Ticket], reader: ChunkReader) -> Iterator[Chunk]:
    """Yield chunks until every request has ended.

    Keeps no reference to the Stream, so that the garbage collector can free both.
    """
    while tickets and not tickets[0].event_queue.is_done:
        yield from reader.push(driver.wait(tickets[0].event_queue))
    yield from reader.finish()


class Stream:
    """Chunks of committed text. Iterate over it once, with `for` or `async for`. Made by `LanguageModel.stream`.

    With `tentative=True`, chunks also contain the uncommitted text of the leading branch (`Chunk.tentative`). Such a
    chunk can have neither text nor token ids.

    Leaving the loop early, `close()`, or dropping the stream cancels all unfinished requests. Cancelling a task that
    waits for a chunk does so too. The error of a request is raised in place of its next chunk, and cancels the other
    requests. After an early exit, `async for` cleans up when the event loop next runs; `async with` does so at once.

    Attributes:
        generations: one per prompt, in order; None for unfinished prompts.
    """

    def __init__(self, driver: Driver, jobs: Sequence[PlannedRequest], detokenizer: Detokenizer | None) -> None:
        self._tickets: list[Ticket] = []
        self._driver = driver
        self._tickets = driver.submit([job.request for job in jobs])
        reader = ChunkReader(self._tickets, jobs, detokenizer)
        self.generations = reader.generations
        self._reading = threading.Lock()
        self._chunks = _read(driver, self._tickets, reader)

    @property
    def generation(self) -> Generation:
        """The result of the first prompt.

        Raises:
            RuntimeError: if the stream has not ended.
        """
        if not self.generations or self.generations[0] is None:
            raise RuntimeError("the stream has not ended: read it to its end first")
        return self.generations[0]

    def __iter__(self) -> Iterator[Chunk]:
        try:
            while (chunk := self._next()) is not None:
                yield chunk
        finally:
            self.close()

    def __next__(self) -> Chunk:
        chunk = self._next()
        if chunk is None:
            raise StopIteration
        return chunk

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        try:
            while (chunk := await self._anext()) is not None:
                yield chunk
        finally:
            self.close()

    async def __anext__(self) -> Chunk:
        chunk = await self._anext()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def _next(self) -> Chunk | None:
        """Return the next chunk, or None at the end. Thread-safe: one thread reads at a time."""
        with self._reading:
            try:
                return next(self._chunks, None)
            except BaseException:
                self.close()
                raise

    async def _anext(self) -> Chunk | None:
        try:
            return await asyncio.to_thread(self._next)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel unfinished requests and free their memory. Does nothing for a finished stream."""
        for ticket in self._tickets:
            self._driver.cancel(ticket)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

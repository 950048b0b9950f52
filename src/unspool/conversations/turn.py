"""The answer of one turn as it comes, which joins its conversation at the end.

Owns: what was said so far, and when the turn is over. Does not know: the conversation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

from unspool.conversations.completion import ChatGeneration, ChatStream
from unspool.results import Chunk
from unspool.text.chat import Message


class TurnStream:
    """Chunks of an answer, to be read once with `for` or `async for`.

    Leaving the loop early, or `close()`, ends the answer: what was said counts.

    Args:
        chunks: the answer.
        settle: called once at the end with the answer's message; with None if there is none.
        trims: whether blanks around the answer are no part of it.
    """

    def __init__(self, chunks: ChatStream, settle: Callable[[Message | None], None], *, trims: bool) -> None:
        self._chunks, self._settle, self._trims = chunks, settle, trims
        self._said = ""
        self._is_over = False

    @property
    def generation(self) -> ChatGeneration:
        """The whole answer, once the stream has ended.

        Raises:
            RuntimeError: if the stream has not ended, or was closed early.
        """
        return self._chunks.generation

    def __iter__(self) -> Iterator[Chunk]:
        try:
            while True:
                try:
                    chunk = next(self)
                except StopIteration:
                    return
                yield chunk
        finally:
            self.close()

    def __next__(self) -> Chunk:
        try:
            return self._noted(next(self._chunks))
        except Exception as error:
            self._stop(error)
            raise

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        try:
            while True:
                try:
                    chunk = await anext(self)
                except StopAsyncIteration:
                    return
                yield chunk
        finally:
            self.close()

    async def __anext__(self) -> Chunk:
        try:
            return self._noted(await anext(self._chunks))
        except Exception as error:
            self._stop(error)
            raise

    def close(self) -> None:
        """End the answer; what was said so far joins the conversation. A stream that has ended is no error."""
        self._chunks.close()
        done = self._chunks.generations[0]
        said = self._said.strip() if self._trims else self._said
        self._end(done.message if done is not None else {"role": "assistant", "content": said} if said else None)

    def __enter__(self) -> TurnStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> TurnStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def _stop(self, reason: Exception) -> None:
        """End the turn: with its message at the end of the stream, without one after an error."""
        if isinstance(reason, StopIteration | StopAsyncIteration):
            self.close()
        else:
            self._end(None)

    def _noted(self, chunk: Chunk) -> Chunk:
        if chunk.index == 0:
            self._said += chunk.text
        return chunk

    def _end(self, message: Message | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._settle(message)

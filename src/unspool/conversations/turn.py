"""The stream of one answer, which joins its conversation at the end.

Owns: the text so far, and the end of the turn. Does not know: the conversation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

from unspool.conversations.completion import ChatGeneration, ChatStream
from unspool.results import Chunk
from unspool.text.chat import Message


class TurnStream:
    """Chunks of an answer, to be read once with `for` or `async for`.

    If the loop is left early or `close()` is called, the answer ends with the text so far.

    Args:
        chunks: the answer.
        on_end: called once at the end with the answer's message, or with None if the answer is empty.
        trims: True to remove blanks around the answer.
    """

    def __init__(self, chunks: ChatStream, on_end: Callable[[Message | None], None], *, trims: bool) -> None:
        self._chunks, self._on_end, self._trims = chunks, on_end, trims
        self._said = ""
        self._is_over = False

    @property
    def generation(self) -> ChatGeneration:
        """The whole answer, after the stream has ended.

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
            return self._with_text(next(self._chunks))
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
            return self._with_text(await anext(self._chunks))
        except Exception as error:
            self._stop(error)
            raise

    def close(self) -> None:
        """End the answer. The text so far joins the conversation. Does nothing after the end."""
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
        """End the turn: with its message after the end of the stream, without one after an error."""
        if isinstance(reason, StopIteration | StopAsyncIteration):
            self.close()
        else:
            self._end(None)

    def _with_text(self, chunk: Chunk) -> Chunk:
        if chunk.index == 0:
            self._said += chunk.text
        return chunk

    def _end(self, message: Message | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._on_end(message)

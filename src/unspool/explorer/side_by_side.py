"""A comparison: several entries on one prompt, in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from unspool.explorer.calls import Call
from unspool.explorer.snippets import snippets
from unspool.planning import PlannedRequest
from unspool.results import Generation
from unspool.serving.errors import ApiError, refused
from unspool.serving.execution.service import OpenRequest, Service


class SideBySide:
    """One call of the route. Planning runs in a thread, which hands the requests back to the event loop.

    Args:
        service: the service.
        call: the checked body.
        address: of the server.
        threads: of comparisons alone. Each waits for its results, so threads of the event loop's own pool would leave
            none for the planning of requests.

    Raises:
        ApiError: 400 without entries.
    """

    def __init__(self, service: Service, call: Call, address: str, threads: Executor) -> None:
        if call.entries is None:
            raise refused("entries", "must be given: an object of names and options")
        self._service, self._call, self._address = service, call, address
        self._threads, self._left = threads, False
        self._task: asyncio.Task[Any] | None = None
        self.request = OpenRequest(service, len(call.entries))

    async def answer(self) -> dict[str, Any]:
        """Return the comparison as plain JSON."""
        loop = asyncio.get_running_loop()

        def run(jobs: Sequence[PlannedRequest]) -> list[Generation]:
            return asyncio.run_coroutine_threadsafe(self._run(jobs), loop).result()

        def compare() -> Any:
            call = self._call
            return self._service.lm._compare(call.prompt, call.entries, None, call.options, run=run)

        found = await loop.run_in_executor(self._threads, compare)
        return {**found.to_dict(), "snippets": snippets(self._service, self._call, "compare", self._address)}

    async def _run(self, jobs: Sequence[PlannedRequest]) -> list[Generation]:
        if self._left:
            raise ApiError(503, "the client left", code="cancelled")
        self._task = asyncio.current_task()
        salted = [replace(job, request=replace(job.request, cache_salt=self._call.salt)) for job in jobs]
        await self.request.start(lambda: salted)
        return await self.request.finish()

    async def close(self) -> None:
        """Cancel the waiting and running requests, and start no others."""
        self._left = True
        if self._task is not None:
            self._task.cancel()
        await self.request.close()

"""A comparison: several entries on one prompt, in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from unspool.explorer.calls import Call
from unspool.explorer.snippets import snippets
from unspool.planning import PlannedRequest
from unspool.results import Generation
from unspool.serving.errors import ApiError, refused
from unspool.serving.service import OpenRequest, Service


class SideBySide:
    """One call of the route. Planning runs in a thread, which hands the requests back to the event loop.

    Args:
        service: the service.
        call: the checked body.
        address: of the server.

    Raises:
        ApiError: 400 without entries.
    """

    def __init__(self, service: Service, call: Call, address: str) -> None:
        if call.entries is None:
            raise refused("entries", "must be given: an object of names and options")
        self._service, self._call, self._address = service, call, address
        self._left = False
        self.request = OpenRequest(service, len(call.entries))

    async def answer(self) -> dict[str, Any]:
        """Return the comparison as plain JSON."""
        loop = asyncio.get_running_loop()

        def run(jobs: Sequence[PlannedRequest]) -> list[Generation]:
            return asyncio.run_coroutine_threadsafe(self._run(jobs), loop).result()

        def compare() -> Any:
            call = self._call
            return self._service.lm._compare(call.prompt, call.entries, None, call.options, run=run)

        found = await asyncio.to_thread(compare)
        return {**found.to_dict(), "snippets": snippets(self._service, self._call, "compare", self._address)}

    async def _run(self, jobs: Sequence[PlannedRequest]) -> list[Generation]:
        if self._left:
            raise ApiError(503, "the client left", code="cancelled")
        await self.request.start(lambda: jobs)
        return await self.request.finish()

    async def close(self) -> None:
        """Cancel the running requests, and start no others."""
        self._left = True
        await self.request.close()

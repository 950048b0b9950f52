"""A generation as a stream: text as it is committed, the growing trace, and the result at the end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Final

from unspool.explorer.calls import Call
from unspool.explorer.snippets import Kind, snippets
from unspool.planning import PlannedRequest
from unspool.records import Recording, TraceNode
from unspool.results import Chunk, Trace
from unspool.serving.execution.service import OpenRequest, Service
from unspool.serving.http.sse import event
from unspool.text.labels import token_label

_KINDS: Final[tuple[Kind, ...]] = ("generate", "trace")

_SECONDS: Final = 0.1
"""Least time between two parts of a trace."""


class LiveGeneration:
    """One call of the route.

    Args:
        service: the service.
        call: the checked body.
        address: of the server.
    """

    def __init__(self, service: Service, call: Call, address: str) -> None:
        self._service, self._call, self._address = service, call, address
        self._nodes: tuple[TraceNode, ...] = ()
        self._num_steps = 0
        self.request = OpenRequest(service, 1)

    async def start(self) -> None:
        """Admit, plan and submit. Raises ApiError as `OpenRequest.start`."""
        await self.request.start(self._plan)

    def _plan(self) -> Sequence[PlannedRequest]:
        return self._service.lm._plan_all(self._call.prompt, tentative=True, trace=True, **self._call.salted)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events: `start`, `chunk` and `delta` in turn, and `done` with the whole trace and result."""
        (job,) = self.request.jobs
        tokenizer = self._service.lm.tokenizer
        prompt = [{"token_id": token, "text": token_label(tokenizer, token)} for token in job.request.prompt]
        made = {kind: snippets(self._service, self._call, kind, self._address) for kind in _KINDS}
        yield event({"seed": job.request.seed, "prompt_tokens": prompt, "snippets": made}, "start")
        sent = -1.0
        async for chunk in self.request.chunks():
            yield event(self._chunk(chunk), "chunk")
            if time.monotonic() - sent >= _SECONDS:
                recording = await self.request.recording(max(0, self._num_steps - 2))
                if recording is not None:
                    yield event(self._delta(job, recording), "delta")
                sent = time.monotonic()
        (generation,) = self.request.generations
        yield event(generation.to_dict(), "done")

    def _chunk(self, chunk: Chunk) -> dict[str, Any]:
        labels = [token_label(self._service.lm.tokenizer, token) for token in chunk.token_ids]
        return {**chunk.to_dict(), "tokens": labels}

    def _delta(self, job: PlannedRequest, recording: Recording) -> dict[str, Any]:
        """Return the trace's form of the new and changed nodes, and of the new steps."""
        known = self._nodes
        changed = [node for node in recording.nodes if node.id >= len(known) or known[node.id] != node]
        self._nodes = recording.nodes
        if recording.steps:
            self._num_steps = recording.steps[-1].index + 1
        trace = Trace.from_recording(
            replace(recording, nodes=tuple(changed)),
            self._service.lm.tokenizer,
            model=job.model,
            strategy=job.request.strategy.name,
            seed=job.request.seed,
            config=job.config,
            prompt=job.prompt_text,
        )
        return trace.to_dict()

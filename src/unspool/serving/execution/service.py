"""The service behind the routes: one model and one engine thread, admission, and the life of a request.

Owns the path from planned requests to running ones, with limits and metrics. Knows neither fields nor JSON.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from unspool.model import LanguageModel
from unspool.planning import PlannedRequest
from unspool.records import Recording
from unspool.results import Chunk, Generation
from unspool.serving.answers.logprobs import TokenTexts
from unspool.serving.errors import ApiError, api_error, refused, too_long, too_slow
from unspool.serving.execution.admission import Admission
from unspool.serving.execution.fingerprint import fingerprint
from unspool.serving.execution.metrics import Metrics, Watch
from unspool.serving.execution.worker import EngineThread, Running
from unspool.serving.settings import Settings


class Service:
    """One model, its engine thread, and the limits of the server.

    Args:
        lm: the model.
        settings: limits and names.
        assistants: name --> draft model that requests can ask for.

    Attributes:
        names: of the model in requests; the first one is the default.
        created: Unix time at which the model was ready.
        fingerprint: of the model.
        open: the requests that run. ended: the error of every request after `end_all`; None before.
    """

    def __init__(
        self, lm: LanguageModel, settings: Settings, assistants: Mapping[str, LanguageModel] | None = None
    ) -> None:
        self.lm, self.settings = lm, settings
        self.assistants = dict(assistants or {})
        self.names = settings.served_model_name or (lm.info.name,)
        self.created = int(time.time())
        self.fingerprint = fingerprint(lm)
        self.admission = Admission(settings.max_running, settings.max_queue)
        self.metrics = Metrics(
            lambda: self.admission.running, lambda: self.admission.waiting, lambda: lm.engine.cache_usage
        )
        self.texts = TokenTexts(lm.tokenizer)
        self.thread = EngineThread(lm._driver)
        self.open: set[OpenRequest] = set()
        self.ended: ApiError | None = None

    def check_model(self, name: str) -> None:
        """Check the name of the model in a request.

        Raises:
            ApiError: 404 if this server does not have it.
        """
        if name not in self.names and not self.settings.any_model:
            known = ", ".join(self.names)
            raise ApiError(
                404,
                f"the model `{name}` does not exist; this server has {known}",
                param="model",
                code="model_not_found",
            )

    def assistant(self, name: str) -> LanguageModel:
        """Return a draft model by name.

        Raises:
            ApiError: 400 if the server was not started with it.
        """
        if name not in self.assistants:
            known = ", ".join(self.assistants) or "no draft model; start it with --assistant-model"
            raise refused("assistant", f"must be one of the draft models of this server, which has {known}")
        return self.assistants[name]

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end an output by default."""
        return tuple(self.lm.config.eos_token_id or self.lm.info.eos_token_ids)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text.

        Raises:
            ApiError: 400 without a tokenizer.
        """
        if self.lm.tokenizer is None:
            raise refused("prompt", "needs a tokenizer, which this model lacks; give token ids")
        return list(self.lm.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])

    def salt(self, key: str, given: str) -> str:
        """Return the salt of a request's cached prefixes.

        Args:
            key: identifies the caller's API key; "" without keys. Requests with different keys share no prefix.
            given: the field `cache_salt`.
        """
        return f"{key}/{given}" if key else given

    def with_objects(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options with the draft model that a request names.

        Raises:
            ApiError: 400 if it names an unknown draft model.
        """
        found = dict(options)
        if (name := found.get("assistant_model")) is not None:
            found["assistant_model"] = self.assistant(name)
        return found

    def room_after(self, count: int) -> int | None:
        """Return the most new tokens of a chat answer after `count` prompt tokens; None to leave it to the model."""
        length = self.lm.info.max_length
        room = None if length is None else max(1, length - count)
        limits = [limit for limit in (room, self.settings.default_max_tokens) if limit is not None]
        return min(limits, default=None)

    @property
    def max_prompt_tokens(self) -> int | None:
        """Most tokens of a prompt; None for no limit."""
        room = None if self.lm.info.max_length is None else self.lm.info.max_length - 1
        limits = [limit for limit in (room, self.settings.max_prompt_tokens) if limit is not None]
        return min(limits, default=None)

    def end_all(self, reason: ApiError) -> None:
        """End all requests with an error: running, waiting and planned ones."""
        self.ended = reason
        self.admission.end_waiting(reason)
        for request in list(self.open):
            request.end(reason)


class OpenRequest:
    """One HTTP request from its admission to its end.

    Args:
        service: the service.
        count: number of prompts.
        fields: option --> field of the request, for messages.

    Attributes:
        jobs: the planned requests, after the start.
        created: Unix time of the arrival.
        error: the error of its end; None without one.
    """

    def __init__(self, service: Service, count: int, fields: Mapping[str, str] | None = None) -> None:
        self._service, self._count, self._fields = service, count, fields
        self._watch = Watch(service.metrics)
        self._stack = AsyncExitStack()
        self.created = int(time.time())
        self._deadline = asyncio.get_running_loop().time() + service.settings.timeout
        self._running: Running | None = None
        self._reason: ApiError | None = None
        self.error: ApiError | None = None
        self.jobs: Sequence[PlannedRequest] = ()

    async def start(self, plan: Callable[[], Sequence[PlannedRequest]]) -> None:
        """Wait for room, plan the requests in another thread, and submit them. After an error, nothing is held.

        Raises:
            ApiError: if the queue is full, time is up, or the request cannot be served.
        """
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._stack.enter_async_context(self._service.admission.room(self._count))
                self._watch.started()
                self.jobs = await asyncio.to_thread(plan)
                self._check(self.jobs)
                self._running = Running(self._service.lm._driver, self.jobs, self._service.lm._detokenizer)
                await self._running.submit(self._service.thread)
                self._service.open.add(self)
                if self._service.ended is not None:
                    self.end(self._service.ended)
        except BaseException as error:
            await self._stack.aclose()
            if isinstance(error, Exception):
                raise self._told(error) from error
            raise

    def _check(self, jobs: Sequence[PlannedRequest]) -> None:
        limit = self._service.max_prompt_tokens
        for job in jobs:
            if limit is not None and len(job.request.prompt) > limit:
                raise too_long(len(job.request.prompt), limit + 1)

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Yield chunks until the end. Leaving early cancels the request.

        Raises:
            ApiError: if a request fails, time is up, or the server ends it.
        """
        assert self._running is not None, "the request was started"
        try:
            async for chunk in self._running.chunks(self._deadline):
                if chunk.token_ids:
                    self._watch.token()
                yield chunk
            self._note()
        except Exception as error:
            raise self._told(error) from error
        finally:
            await self.close()

    async def recording(self, first_step: int = 0) -> Recording | None:
        """Return the trace recording so far of the first prompt; None if it has ended or is not traced."""
        assert self._running is not None, "the request was started"
        return await self._running.recording(self._service.thread, first_step)

    async def finish(self) -> list[Generation]:
        """Wait for the end, and return the results in the order of the prompts. Raises as `chunks`."""
        async for _ in self.chunks():
            pass
        return self.generations

    @property
    def generations(self) -> list[Generation]:
        """The results of the prompts that have ended; all of them after the end."""
        return [] if self._running is None else [each for each in self._running.generations if each is not None]

    def end(self, reason: ApiError) -> None:
        """Cancel the request; its reader gets `reason` as the error."""
        self._reason = reason
        if self._running is not None:
            self._running.cancel()

    async def close(self) -> None:
        """Cancel the unfinished prompts, and give the room back. Does nothing the second time."""
        if self._running is not None:
            self._running.cancel()
        if self in self._service.open:
            self._service.open.remove(self)
            self._watch.ended()
        await self._stack.aclose()

    @property
    def strategy(self) -> str:
        """Name of the strategy; "" before the start."""
        return self.jobs[0].request.strategy.name if self.jobs else ""

    @property
    def seconds(self) -> float:
        """Seconds since the arrival."""
        return self._watch.seconds

    def _note(self) -> None:
        metrics = self._service.metrics
        for generation in self.generations:
            metrics.prompt_tokens.inc(generation.usage.prompt_tokens)
            metrics.cache_queries.inc(generation.usage.prompt_tokens)
            metrics.cache_hits.inc(generation.usage.cached_tokens)
            metrics.generation_tokens.inc(generation.usage.completion_tokens)
            metrics.of_prompts.observe(generation.usage.prompt_tokens)
            metrics.of_outputs.observe(generation.usage.completion_tokens)
            for completion in generation.completions:
                metrics.success.labels(completion.finish_reason, generation.strategy).inc()

    def count_error(self, status: int) -> None:
        """Count an error that a stream tells as an event. The handlers of the application count all others."""
        self._service.metrics.errors.labels(str(status)).inc()

    def _told(self, error: Exception) -> ApiError:
        if self._reason is not None:
            self.error = self._reason
        elif isinstance(error, TimeoutError):
            self.error = too_slow(self._service.settings.timeout)
        else:
            self.error = api_error(error, self._fields)
        return self.error


def new_id(prefix: str) -> str:
    """Return a fresh identifier, such as cmpl-1f0c…"""
    return f"{prefix}-{secrets.token_hex(12)}"

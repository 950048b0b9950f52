"""One call of a route that generates text: the part that all such routes share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from unspool.planning import PlannedRequest
from unspool.results import Generation
from unspool.serving.answers.streams import check_stream_options
from unspool.serving.execution.service import OpenRequest, Service, new_id
from unspool.serving.requests.bodies import Body
from unspool.serving.requests.decoding import Decoding, decoding
from unspool.serving.routes.prompt_logprobs import num_prompt_top, prompt_logprobs, with_prompt_scores


class Call(ABC):
    """One call, from its checked body to its answer.

    Args:
        service: the service.
        body: the checked body.
        count: number of prompts.
        salt: separates cached prefixes of different callers; see `Service.salt`.

    Attributes:
        id: of the answer.
        request: the open request.
        id_prefix: begins the ids of the route's answers.

    Raises:
        ApiError: if a field cannot be served.
    """

    id_prefix: ClassVar[str]

    def __init__(self, service: Service, body: Body, *, count: int, salt: str) -> None:
        self._service, self._body = service, body
        service.check_model(body.get("model"))
        check_stream_options(body)
        self.id = new_id(self.id_prefix)
        lm = service.lm
        self._decoding: Decoding = decoding(
            body, service.settings, tokenizer=lm.tokenizer, vocab_size=lm.info.vocab_size
        )
        self._num_prompt_top = num_prompt_top(body, service)
        self._options = service.with_objects(self._decoding.options)
        self._options["cache_salt"] = service.salt(salt, body.get("cache_salt", ""))
        self.request = OpenRequest(service, count, self._decoding.fields)

    @property
    def streams(self) -> bool:
        """True if the answer is a stream."""
        return bool(self._body.get("stream"))

    async def start(self) -> None:
        """Admit, plan and submit. Raises ApiError as `OpenRequest.start`."""
        await self.request.start(self._planned)

    def _planned(self) -> Sequence[PlannedRequest]:
        jobs = self._plan()
        return jobs if self._num_prompt_top is None else with_prompt_scores(jobs, self._num_prompt_top)

    @abstractmethod
    def _plan(self) -> Sequence[PlannedRequest]:
        """Return the planned requests; called in another thread."""

    @abstractmethod
    async def answer(self) -> dict[str, Any]:
        """Return the whole answer."""

    @abstractmethod
    def events(self) -> AsyncIterator[bytes]:
        """Yield the events of the streamed answer, without [DONE]."""

    def _of_prompt_tokens(self, prompt: int, generation: Generation) -> dict[str, Any]:
        """Return the field `prompt_logprobs` of a prompt's result; empty if it was not requested."""
        if self._num_prompt_top is None:
            return {}
        job, texts = self.request.jobs[prompt], self._service.texts
        return {"prompt_logprobs": prompt_logprobs(job, generation, num_top=self._num_prompt_top, texts=texts)}

    def _head(self, kind: str) -> dict[str, Any]:
        """Return the fields that an answer and each chunk of a stream begin with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.request.created,
            "model": self._body.get("model"),
            "system_fingerprint": self._service.fingerprint,
        }

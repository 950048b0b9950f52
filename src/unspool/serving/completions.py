"""POST /v1/completions: continues texts or token ids."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from unspool.planning import PlannedRequest
from unspool.results import Chunk, Completion, Generation
from unspool.results.generation import named_tokens
from unspool.serving.answers import finish_reason, stop_reason, usage, usage_of, vendor
from unspool.serving.bodies import Body
from unspool.serving.decoding import Decoding, decoding
from unspool.serving.errors import ApiError, refused
from unspool.serving.logprobs import CompletionLogprobs, Scored, scored
from unspool.serving.service import OpenRequest, Service, new_id
from unspool.serving.sse import event
from unspool.serving.streams import StreamUsage, check_stream_options
from unspool.strategies import WithPromptScores


class CompletionCall:
    """One call of the route.

    Args:
        service: the service.
        body: the checked body.

    Raises:
        ApiError: if a field cannot be served.
    """

    def __init__(self, service: Service, body: Body) -> None:
        self._service, self._body = service, body
        service.check_model(body.get("model"))
        self.id = new_id("cmpl")
        self._prompts = _prompts(body, service)
        lm = service.lm
        self._decoding = decoding(body, service.settings, tokenizer=lm.tokenizer, vocab_size=lm.info.vocab_size)
        check_stream_options(body)
        if self._decoding.only_scores and self.streams:
            raise refused("max_tokens", "must be at least 1 in a stream")
        self._options = self._with_echo(self._decoding)
        self.request = OpenRequest(service, len(self._prompts), self._decoding.fields)

    def _with_echo(self, decoding: Decoding) -> dict[str, Any]:
        options = self._service.with_objects(decoding.options)
        if ends := self._body.get("stop_token_ids"):
            options["eos_token_id"] = [*self._service.end_tokens, *ends]
        return {**options, "echo": True} if self._body.get("echo") else options

    @property
    def streams(self) -> bool:
        """True if the answer is a stream."""
        return bool(self._body.get("stream"))

    async def start(self) -> None:
        """Admit, plan and submit. Raises ApiError as `OpenRequest.start`."""
        await self.request.start(self._plan)

    def _plan(self) -> Sequence[PlannedRequest]:
        lm, body = self._service.lm, self._body
        prompts: Any = self._prompts
        if body.get("add_special_tokens") is False or body.get("truncate_prompt_tokens") is not None:
            prompts = [self._encoded(prompt) for prompt in self._prompts]
        return lm._plan_all(prompts, tentative=bool(body.get("tentative")), trace=False, **self._options)

    def _encoded(self, prompt: str | list[int]) -> list[int]:
        ids = prompt if isinstance(prompt, list) else self._service.encode(
            prompt, add_special_tokens=self._body.get("add_special_tokens", True)
        )  # fmt: skip
        keep = self._body.get("truncate_prompt_tokens")
        if keep is not None and keep < 1:
            raise refused("truncate_prompt_tokens", f"must be at least 1, or -1 for no limit, got {keep}")
        return ids if keep is None else ids[-keep:]

    # --- whole --------------------------------------------------------------------------------------------------

    async def answer(self) -> dict[str, Any]:
        """Return the whole answer."""
        generations = await self.request.finish()
        choices = [
            self._choice(prompt * len(generation.completions) + completion.index, generation, completion)
            for prompt, generation in enumerate(generations)
            for completion in generation.completions
        ]
        counts = usage_of(generations)
        if self._decoding.only_scores:
            counts = usage(counts["prompt_tokens"], 0)
        return {**self._head(), "choices": choices, "usage": counts}

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.request.created,
            "model": self._body.get("model"),
            "system_fingerprint": self._service.fingerprint,
        }

    def _choice(self, index: int, generation: Generation, completion: Completion) -> dict[str, Any]:
        only_scores = self._decoding.only_scores
        text = (generation.prompt or "") if only_scores else generation.text_of(completion)
        choice: dict[str, Any] = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(generation, completion, text),
            "finish_reason": "length" if only_scores else finish_reason(completion.finish_reason),
            "stop_reason": stop_reason(completion, self._options.get("stop_strings", ())),
            "unspool": vendor(generation, completion),
        }
        if self._body.get("return_token_ids"):
            choice["prompt_token_ids"] = list(generation.prompt_token_ids)
            choice["token_ids"] = list(completion.token_ids)
        return choice

    def _logprobs(self, generation: Generation, completion: Completion, text: str) -> dict[str, Any] | None:
        num_top = self._decoding.num_top
        if num_top is None:
            return None
        rows = scored(completion.token_ids, completion.logprobs, completion.top_logprobs)
        if self._decoding.only_scores:
            rows = []
        if generation.echo:
            of_prompt = generation.prompt_logprobs or (None,) * len(generation.prompt_token_ids)
            rows = scored(generation.prompt_token_ids, of_prompt, generation.prompt_top_logprobs or None) + rows
        return self._writer(generation.prompt_token_ids, num_top).add(rows, end=len(text))

    def _writer(self, prompt_ids: Sequence[int], num_top: int) -> CompletionLogprobs:
        return CompletionLogprobs(
            self._service.texts,
            self._service.lm._detokenizer,
            prompt_ids,
            num_top=num_top,
            as_ids=bool(self._body.get("return_tokens_as_token_ids")),
            echo=bool(self._body.get("echo")),
        )

    # --- streamed -----------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events of the streamed answer, without [DONE]."""
        counts = StreamUsage(self._body, self.request.jobs)
        write = partial(self._chunk, self._writers(), self._head())
        async for chunk in self.request.chunks():
            counts.add(chunk)
            if (value := write(chunk)) is not None:
                yield event(counts.beside(value))
        if counts.wanted:
            yield event({**self._head(), "choices": [], "usage": counts.total()})

    def _writers(self) -> Callable[[Chunk], CompletionLogprobs]:
        writers: dict[tuple[int, int], CompletionLogprobs] = {}

        def writer(chunk: Chunk) -> CompletionLogprobs:
            key = (chunk.prompt, chunk.index)
            if key not in writers:
                ids = self.request.jobs[chunk.prompt].request.prompt
                writers[key] = self._writer(ids, self._decoding.num_top or 0)
            return writers[key]

        return writer

    def _chunk(
        self, writer: Callable[[Chunk], CompletionLogprobs], head: dict[str, Any], chunk: Chunk
    ) -> dict[str, Any] | None:
        """Return one chunk's object; None if it has nothing to say."""
        wants_rows = self._decoding.num_top is not None and bool(chunk.token_ids)
        if not (chunk.text or chunk.finish_reason or chunk.tentative is not None or wants_rows):
            return None
        choice: dict[str, Any] = {
            "index": chunk.prompt * self._options.get("num_return_sequences", 1) + chunk.index,
            "text": chunk.text,
            "logprobs": None,
            "finish_reason": finish_reason(chunk.finish_reason) if chunk.finish_reason else None,
        }
        if self._decoding.num_top is not None:
            rows = scored(chunk.token_ids, chunk.logprobs, chunk.top_logprobs)
            known = writer(chunk)
            choice["logprobs"] = known.add(rows if known.has_begun else [*self._of_prompt(chunk.prompt), *rows])
        if self._body.get("return_token_ids"):
            choice["token_ids"] = list(chunk.token_ids)
        if chunk.tentative is not None:
            choice["unspool"] = {"tentative": chunk.tentative}
        return {**head, "choices": [choice]}

    def _of_prompt(self, prompt: int) -> list[Scored]:
        """Return the figures of a prompt's tokens if the text begins with the prompt."""
        request = self.request.jobs[prompt].request
        strategy = request.strategy
        if not isinstance(strategy, WithPromptScores):
            return []
        tops = named_tokens(strategy.prompt_top_logprobs, self._service.lm._detokenizer)
        return scored(request.prompt, (None, *strategy.prompt_logprobs), (None, *tops) if tops else None)


def _prompts(body: Body, service: Service) -> list[str | list[int]]:
    """Return the prompts as a list."""
    given = body.get("prompt")
    single = isinstance(given, str) or bool(given) and isinstance(given[0], int)
    prompts = [given] if single else list(given)
    if not prompts or any(not prompt and not isinstance(prompt, str) for prompt in prompts):
        raise refused("prompt", "must not be empty: give a text, or at least one token id", code="invalid_prompt")
    if len(prompts) > service.settings.max_prompts:
        raise ApiError(
            400,
            f"`prompt` must hold at most {service.settings.max_prompts} prompts on this server, got {len(prompts)}",
            param="prompt",
            code="limit_exceeded",
        )
    return prompts

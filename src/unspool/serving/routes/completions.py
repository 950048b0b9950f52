"""POST /v1/completions: continues texts or token ids."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Final

from unspool.planning import PlannedRequest
from unspool.results import Chunk, Completion, Generation
from unspool.results.generation import named_tokens
from unspool.serving.answers.answers import finish_reason, stop_reason, usage_of, vendor
from unspool.serving.answers.logprobs import CompletionLogprobs, Scored, scored
from unspool.serving.answers.streams import StreamUsage
from unspool.serving.errors import ApiError, refused
from unspool.serving.execution.service import Service
from unspool.serving.http.sse import event
from unspool.serving.requests.bodies import Body
from unspool.serving.routes.calls import Call
from unspool.strategies import WithPromptScores
from unspool.text.infill import FillTokens, fill_ends, fill_prompt, fill_tokens

_OBJECT: Final = "text_completion"


class CompletionCall(Call):
    """One call of the route. Arguments and errors as in `Call`; `count` comes from the body."""

    id_prefix = "cmpl"

    def __init__(self, service: Service, body: Body, *, salt: str) -> None:
        self._prompts = _prompts(body, service)
        super().__init__(service, body, count=len(self._prompts), salt=salt)
        if self._decoding.only_scores and self.streams:
            raise refused("max_tokens", "must be at least 1 in a stream")
        self._fill = self._fill_tokens()
        ends = list(body.get("stop_token_ids", ()))
        if self._fill is not None:
            ends += fill_ends(service.lm.tokenizer, self._fill)
        if ends:
            self._options["eos_token_id"] = [*service.end_tokens, *ends]
        if body.get("echo"):
            self._options["echo"] = True

    def _fill_tokens(self) -> FillTokens | None:
        """Return the tokens to fill in the middle with; None without the field `suffix`."""
        if self._body.get("suffix") is None:
            return None
        found = fill_tokens(self._service.lm.tokenizer)
        if found is None:
            allowed = "needs a tokenizer with fill-in-the-middle tokens, such as <|fim_prefix|>, which this model lacks"
            raise refused("suffix", allowed, code="unsupported_parameter")
        for field in ("echo", "truncate_prompt_tokens"):
            if self._body.get(field) is not None:
                raise refused("suffix", f"and `{field}` cannot be combined")
        return found

    def _plan(self) -> Sequence[PlannedRequest]:
        lm, body = self._service.lm, self._body
        prompts: Any = self._prompts
        fields = ("suffix", "add_special_tokens", "truncate_prompt_tokens")
        if any(body.get(field) is not None for field in fields):
            prompts = [self._encoded(prompt) for prompt in self._prompts]
        return lm._plan_all(prompts, tentative=bool(body.get("tentative")), trace=False, **self._options)

    def _encoded(self, prompt: str | list[int]) -> list[int]:
        special = self._body.get("add_special_tokens", True)
        if self._fill is not None:
            tokenizer, suffix = self._service.lm.tokenizer, self._body.get("suffix")
            return fill_prompt(tokenizer, self._fill, prompt, suffix, add_special_tokens=special)
        ids = prompt if isinstance(prompt, list) else self._service.encode(prompt, add_special_tokens=special)
        keep = self._body.get("truncate_prompt_tokens")
        if keep is not None and keep < 1:
            raise refused("truncate_prompt_tokens", f"must be at least 1, or -1 for no limit, got {keep}")
        return ids if keep is None else ids[-keep:]

    # --- whole --------------------------------------------------------------------------------------------------

    async def answer(self) -> dict[str, Any]:
        """Return the whole answer."""
        generations = await self.request.finish()
        choices = [
            {
                **self._choice(prompt * len(generation.completions) + completion.index, generation, completion),
                **of_prompt,
            }
            for prompt, generation in enumerate(generations)
            for of_prompt in [self._of_prompt_tokens(prompt, generation)]
            for completion in generation.completions
        ]
        counts = usage_of(generations, only_scores=self._decoding.only_scores)
        return {**self._head(_OBJECT), "choices": choices, "usage": counts}

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
        write = partial(self._chunk, self._writers(), self._head(_OBJECT))
        async for chunk in self.request.chunks():
            counts.add(chunk)
            if (value := write(chunk)) is not None:
                yield event(counts.beside(value))
        if counts.wanted:
            yield event({**self._head(_OBJECT), "choices": [], "usage": usage_of(self.request.generations)})

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

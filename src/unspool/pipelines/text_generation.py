"""The pipeline "text-generation": continues texts and answers conversations.

Owns: its prompts and records. Does not know: decoding.
"""

from __future__ import annotations

from typing import Any

from unspool.pipelines.base import Call, Pipeline, Record
from unspool.pipelines.inputs import Input, Prepared, continues, encode_input, hole
from unspool.results import Completion, Generation
from unspool.text.chat import answer_of, continued


class TextGenerationPipeline(Pipeline):
    """Continues texts and answers conversations.

    Results are lists of records, one per output: {"generated_text": prompt and continuation}. With
    return_full_text=False the text is the continuation only; with return_tensors=True a record is
    {"generated_token_ids": [...]}. For a conversation the text is the list of its messages, the answer last.
    """

    def _prepared(self, given: Input, call: Call) -> Prepared:
        settings, prefix = call.settings, self._prefix_of(call) if isinstance(given, str) else ""
        is_requested = "bos_token_id" in call.resolved.requested
        bos_token_id = call.resolved.bos_token_id if is_requested else self.model.info.bos_token_id
        requested = settings.tokenizer_options
        ids = encode_input(given, self.tokenizer, bos_token_id, settings, prefix=prefix)
        lengths: dict[str, int] = {}
        if prefix:
            # As in transformers, limits on the total length do not count the prefix.
            extra = len(
                self.tokenizer(prefix, add_special_tokens=bool(requested.get("add_special_tokens")))["input_ids"]
            )
            named = {name: getattr(call.resolved, name) for name in ("max_length", "min_length")}
            lengths = {name: limit + extra for name, limit in named.items() if limit}
        if settings.handle_long_generation is not None:
            ids = hole(ids, room=self._room(ids, call), longest=self._longest())
        return Prepared(
            given=given,
            prompt=ids,
            output_prefix=ids,
            options={**call.options, **lengths},
            continues=not isinstance(given, str) and continues(given, settings),
        )

    def _room(self, ids: tuple[int, ...], call: Call) -> int:
        """Return the number of new tokens to make room for."""
        config = call.resolved
        if config.max_new_tokens is not None:
            return config.max_new_tokens
        return max(1, config.max_length - len(ids)) if config.max_length is not None else 1

    def _longest(self) -> int | None:
        """Return the maximum length of model and tokenizer, in tokens; None for no limit."""
        limits = (self.model.info.max_length, getattr(self.tokenizer, "model_max_length", None))
        return min((limit for limit in limits if limit is not None), default=None)

    def _record(self, prepared: Prepared, generation: Generation, completion: Completion, call: Call) -> Record:
        if call.settings.returned == "ids":
            return {"generated_token_ids": [*prepared.output_prefix, *completion.token_ids]}
        text = self._text(generation, completion, call)
        new_alone = call.settings.returned == "new"
        return {"generated_text": text if new_alone else self._full(prepared, completion, text, call)}

    def _full(self, prepared: Prepared, completion: Completion, text: str, call: Call) -> Any:
        """Return the prompt with its continuation: a text, or messages."""
        if isinstance(prepared.given, str):
            return prepared.given + text
        messages = list(prepared.given)
        if prepared.continues:
            return [*messages[:-1], continued(messages[-1], text)]
        answer = answer_of(
            text,
            tokenizer=self.tokenizer,
            prompt_ids=prepared.output_prefix,
            token_ids=completion.token_ids,
            tools=call.settings.tools,
        )
        return [*messages, answer]

"""The pipelines "text2text-generation", "summarization" and "translation", for encoder-decoders.

Owns: their encoder inputs and records. Does not know: decoding.
"""

from __future__ import annotations

from typing import Any

from unspool.errors import PromptError
from unspool.pipelines.base import Call, Pipeline, Record
from unspool.pipelines.inputs import Input, Prepared, encode_input
from unspool.results import Completion, Generation


class TextToTextPipeline(Pipeline):
    """Turns texts into other texts with an encoder-decoder.

    Results are records {"generated_text": ...}, {"summary_text": ...} or {"translation_text": ...}, in lists with one
    record per output. A list of texts with one output each gives a flat list of records. With return_tensors=True a
    record holds a tensor under "generated_token_ids" (...) instead, which begins with the decoder's start token.
    """

    def _prepared(self, given: Input, call: Call) -> Prepared:
        if not isinstance(given, str):
            raise PromptError(f"{self.task} reads texts; for conversations use text-generation")
        options = dict(call.options)
        prefix = self._prefix_of(call)
        prompt: str | tuple[int, ...] = prefix + given
        inputs = self._translation_inputs(prefix + given, call) if self._task.translates else None
        if inputs is not None:
            prompt = tuple(inputs.pop("input_ids"))
            if "forced_bos_token_id" in inputs:
                options.setdefault("forced_bos_token_id", inputs["forced_bos_token_id"])
        elif call.settings.tokenizer_options:
            prompt = encode_input(given, self.tokenizer, None, call.settings, prefix=prefix)
        return Prepared(given=given, prompt=prompt, output_prefix=self._start(call), options=options)

    def _translation_inputs(self, text: str, call: Call) -> dict[str, Any] | None:
        """Return the inputs of a multilingual tokenizer for these languages; None for other tokenizers."""
        build = getattr(self.tokenizer, "_build_translation_inputs", None)
        if build is None:
            return None
        source, target = call.settings.src_lang, call.settings.tgt_lang
        if source is None and target is None and self._task.languages is not None:
            source, target = self._task.languages
        if source is None or target is None:
            raise PromptError(
                "the tokenizer needs languages: give `src_lang` and `tgt_lang` by the tokenizer's names for them"
            )
        requested = call.settings.tokenizer_options
        return dict(build(text, return_tensors=None, src_lang=source, tgt_lang=target, **requested))

    def _start(self, call: Call) -> tuple[int, ...]:
        """Return the decoder prompt, or an empty tuple if it is unknown."""
        requested = call.resolved.decoder_start_token_id
        if requested is not None:
            return requested
        source = self.model.runtime.source
        start = None if source is None else source.decoder_start_token_id
        return () if start is None else (start,)

    def _record(self, prepared: Prepared, generation: Generation, completion: Completion, call: Call) -> Record:
        if call.settings.returned == "ids":
            import torch

            return {
                f"{self._task.key}_token_ids": torch.tensor(
                    [*prepared.output_prefix, *completion.token_ids], device="cpu"
                )
            }
        return {f"{self._task.key}_text": self._text(generation, completion, call)}

    def _flattened(self, results: list[Any]) -> list[Any]:
        return [each[0] for each in results] if all(len(each) == 1 for each in results) else results

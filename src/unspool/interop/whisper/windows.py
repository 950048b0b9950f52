"""Decodes windows of audio with the drop-in's calls: one call for all windows of a step with the same options.

Owns: the options of an attempt, and the result of a window in transformers' form. Does not know: segments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from unspool.config import GenerationConfig
from unspool.engine import Request
from unspool.engine.driver import Driver
from unspool.errors import OptionError
from unspool.interop.batch import Batch
from unspool.interop.decode import Call, Returned, returned, run
from unspool.interop.semantics import build_call, pad_token
from unspool.interop.transformers_objects import placed
from unspool.interop.whisper.arguments import WindowedCall
from unspool.interop.whisper.returned import padded
from unspool.interop.whisper.states import WindowStates
from unspool.processors.timestamps import Timestamps
from unspool.source_info import Speech
from unspool.transcription.conversation import Decoded, WindowJob
from unspool.transcription.no_speech import WithNoSpeech
from unspool.transcription.temperatures import Options
from unspool.types import ModelInfo

Align: TypeAlias = "Callable[[WindowJob, Sequence[int]], Sequence[float]]"
"""Returns the seconds of each new token of a window, from the start of the window."""


class WindowDecoder:
    """Decodes windows.

    Args:
        driver: of the model.
        call: the caller's.
        options: per temperature.
        speech: the model's stored prompt.
        align: gives tokens their times; None if they need none.
        states: reads attentions and hidden states; None if the caller requests none.

    Attributes:
        kind: the class of the last call's result.
    """

    kind: type

    def __init__(
        self,
        driver: Driver,
        call: WindowedCall,
        options: Mapping[float | None, Options],
        speech: Speech,
        *,
        align: Align | None,
        states: WindowStates | None,
    ) -> None:
        self._newest: dict[int, tuple[WindowJob, Any]] = {}
        self._states = states
        self._driver, self._call, self._options, self._speech, self._align = driver, call, options, speech, align

    def decode(self, jobs: Sequence[WindowJob]) -> list[Decoded]:
        """Return the outputs of windows in their order."""
        groups: dict[tuple[float | None, int], list[int]] = {}
        for place, job in enumerate(jobs):
            groups.setdefault((job.temperature, job.earlier), []).append(place)
        found: dict[int, Decoded] = {}
        for places in groups.values():
            found |= zip(places, self._decode_group([jobs[place] for place in places]), strict=True)
        return [found[place] for place in range(len(jobs))]

    def newest_results(self, pad_token_id: int | None) -> list[Any]:
        """Return the last result of each row, as `whole_outputs` reads it. pad_token_id: is read after an end."""
        newest = [self._newest[row] for row in range(len(self._newest))]
        if self._states is None or not self._call.is_whole:
            return [result for _, result in newest]
        # A row that has ended reads pads, so that all rows have as many steps.
        ids = padded([result["sequences"].tolist() for _, result in newest], pad_token_id, torch.device("cpu")).tolist()
        return [
            result | self._states.read(job.window.source, row, len(job.prompt))
            for (job, result), row in zip(newest, ids, strict=True)
        ]

    def _decode_group(self, jobs: Sequence[WindowJob]) -> list[Decoded]:
        """Decode windows with the same options in one call."""
        detectors: list[WithNoSpeech] = []
        call = replace(self._read(jobs), prepare=lambda request: self._listening(request, jobs[0], detectors))
        outputs = run(self._driver, call)
        whole = returned(call, outputs)
        self.kind = type(whole)
        decoded = []
        for row, job in enumerate(jobs):
            tokens = outputs.groups[row][0].token_ids
            result = self._result(call, whole, row, job, tokens)
            self._newest[job.audio] = job, result
            wants_logprob = self._call.settings.logprob_threshold is not None
            decoded.append(
                Decoded(
                    token_ids=tokens,
                    ends=tokens[-1] in (call.config.eos_token_id or ()),
                    mean_logprob=mean_logprob(result["scores"], tokens, job.temperature) if wants_logprob else None,
                    no_speech_prob=detectors[row].probability if detectors else None,
                    temperature=job.temperature,
                    result=(call.batch.width, result),
                )
            )
        return decoded

    def _read(self, jobs: Sequence[WindowJob]) -> Call:
        """Return the call of the drop-in for windows with the same options."""
        given, settings = self._call, self._call.settings
        config, own = self._options[jobs[0].temperature]
        changes: dict[str, Any] = {"max_length": None}
        if config.max_length is not None and config.max_new_tokens is None:
            # As in transformers: `max_length` counts no prompt, and grows by the prompt of each window.
            changes["max_new_tokens"] = config.max_length + jobs[0].earlier
        if given.returns_dict or settings.return_token_timestamps or settings.logprob_threshold is not None:
            changes["return_dict_in_generate"] = True
        if settings.logprob_threshold is not None or settings.return_token_timestamps:
            changes["output_scores"] = True
        if config.seed is not None:
            changes["seed"] = tuple(self._seed(config.seed, job) for job in jobs)
        config = config.replace(**changes)
        if settings.return_timestamps:
            speech = self._speech
            assert speech.no_timestamps is not None, "timestamps were checked"
            rules = Timestamps(speech.no_timestamps, speech.max_initial_timestamp, by_sum=speech.sums_timestamps)
            own = replace(own, processors=(rules, *own.processors))
        arguments = given.arguments
        has_prefix = arguments.prefix_allowed_tokens_fn is not None
        processors = placed(arguments.logits_processor, config, prefix=has_prefix)
        batch = self._batch(jobs, pad_token(config))
        _check_length(config, batch.width, self._driver.engine.runtime.info)
        for each in arguments.logits_processor:
            if hasattr(each, "set_begin_index"):  # of transformers, for objects that count new tokens
                each.set_begin_index(batch.width)
        return build_call(arguments, batch, config, own, processors)

    def _batch(self, jobs: Sequence[WindowJob], pad: int | None) -> Batch:
        width = max(len(job.prompt) for job in jobs)
        if pad is None and any(len(job.prompt) < width for job in jobs):
            hint = "give pad_token_id=, or set it in model.generation_config"
            raise OptionError("pad_token_id", None, "must be set if prompts differ in length", hint)
        rows = [[*[pad or 0] * (width - len(job.prompt)), *job.prompt] for job in jobs]
        return Batch(
            input_ids=torch.tensor(rows, dtype=torch.int64, device=self._call.features.device),
            prompts=tuple(job.prompt for job in jobs),
            sources=tuple(job.window.source for job in jobs),
            task="rewrite",
        )

    def _seed(self, given: int | Sequence[int], job: WindowJob) -> int:
        """Return the seed of an attempt: repeated outputs and repeated attempts draw independently."""
        row, repeat = divmod(job.audio, self._call.repeats)
        seed = given if isinstance(given, int) else given[row]
        return seed + repeat * len(self._options) + job.attempt

    def _listening(self, request: Request, job: WindowJob, detectors: list[WithNoSpeech]) -> Request:
        """Return the request with a question about "no speech", if there is a threshold for it."""
        if self._call.settings.no_speech_threshold is None or self._speech.no_timestamps is None:
            return request
        detectors.append(WithNoSpeech(request.strategy, self._speech.no_timestamps - 1, job.num_start - 1))
        return replace(request, strategy=detectors[-1])

    def _result(self, call: Call, whole: Returned, row: int, job: WindowJob, tokens: Sequence[int]) -> Any:
        """Return a row of a call's result: its ids, or the fields of transformers' output class."""
        if isinstance(whole, torch.Tensor):
            return whole[row]
        result = row_of(whole, row)
        if self._align is not None:
            times = [*[0.0] * call.batch.width, *self._align(job, tokens)]
            times += times[-1:] * (len(result["sequences"]) - len(times))
            result["token_timestamps"] = torch.tensor(times, dtype=torch.float32, device="cpu")
        if self._states is not None and not self._call.is_whole:
            ids = result["sequences"].tolist()[call.batch.width - len(job.prompt) :]
            result |= self._states.read(job.window.source, ids, len(job.prompt))
        return result


def _check_length(config: GenerationConfig, width: int, info: ModelInfo) -> None:
    """Check that the decoder has room for the prompt and the new tokens of a window.

    Raises:
        OptionError: if it has not, as in transformers.
    """
    wanted, limit = config.max_new_tokens, info.max_length
    if "max_new_tokens" in config.requested and wanted is not None and limit is not None and wanted + width > limit:
        allowed = (
            f"must be at most {max(0, limit - width)}: {info.name} holds {limit} tokens, and the prompt has {width}"
        )
        raise OptionError("max_new_tokens", wanted, allowed, "lower it, or shorten `prompt_ids`")


def row_of(whole: Mapping[str, Any], row: int) -> dict[str, Any]:
    """Return one row of an output class of transformers, on the CPU. Scores are one tensor [vocab] per step."""
    found: dict[str, Any] = {}
    for name, value in whole.items():
        if name in ("scores", "logits"):
            steps = range(len(value))
            rows = [row] * len(value)
            if name == "scores" and whole.get("beam_indices") is not None:
                rows = whole["beam_indices"][row].tolist()
            found[name] = [value[step][beam].cpu() for step, beam in zip(steps, rows)]  # noqa: B905 (beams end earlier)
        else:
            found[name] = value[row].cpu()
    return found


def mean_logprob(scores: Sequence[torch.Tensor], tokens: Sequence[int], temperature: float | None) -> float:
    """Return the mean log-probability of an output's tokens, by its scores without their temperature.

    scores: one [vocab] per step.
    """
    rows = torch.stack(list(scores[: len(tokens)])) * (temperature or 1.0)
    chosen = torch.tensor(tokens[-len(rows) :], device=rows.device)
    return float(rows.float().log_softmax(-1).gather(1, chosen[:, None]).mean())

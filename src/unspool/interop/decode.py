"""Decodes one call with its arguments read: requests, engine, output classes of transformers.

Owns: the order of a call. Does not know: the origin of its arguments, and how tokens are decoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from transformers.generation.utils import (
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
)

from unspool.config import GenerationConfig
from unspool.config.strategies import BEAMS
from unspool.engine import Request
from unspool.engine.driver import Driver
from unspool.engine.request import LockstepGroup
from unspool.errors import OptionError, StrategyError
from unspool.inputs.reader import EncodedPrompt, EncodedReader, Reader
from unspool.interop.arguments import CACHE
from unspool.interop.batch import Batch
from unspool.interop.batch_layout import BatchLayout
from unspool.interop.chain import InLogits, ProcessorChain
from unspool.interop.criteria import TransformersCriterion
from unspool.interop.deferred_cache import CacheSource
from unspool.interop.own_forward import OwnForward
from unspool.interop.processors import GUIDANCE, PREFIX, USER, PrefixAllowed, TransformersProcessors, order_of
from unspool.interop.record import Record, RowKind, steps_of
from unspool.interop.streaming import Columns
from unspool.interop.transformers_objects import TransformersObjects
from unspool.planning import CallerObjects, plan_requests
from unspool.protocols import Criterion, Processor, Runtime
from unspool.text.detokenize import Detokenizer
from unspool.types import Committed, Failed, Finished, Output

Returned: TypeAlias = (
    torch.Tensor
    | GenerateDecoderOnlyOutput
    | GenerateBeamDecoderOnlyOutput
    | GenerateEncoderDecoderOutput
    | GenerateBeamEncoderDecoderOutput
    | dict[str, Any]
)
"""The result of a call: sequences alone, or the output class of transformers for the model and strategy.

A transcript in segments is a dict."""

_RECORDED_BEAMS = BEAMS - {"diverse_beam"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call with everything that decides its tokens.

    batch: the prompts. config: resolved, with lengths that count output only. caller_objects: strategy, processors and
    criteria of our protocols. transformers_objects: processors and criteria of transformers. streamer: an object with
    put and end, or None. tokenizer: for options that hold text. pad_token_id: fills rows after their end. prepare:
    changes each request before it is submitted; None for no change. own_forward: the batch of a call that reads the
    model's own forward; None for the model's engine. cache_source: of the cache in the result; None for no cache.
    """

    batch: Batch
    config: GenerationConfig
    caller_objects: CallerObjects
    transformers_objects: TransformersObjects
    streamer: Any = None
    tokenizer: Any = None
    pad_token_id: int | None = None
    prepare: Callable[[Request], Request] | None = None
    own_forward: OwnForward | None = None
    cache_source: CacheSource | None = None

    @property
    def kept(self) -> tuple[RowKind, ...]:
        """The kinds of rows that the caller requests."""
        wanted: dict[RowKind, bool] = {"logits": self.config.output_logits, "scores": self.config.output_scores}
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    @property
    def has_beam_indices(self) -> bool:
        """True if the result holds beam indices."""
        return bool(self.config.return_dict_in_generate) and self.config.strategy in _RECORDED_BEAMS

    def check(self) -> None:
        """Check that the options can be combined.

        Raises:
            OptionError: if they cannot.
        """
        strategy, config = self.caller_objects.strategy, self.config
        for option in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
            if not getattr(config, option):
                continue
            if strategy is not None:
                allowed = f"is not available with a strategy of your own ({strategy.name})"
                raise OptionError(option, True, allowed, "leave it out, or have the strategy ask for types.Whole")
            if config.strategy == "diverse_beam":
                allowed = "is not available with diverse_beam: its beams can have several rows at one step"
                raise OptionError(option, True, allowed, "leave it out; `sequences_scores` are there")
        for option in (GUIDANCE, "dola_layers"):
            if config.output_logits and getattr(config, option) is not None:
                allowed = f"is not available with `{option}`, which combines several rows into one"
                raise OptionError("output_logits", True, allowed, "leave it out; `output_scores` is there")
        if self.transformers_objects and strategy is not None:
            named = [
                (PREFIX, self.transformers_objects.prefix_allowed_tokens_fn),
                ("logits_processor", self.transformers_objects.processors),
            ]
            option = next((name for name, given in named if given), "stopping_criteria")
            allowed = f"is not available with a strategy of your own ({strategy.name})"
            raise OptionError(option, "objects of transformers", allowed, "use `processors` and `criteria`")


def decode(driver: Driver, call: Call) -> Returned:
    """Decode the prompts of a call and return a tensor, or an output class of transformers."""
    return returned(call, run(driver, call))


class Outputs(NamedTuple):
    """The outputs of a call. groups: per prompt, all with the same number of outputs. record: None without rows."""

    groups: list[Sequence[Output]]
    record: Record | None


def run(driver: Driver, call: Call) -> Outputs:
    """Decode the prompts of a call."""
    requests = _requests(call, driver.engine.runtime)
    if call.prepare is not None:
        requests = list(map(call.prepare, requests))
    record = None
    if call.transformers_objects or call.kept or call.has_beam_indices or call.own_forward:
        requests, record = _with_chain(call, requests)
    return Outputs(_checked([finished.outputs for finished in _run(driver, requests, call)], call), record)


def returned(call: Call, found: Outputs) -> Returned:
    """Return the outputs of a call as a tensor, or as an output class of transformers."""
    groups, record = found
    outputs = [output.token_ids for group in groups for output in group]
    if call.config.return_dict_in_generate:
        return _output(call, call.batch.sequences(outputs, call.pad_token_id), groups, record)
    if call.batch.task == "transcribe":
        return call.batch.transcripts(outputs, call.pad_token_id, call.config.eos_token_id or ())
    return call.batch.sequences(outputs, call.pad_token_id)


# --- requests -------------------------------------------------------------------------------------------------------


def _requests(call: Call, runtime: Runtime) -> list[Request]:
    """Return one request per prompt."""
    if call.tokenizer is None and call.config.stop_strings:
        allowed = "needs a tokenizer"
        raise OptionError("stop_strings", call.config.stop_strings, allowed, "give the model's own as `tokenizer=`")
    batch = call.batch
    prompts: Sequence[Any] = batch.prompts
    reader = Reader(runtime, call.tokenizer)
    if batch.sources:
        prompts = [EncodedPrompt(ids, None, source) for ids, source in zip(batch.prompts, batch.sources, strict=True)]
        reader = EncodedReader(runtime, call.tokenizer)
    planned = plan_requests(
        prompts,
        call.config,
        call.caller_objects,
        reader=reader,
        detokenizer=Detokenizer(call.tokenizer) if call.config.stop_strings else None,
        stops_in_prompt=True,
    )
    return [each.request for each in planned]


def _with_chain(call: Call, requests: Sequence[Request]) -> tuple[list[Request], Record]:
    """Return the requests with one chain of processors for all of them, and its record."""
    config, first = call.config, requests[0]
    layout = BatchLayout(
        call.batch.input_ids,
        pad_token_id=call.pad_token_id or 0,
        rows_per_prompt=max(config.num_beams, config.num_return_sequences, config.best_of or 1),
        ranked=config.num_beams > 1,
    )
    record = Record(layout, call.kept)
    if call.own_forward is not None:
        call.own_forward.follow(layout)
    log_probs = first.strategy.space == "log_probs" and first.negative_prompt is None
    chain = ProcessorChain(
        layout, record, _stages(call, layout, first), log_probs=log_probs, order=order_of(config.processor_order)
    )
    criteria = (*first.criteria, *_criteria(call, layout, chain, record))
    in_lockstep = call.transformers_objects.see_batch or call.own_forward is not None
    lockstep_group = LockstepGroup() if in_lockstep else None
    alone = first.config.replace(processor_order=(USER,))
    changed = [
        replace(
            request,
            config=alone,
            strategy=InLogits(request.strategy, layout),
            processors=(chain,),
            criteria=criteria,
            lockstep_group=lockstep_group,
        )
        for request in requests
    ]
    return changed, record


def _stages(call: Call, layout: BatchLayout, request: Request) -> dict[str, tuple[Processor, ...]]:
    """Return the processors that replace our own in the chain, or are added to it."""
    stages: dict[str, tuple[Processor, ...]] = {USER: request.processors}
    if call.transformers_objects.prefix_allowed_tokens_fn is not None:
        stages[PREFIX] = (PrefixAllowed(call.transformers_objects.prefix_allowed_tokens_fn, layout),)
    for place, objects in call.transformers_objects.processors.items():
        name = "logits_processor" if place == USER else place
        stages[place] = (
            *(stages.get(place, ()) if place == USER else ()),
            TransformersProcessors(objects, layout, name),
        )
    return stages


def _criteria(call: Call, layout: BatchLayout, chain: ProcessorChain, record: Record) -> list[Criterion]:
    config = call.config
    width = max(2, 1 + len(config.eos_token_id or ())) * config.num_beams if config.strategy == "beam" else None
    scores = call.config.output_scores and call.config.return_dict_in_generate
    steps = partial(record.steps, "scores", pad_token_id=call.pad_token_id) if scores else lambda count: None
    return [
        TransformersCriterion(each, layout, width=width, values=chain.values, steps=steps)
        for each in call.transformers_objects.criteria
    ]


# --- the run --------------------------------------------------------------------------------------------------------


def _run(driver: Driver, requests: Sequence[Request], call: Call) -> list[Finished]:
    """Run the requests together. The first error cancels the others and is raised."""
    if call.streamer is None:
        return driver.finish(requests)
    outputs = call.config.num_return_sequences
    call.streamer.put(call.batch.input_ids.repeat_interleave(outputs, dim=0).cpu())
    columns = Columns(call.streamer, len(requests) * outputs, call.pad_token_id or 0)
    tickets = driver.submit(requests)
    prompts = {ticket.number: prompt for prompt, ticket in enumerate(tickets)}
    done: dict[int, Finished] = {}
    for event in driver.events(tickets):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Committed):
            output = prompts[event.request] * outputs + event.output
            columns.put(output, event.token_ids, ended=event.finish_reason is not None)
        if isinstance(event, Finished):
            done[event.request] = event
    return [done[ticket.number] for ticket in tickets]


def _checked(groups: list[Sequence[Output]], call: Call) -> list[Sequence[Output]]:
    """Check that each prompt has enough outputs to fill a tensor, and warn about missing forced words."""
    wanted = max(call.config.num_return_sequences, *map(len, groups))
    for row, group in enumerate(groups):
        if len(group) < wanted:
            raise StrategyError(
                f"row {row}: {call.config.strategy} found {len(group)} outputs and a tensor needs {wanted}; "
                "forbid fewer tokens or lower `num_return_sequences`"
            )
    unmet = [
        f"row {row * wanted + index}: {output.unmet}"
        for row, group in enumerate(groups)
        for index, output in enumerate(group)
        if output.unmet is not None
    ]
    if unmet:
        warnings.warn(f"some outputs lack forced words: {'; '.join(unmet)}", UserWarning, stacklevel=6)
    return groups


# --- results --------------------------------------------------------------------------------------------------------


def _output(call: Call, sequences: torch.Tensor, groups: Sequence[Sequence[Output]], record: Record | None) -> Returned:
    ids = cast(torch.LongTensor, sequences)
    rows: dict[str, Any] = {}
    if call.own_forward is not None and record is not None:
        rows |= call.own_forward.fields(record.layout)
    elif call.cache_source is not None:
        has_beams = call.has_beam_indices and record is not None
        written = (
            record.layout.newest_outputs()
            if has_beams and record is not None
            else sequences[:, call.batch.input_ids.shape[1] : -1]
        )
        rows[CACHE] = call.cache_source.cache(written)
    if call.config.strategy not in BEAMS:
        for name in call.kept:
            assert record is not None, "rows are kept by a record"
            found = [
                record.rows(name, prompt, index, output.token_ids)
                for prompt, group in enumerate(groups)
                for index, output in enumerate(group)
            ]
            rows[name] = steps_of(found, call.pad_token_id, sequences.device)
        plain = GenerateDecoderOnlyOutput if call.batch.task == "continue" else GenerateEncoderDecoderOutput
        return plain(sequences=ids, **rows)
    scores = torch.tensor(
        [output.score for group in groups for output in group], dtype=torch.float32, device=sequences.device
    )
    if record is not None and call.has_beam_indices:
        for name in call.kept:
            steps = record.steps(name, None, call.pad_token_id)
            rows[name] = tuple(step.to(sequences.device) for step in steps)
        rows["beam_indices"] = _beam_indices(groups, record).to(sequences.device)
    beams = GenerateBeamDecoderOnlyOutput if call.batch.task == "continue" else GenerateBeamEncoderDecoderOutput
    return beams(sequences=ids, sequences_scores=cast(torch.FloatTensor, scores), **rows)


def _beam_indices(groups: Sequence[Sequence[Output]], record: Record) -> torch.Tensor:
    """Return for each token of each output the row of `scores` that it was chosen from, -1 after its end."""
    outputs = [record.batch_rows(prompt, output.token_ids) for prompt, group in enumerate(groups) for output in group]
    longest = max(map(len, outputs))
    return torch.tensor(
        [batch_rows + [-1] * (longest - len(batch_rows)) for batch_rows in outputs], dtype=torch.int32, device="cpu"
    )

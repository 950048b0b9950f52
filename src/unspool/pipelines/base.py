"""Pipeline: from a transformers-style call to requests, and from their results to transformers' records.

Owns: the order of one call, and the options in force. Does not know: how a task reads inputs and writes records.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from unspool.config import OPTIONS, UNSET, GenerationConfig
from unspool.config.foreign import is_set
from unspool.errors import OptionError, PromptError
from unspool.interop.arguments import ENCODER, REFUSED, read_config
from unspool.interop.ignored import ignored_options, warn_of_ignored
from unspool.interop.lenient import lenient
from unspool.pipelines.inputs import Input, Inputs, Prepared, read_input, read_inputs
from unspool.pipelines.requests import answers, ended_on_failure, streamed
from unspool.pipelines.settings import Settings, merged_options, settings_of, split, with_truncation, without_options
from unspool.pipelines.tasks import Task
from unspool.planning import resolve_options
from unspool.progress import progress_bar
from unspool.results import Completion, Generation
from unspool.seeds import shared_seed
from unspool.text.detokenize import Detokenizer
from unspool.text.emit import text_of
from unspool.tuning import MAX_LAZY_REQUESTS

if TYPE_CHECKING:
    from unspool.model import LanguageModel

Record: TypeAlias = dict[str, Any]

_NOT_READ: Final = "is not read by pipelines"
_UNREAD: Final = {
    "logits_processor": (
        _NOT_READ,
        "use `processors` with objects of unspool.protocols.Processor, or unspool.generate",
    ),
    "stopping_criteria": (_NOT_READ, "use `criteria` with objects of unspool.protocols.Criterion, or unspool.generate"),
    "prefix_allowed_tokens_fn": (_NOT_READ, "use `processors` with objects of unspool.protocols, or unspool.generate"),
    **dict.fromkeys(ENCODER, (_NOT_READ, "use LanguageModel.generate, or unspool.generate")),
    "echo": ("does not change the records of a pipeline", "use `return_full_text`"),
    "logprobs": ("is not part of the records of a pipeline", "use LanguageModel.generate"),
}
"""Refused arguments: objects that need the whole batch, and options that a record cannot show."""

_DROP_IN_DEFAULTS: Final = {
    name: row.drop_in_default for name, row in OPTIONS.items() if row.drop_in_default is not UNSET
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The settings and options of one call.

    settings: of the pipeline. config: the caller's generation config. options: of generation, given by name.
    resolved: all options in force. draws: True if any token is drawn at random. ignored: the errors of options that the
    strategy does not read; they are left out of the others.
    """

    settings: Settings
    config: GenerationConfig | None
    options: Mapping[str, Any]
    resolved: GenerationConfig
    draws: bool
    ignored: Sequence[OptionError] = ()


class Answers(Iterator[Any]):
    """Results of a data set in the order of its inputs, computed on demand. Has a length."""

    def __init__(self, results: Iterator[Any], count: int) -> None:
        self._results, self._count = results, count

    def __next__(self) -> Any:
        return next(self._results)

    def __len__(self) -> int:
        return self._count


class Pipeline(ABC):
    """Texts or conversations in, records out, as in transformers' pipelines.

    Args:
        task: the pipeline's task.
        lm: the model, with a tokenizer; it stays unchanged.
        stored: the model config's options for this task; they count as the model's own.
        prefix: the model's own, prepended to every text; None for none.
        given: arguments of every call; a call's own arguments override them.

    Raises:
        OptionError: if an argument is unknown or out of range, or with strict=True not read by the strategy.
        PromptError: if the model lacks a tokenizer.
    """

    def __init__(
        self,
        task: Task,
        lm: LanguageModel,
        *,
        stored: Mapping[str, Any] | None = None,
        prefix: str | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        if lm.tokenizer is None:
            raise PromptError("a pipeline reads and writes text: give a `tokenizer`")
        self._task, self._prefix = task, prefix
        self.model = _with_stored(lm, task.defaults, stored or {})
        self._own, self._options = split(given or {}, task)
        self._prepare_call({})

    @property
    def task(self) -> str:
        """The task's name, as given."""
        return self._task.name

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.model.tokenizer

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.task!r}, {self.model!r})"

    def __call__(self, text_inputs: Any, **arguments: Any) -> Any:
        """Run the task.

        Args:
            text_inputs: a text, or a list of texts, or an iterator or data set of texts. For text-generation also
                conversations, as lists of messages.
            arguments: see docs/pipeline.md; options of generation by transformers' names, and also `batch_size`,
                `return_tensors`, `return_text`, `clean_up_tokenization_spaces`, `prefix`, `streamer`, ...

        Returns:
            One result for one input; a list of results for a list. For other iterables an iterator of results, which
            reads inputs on demand.

        Raises:
            OptionError: if an argument is unknown or out of range, or with strict=True not read by the strategy.
            PromptError: if an input is not a text or conversation, or is too long for the model.

        Warns:
            UserWarning: if options are ignored, because the strategy does not read them; the message names them.
        """
        with ended_on_failure(arguments.get("streamer", self._own.get("streamer"))):
            call = self._prepare_call(arguments)
            warn_of_ignored(call.ignored, stacklevel=2)
            inputs = read_inputs(text_inputs)
            self._check_seeds(call, None if inputs.shape == "lazy" else inputs.length)
        if inputs.shape == "lazy":
            results = self._run(call, inputs)
            return results if inputs.length is None else Answers(results, inputs.length)
        found = self._run_all(call, inputs)
        return found[0] if inputs.shape == "one" else self._flattened(found)

    # --- methods of each task -----------------------------------------------------------------------------------

    @abstractmethod
    def _prepared(self, given: Input, call: Call) -> Prepared:
        """Return an input ready for the model."""

    @abstractmethod
    def _record(self, prepared: Prepared, generation: Generation, completion: Completion, call: Call) -> Record:
        """Return the record of one output."""

    def _flattened(self, results: list[Any]) -> list[Any]:
        """Return the results of a list in the form of the task's pipeline."""
        return results

    # --- one call -----------------------------------------------------------------------------------------------

    def _prepare_call(self, arguments: Mapping[str, Any]) -> Call:
        own, called = split(arguments, self._task)
        options = merged_options(self._options, called)
        tokenizer = options.pop("tokenizer", None)
        if tokenizer is not None and tokenizer is not self.tokenizer:
            hint = "leave it out, or make the pipeline with it"
            raise OptionError("tokenizer", type(tokenizer), "must be the pipeline's own", hint)
        for name, (reason, remedy) in (*REFUSED.items(), *_UNREAD.items()):
            if is_set(given := options.pop(name, None)):
                raise OptionError(name, given if isinstance(given, bool | int) else type(given), reason, remedy)
        settings = settings_of(self._own, own)
        if not self._task.reads_source:
            settings, options = with_truncation(settings, options)
        options = options if settings.strict else lenient(options)
        config = read_config(options.pop("generation_config", None), self.model.config)
        ignored = ignored_options(settings.strict)
        resolved, objects = resolve_options(options, config, self.model.config, ignored=ignored)
        if ignored:
            # The model's own methods are strict, so leave these options out of the requests.
            options, config = without_options(options, config, {error.option for error in ignored})
            resolved, objects = resolve_options(options, config, self.model.config)
        if settings.streamer is not None and resolved.num_return_sequences > 1:
            allowed = "cannot be given together with a streamer, which can show only one output"
            raise OptionError("num_return_sequences", resolved.num_return_sequences, allowed, "leave one of them out")
        draws = bool(resolved.do_sample) or objects.strategy is not None
        return Call(
            settings=settings,
            config=config,
            options=options,
            resolved=resolved,
            draws=draws,
            ignored=tuple(ignored or ()),
        )

    def _check_seeds(self, call: Call, count: int | None) -> None:
        seed = call.resolved.seed
        if isinstance(seed, tuple) and len(seed) != count:
            allowed = "must be one integer, or one for each of the inputs of a list"
            raise OptionError("seed", seed, allowed, "give one integer, or one per input")

    def _run_all(self, call: Call, inputs: Inputs) -> list[Any]:
        assert inputs.length is not None, "only lists are read at once"
        with progress_bar(inputs.length, call.settings.progress) as bar:
            results = []
            for result in self._run(call, inputs):
                results.append(result)
                bar.update()
        return results

    def _run(self, call: Call, inputs: Inputs) -> Iterator[list[Record]]:
        streamer = call.settings.streamer
        with ended_on_failure(streamer):
            prepared: Iterable[Prepared] = (
                self._prepared(read_input(item), self._seeded(call, index)) for index, item in enumerate(inputs.items)
            )
            if inputs.shape != "lazy":
                prepared = list(prepared)  # report errors in any input before work starts
            if streamer is not None:
                running = streamed(self.model, prepared, call.config, streamer)
            else:
                at_once = call.settings.batch_size or (MAX_LAZY_REQUESTS if inputs.shape == "lazy" else None)
                running = answers(self.model, prepared, call.config, at_once=at_once)
            for one, generation in running:
                yield [self._record(one, generation, completion, call) for completion in generation.completions]

    def _seeded(self, call: Call, index: int) -> Call:
        """Return the call with the seed of one input; without a given seed, from `set_seed` or torch's generator.

        So `torch.manual_seed` and `transformers.set_seed` make calls repeatable, as in unspool.generate.
        """
        seed = call.resolved.seed
        if isinstance(seed, tuple):
            return replace(call, options={**call.options, "seed": seed[index]})
        if seed is not None or not call.draws:
            return call
        return replace(call, options={**call.options, "seed": shared_seed()})

    # --- helpers of tasks ---------------------------------------------------------------------------------------

    def _prefix_of(self, call: Call) -> str:
        return (self._prefix if call.settings.prefix is None else call.settings.prefix) or ""

    def _text(self, generation: Generation, completion: Completion, call: Call) -> str:
        """Return an output's text with its stop string, decoded by the settings."""
        clean, skip = call.settings.clean_up_tokenization_spaces, call.settings.skip_special_tokens
        if clean is None and skip is None:
            return "".join(completion.tokens)
        tokenizer = self.tokenizer if clean is None else _CleanupTokenizer(self.tokenizer, clean)
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip is not False)
        before, ids = generation.prompt_token_ids, completion.token_ids
        return text_of(detokenizer, before, token_ids=ids, finish_reason=completion.finish_reason)


class _CleanupTokenizer:
    """A tokenizer with a fixed setting for cleaning up spaces."""

    def __init__(self, tokenizer: Any, clean: bool) -> None:
        self._tokenizer, self.clean_up_tokenization_spaces = tokenizer, clean
        self.backend_tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> Any:
        return self._tokenizer.decode(
            ids,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=self.clean_up_tokenization_spaces,
        )


def _with_stored(lm: LanguageModel, defaults: Mapping[str, Any], stored: Mapping[str, Any]) -> LanguageModel:
    """Return the same model with the same engine, and with the pipeline's defaults below its stored options.

    As in transformers' pipelines, all options of the caller override these defaults, and a strategy that does not read
    a default ignores it.
    """
    own = {name: getattr(lm.config, name) for name in OPTIONS if name in lm.config.explicit}
    known = {**lm.config.extras, **own, **stored}
    unset = {name: value for name, value in {**_DROP_IN_DEFAULTS, **defaults}.items() if known.get(name) is None}
    if known.get("max_length") is not None:
        unset.pop("max_new_tokens", None)
    view = copy.copy(lm)
    view.config = GenerationConfig.from_stored({**known, **unset})
    return view

"""LanguageModel: generates text from prompts. Connects inputs, options, engine and results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from unspool.adapters import as_runtime
from unspool.comparing import Entries, Runner, compare
from unspool.config import GenerationConfig
from unspool.conversations.completion import ChatGeneration, ChatStream, chat
from unspool.engine import Engine
from unspool.engine.driver import Driver
from unspool.engine.validate import context_of
from unspool.errors import ModelError
from unspool.inputs.prompts import Prompt, Prompts
from unspool.inputs.reader import Reader
from unspool.per_prompt import Configs, Group, group_prompts
from unspool.planning import CallerObjects, PlannedRequest, plan_requests, resolve_options
from unspool.progress import progress_bar
from unspool.protocols import Runtime
from unspool.results import Generation, NextTokens, TextScore
from unspool.results.comparison import Comparison
from unspool.scoring import ToScore, next_token_jobs, read_scores
from unspool.streaming import Listener, Stream
from unspool.text.detokenize import Detokenizer
from unspool.tuning import MAX_BATCH_TOKENS
from unspool.types import Committed, Distribution, Failed, Finished, ModelInfo

if TYPE_CHECKING:
    from unspool.results.transcript import Transcript
    from unspool.runtimes.wrap.passing_on import Embedder
    from unspool.saving import Checkpoint


class LanguageModel:
    """A model with its tokenizer and default options. Made by `unspool.load`, or from any runtime. Thread-safe.

    Args:
        runtime: runs the model.
        tokenizer: of transformers, or any object with `__call__` and `decode` like it; None for token ids only.
        processor: of transformers, for models that read audio or images; else None.
        config: the model's stored generation config; None for the defaults.
        max_batch_tokens: most prompt tokens of one forward pass, at least 1.
        checkpoint: written by `save_pretrained`; None if there is nothing to write.
        embedder: as in `Reader`.

    Raises:
        OptionError: if `max_batch_tokens` is not an integer of at least 1.
    """

    def __init__(
        self,
        runtime: Runtime,
        tokenizer: Any = None,
        *,
        processor: Any = None,
        config: GenerationConfig | None = None,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        checkpoint: Checkpoint | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        self.runtime = as_runtime(runtime)
        self.tokenizer, self.processor = tokenizer, processor
        self.config = config or GenerationConfig()
        self.engine = Engine(self.runtime, max_batch_tokens=max_batch_tokens)
        self._driver = Driver(self.engine)
        self._detokenizer = Detokenizer(tokenizer) if tokenizer is not None else None
        self._checkpoint, self._embedder = checkpoint, embedder

    @property
    def info(self) -> ModelInfo:
        """Facts about the model, its limits, and the backend that runs it."""
        return self.runtime.info

    @property
    def model(self) -> Any:
        """The transformers model; None without one, or if the user's model was deleted.

        Hooks and other changes of its modules take effect at the next request.
        """
        return None if self._checkpoint is None else self._checkpoint.model

    def __repr__(self) -> str:
        return f"LanguageModel({self.info.name!r}, {self.info.backend!r})"

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        config: GenerationConfig | None = ...,
        progress: bool | None = ...,
        trace: bool = ...,
        **options: Any,
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str] | Sequence[Sequence[int]],
        *,
        config: Configs = ...,
        progress: bool | None = ...,
        trace: bool = ...,
        **options: Any,
    ) -> list[Generation]: ...

    @overload
    def generate(
        self,
        prompt: Any,
        *,
        config: Configs = ...,
        progress: bool | None = ...,
        trace: bool = ...,
        **options: Any,
    ) -> Any: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        images: Any = None,
        audio: Any = None,
        config: Configs = None,
        progress: bool | None = None,
        trace: bool = False,
        **options: Any,
    ) -> Generation | list[Generation]:
        """Continue one prompt or several. Several prompts share the forward passes.

        Args:
            prompt: a text, a list of token ids (one prompt), or a list of either (several).
            images, audio: in the prompt, a text with the placeholders of the model's processor: one or a list. Several
                prompts take a list with one entry each, None for none. Images are PIL images, arrays or other inputs of
                the processor; audio is an array of samples, or a mapping with "array" and "sampling_rate".
            config: options; those in the call override it, and it overrides the model's stored config. A list has one
                config per prompt.
            progress: True shows a progress bar over the prompts; None shows it in a terminal from 16 prompts on.
            trace: True records every token that the strategy tried, as `trace` of each Generation; slower.
            options: any option of GenerationConfig. Besides, `strategy` (a name or an object), `processors` and
                `criteria` (lists of objects of the classes in unspool.protocols, in the order in which they act),
                `assistant_model` (a draft model: a LanguageModel, a Runtime or a transformers model), and `cache_salt`
                (a text; prompts with different salts share no cached prefix). For several
                prompts, a list is one value per prompt: `temperature=[0.2, 1.2]`. Options that take a list themselves,
                such as `stop_strings`, can differ per prompt through `config`.

        Returns:
            One Generation for one prompt; a list in the order of the prompts for several.

        Raises:
            PromptError: if a prompt cannot be read or is too long. Raised before any work starts, as are the next two.
            OptionError: if an option is invalid or not read by the strategy.
            CapacityError: if a request needs more memory than the model's limits allow.
            NumericsError: if the model's logits are not numbers, or if every token is forbidden.
            StrategyError: if a strategy, processor or criterion breaks its contract.
            ModelError: if the model cannot run.
            CancelledRequest: if another thread interrupts the engine.
        """
        prompts = self._prompts(prompt, images, audio)
        jobs = self._jobs(prompts, config, options, trace=trace)
        generations = self._run(jobs, progress)
        return generations[0] if prompts.single else generations

    def stream(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        images: Any = None,
        audio: Any = None,
        config: Configs = None,
        tentative: bool = False,
        trace: bool = False,
        **options: Any,
    ) -> Stream:
        """Continue one prompt or several, and stream the text as it is committed.

        Args:
            prompt, images, audio, config, trace, options: as in `generate`.
            tentative: True adds the uncommitted text of the leading beam, as `Chunk.tentative`. Each one replaces the
                one before.

        Returns:
            A Stream of Chunks; `stream.generation` (or `.generations`) is the full result at the end.

        Raises:
            PromptError, OptionError, CapacityError: as in `generate`, at once. Other errors are raised by the stream.
        """
        jobs = self._plan_all(
            prompt, images=images, audio=audio, config=config, tentative=tentative, trace=trace, **options
        )
        return Stream(self._driver, jobs, self._detokenizer)

    def astream(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        images: Any = None,
        audio: Any = None,
        config: Configs = None,
        tentative: bool = False,
        trace: bool = False,
        **options: Any,
    ) -> Stream:
        """Return a Stream for `async for`, which does not block the event loop. Arguments and errors as in `stream`."""
        return self.stream(
            prompt, images=images, audio=audio, config=config, tentative=tentative, trace=trace, **options
        )

    @overload
    def chat(
        self, messages: str | Sequence[Mapping[str, Any]], *, stream: Literal[False] = ..., **options: Any
    ) -> ChatGeneration: ...

    @overload
    def chat(
        self,
        messages: Sequence[str] | Sequence[Sequence[Mapping[str, Any]]],
        *,
        stream: Literal[False] = ...,
        **options: Any,
    ) -> list[ChatGeneration]: ...

    @overload
    def chat(
        self,
        messages: str | Sequence[str] | Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        *,
        stream: Literal[True],
        **options: Any,
    ) -> ChatStream: ...

    def chat(
        self,
        messages: str | Sequence[str] | Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        *,
        tools: Sequence[Any] | None = None,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        stream: bool = False,
        config: Configs = None,
        **options: Any,
    ) -> ChatGeneration | list[ChatGeneration] | ChatStream:
        """Answer a conversation, or several at once, with the model's chat template.

        An answer ends at the model's end-of-sequence tokens and at the template's end-of-turn token. `eos_token_id` and
        `ignore_eos` override this.

        Args:
            messages: dicts of "role" and "content", oldest first; or a text, which is one message of the user. A list
                of such lists or texts is several conversations. `unspool.Chat` keeps a conversation over several turns.
                Content can be a list of parts: {"type": "text", "text": ...}, {"type": "image", "image": ...} or
                {"type": "audio", "audio": ...}; "url" and "path" also work for images and audio, and so do OpenAI's
                parts "image_url" and "input_audio". The options `images` and `audio` of `generate` put parts into the
                last message.
            tools: functions with docstrings, or their JSON schemas, for the template; None for none.
            continue_final_message: True continues the last message, instead of a new turn.
            chat_template: in Jinja, or the name of one of the tokenizer's templates; None for its default.
            chat_template_kwargs: further variables of the template, such as `enable_thinking`.
            stream: True returns a ChatStream of Chunks at once, for `for` or `async for`.
            config, options: as in `generate`, or as in `stream`.

        Returns:
            A ChatGeneration, with `message` (the answer) and `messages` (the conversation with the answer); a list of
            them for several conversations.

        Raises:
            PromptError: if the chat template is missing, or if it refuses the messages. Otherwise as in `generate`.
        """
        return chat(
            self,
            messages,
            tools=tools,
            continue_final_message=continue_final_message,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
            stream=stream,
            config=config,
            options=options,
        )

    @overload
    def next_tokens(
        self, prompt: str | Sequence[int], *, config: GenerationConfig | None = ..., limit: int = ..., **options: Any
    ) -> NextTokens: ...

    @overload
    def next_tokens(
        self,
        prompt: Sequence[str] | Sequence[Sequence[int]],
        *,
        config: Configs = ...,
        limit: int = ...,
        progress: bool | None = ...,
        **options: Any,
    ) -> list[NextTokens]: ...

    @overload
    def next_tokens(
        self, prompt: Any, *, config: Configs = ..., limit: int = ..., progress: bool | None = ..., **options: Any
    ) -> Any: ...

    def next_tokens(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        config: Configs = None,
        limit: int = 20,
        progress: bool | None = None,
        **options: Any,
    ) -> NextTokens | list[NextTokens]:
        """Return the exact distribution of the next token under these options.

        Args:
            prompt: as in `generate`. Each result has two tensors of the size of the vocabulary.
            config, progress, options: as in `generate`.
            limit: number of tokens to show, at least 1. The tensors always cover the full vocabulary.

        Returns:
            One result for one prompt; a list in the order of the prompts for several.

        Raises:
            PromptError, OptionError: as in `generate`, or if an option does not change the next token alone.
        """
        prompts = self._reader.split(prompt)
        jobs = next_token_jobs(group_prompts(prompts, config, options), self.config, self._plan)
        found = [
            NextTokens.from_distribution(distribution, self.tokenizer, limit=limit, prompt=job.prompt_text)
            for job, distribution in zip(jobs, self._distributions(jobs, progress), strict=True)
        ]
        return found[0] if prompts.single else found

    @overload
    def compare(
        self,
        prompt: str | Sequence[int],
        strategies: Entries | None = ...,
        *,
        config: GenerationConfig | None = ...,
        progress: bool | None = ...,
        **shared_options: Any,
    ) -> Comparison: ...

    @overload
    def compare(
        self,
        prompt: Sequence[str] | Sequence[Sequence[int]],
        strategies: Entries | None = ...,
        *,
        config: Configs = ...,
        progress: bool | None = ...,
        **shared_options: Any,
    ) -> list[Comparison]: ...

    @overload
    def compare(
        self,
        prompt: Any,
        strategies: Entries | None = ...,
        *,
        config: Configs = ...,
        progress: bool | None = ...,
        **shared_options: Any,
    ) -> Any: ...

    def compare(
        self,
        prompt: Prompt | Sequence[Prompt],
        strategies: Entries | None = None,
        *,
        config: Configs = None,
        progress: bool | None = None,
        **shared_options: Any,
    ) -> Comparison | list[Comparison]:
        """Answer each prompt with several strategies in one batch, for a comparison side by side.

        Each answer equals the result of `generate` with the shared options, overridden by the entry's options.

        Args:
            prompt: as in `generate`.
            strategies: entries, name --> options or a GenerationConfig; or names from the built-in line-up; None for
                all entries of the line-up that this model and call can run (see docs/compare.md).
            config, progress: as in `generate`; the bar counts answers.
            shared_options: as in `generate`, for all entries with a strategy that reads them. Entries without a seed
                share one.

        Returns:
            One Comparison for one prompt; a list in the order of the prompts for several.

        Raises:
            OptionError: if an option is invalid, an entry does not read one of its own options, or no entry reads a
                shared option. Raised before any work starts.
            PromptError, CapacityError: as in `generate`.
        """
        return self._compare(
            prompt,
            strategies,
            config,
            shared_options,
            run=lambda jobs: self._run(jobs, progress, unit="answer"),
        )

    def _compare(
        self,
        prompt: Any,
        strategies: Entries | None,
        config: Configs,
        shared_options: dict[str, Any],
        *,
        run: Runner,
    ) -> Comparison | list[Comparison]:
        """Compare as `compare` does. run: runs the requests of all entries together."""
        prompts = self._reader.split(prompt)

        def plan(group: Group, layer: GenerationConfig, options: dict[str, Any]) -> list[PlannedRequest]:
            jobs = self._plan(group, *resolve_options(options, layer, self.config))
            for job in jobs:
                context_of(job.request, self.info)  # raises here, because the entry is known
            return jobs

        comparisons = compare(
            strategies,
            group_prompts(prompts, config, shared_options),
            stored=self.config,
            info=self.info,
            plan=plan,
            run=run,
        )
        return comparisons[0] if prompts.single else comparisons

    @overload
    def score(  # type: ignore[overload-overlap]
        self, prompt: str | Sequence[int], continuation: str | Sequence[int], *, progress: bool | None = ...
    ) -> TextScore: ...

    @overload
    def score(
        self,
        prompt: str | Sequence[int],
        continuation: Sequence[str] | Sequence[Sequence[int]],
        *,
        progress: bool | None = ...,
    ) -> list[TextScore]: ...

    @overload
    def score(
        self,
        prompt: Sequence[str] | Sequence[Sequence[int]],
        continuation: Prompt | Sequence[str] | Sequence[Sequence[int]],
        *,
        progress: bool | None = ...,
    ) -> list[TextScore]: ...

    @overload
    def score(self, prompt: Any, continuation: Any, *, progress: bool | None = ...) -> Any: ...

    def score(
        self,
        prompt: Prompt | Sequence[Prompt],
        continuation: Prompt | Sequence[Prompt],
        *,
        progress: bool | None = None,
    ) -> TextScore | list[TextScore]:
        """Return the model's own log-probability of each token of a given continuation.

        Args:
            prompt: a text (an empty text for the begin-of-sequence token), token ids, or a list of either; the
                encoder's input for a model with an encoder.
            continuation: a text, token ids, or a list of either. A text is encoded separately, without special tokens.
                Two lists are paired in order. One prompt is paired with every continuation of a list, and one
                continuation with every prompt of a list.
            progress: True shows a progress bar over the continuations; None shows it in a terminal from 16 on.

        Returns:
            One TextScore, or a list in the given order if either argument is a list.

        Raises:
            PromptError: if there is nothing to score, or if prompt and continuation are too long for the model.
            OptionError: if the two lists differ in length.
        """
        pairs, single = read_scores(prompt, continuation, self._reader)
        scores: list[TextScore] = []
        for pair, done in zip(pairs, self._finish(pairs, progress, "scoring", "continuation"), strict=True):
            texts = self._detokenizer.pieces(pair.prompt_ids, pair.token_ids) if self._detokenizer else ()
            logprobs = tuple(row.candidates[0].logprob for row in done.rows)
            scores.append(TextScore(token_ids=pair.token_ids, tokens=texts, logprobs=logprobs))
        return scores[0] if single else scores

    def transcribe(
        self, audio: Any, *, config: GenerationConfig | None = None, **options: Any
    ) -> Transcript | list[Transcript]:
        """Transcribe audio of any length with a Whisper model, window by window, with timestamps.

        Args:
            audio: samples in [-1, 1], one-dimensional (numpy, torch or a list of floats); a mapping with "array" and
                "sampling_rate"; features (mel bins, frames); or a list of any of these.
            config: as in `generate`.
            options: any option of GenerationConfig but `num_return_sequences`, and: `language` (one, or a list with one
                per audio; None to detect it), `task`, `temperature` (one, or several to be tried in order),
                `compression_ratio_threshold`, `logprob_threshold`, `no_speech_threshold`, `condition_on_prev_tokens`,
                `prompt_ids`, `prompt_condition_type` and `return_token_timestamps`, as in TranscriptSettings.

        Returns:
            One Transcript for one audio; a list in the order of the audios for a list.

        Raises:
            ModelError: if the model is not a Whisper model with timestamps.
            PromptError: if an audio cannot be read.
            OptionError: if an option is invalid, or is not read at any temperature.
        """
        from unspool.transcription.transcribe import Transcriber

        transcriber = Transcriber(
            reader=self._reader,
            driver=self._driver,
            detokenizer=self._detokenizer,
            stored=self.config,
            model=self.model,
        )
        return transcriber.run(audio, config, options)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model in transformers' format: weights, config, generation config, tokenizer and processor.

        Weights are saved bit for bit as they were loaded, in the same dtype. Packed weights are in memory twice during
        the call. A tokenizer without `save_pretrained` is not saved.

        Args:
            folder: is created if it is missing. It must not have a model yet.

        Raises:
            ModelError: if the folder has a model or cannot be written, if the weights are quantized, or if this
                LanguageModel was not made by `unspool.load`.
        """
        if self._checkpoint is None:
            raise ModelError(f"cannot save {self.info.name!r}: it has no transformers model; save the original model")
        self._checkpoint.save(folder, self.tokenizer, self.processor)

    # --- from options to requests to results --------------------------------------------------------------------

    def _prompts(self, prompt: Any, images: Any, audio: Any) -> Prompts:
        """Return the prompts of a call, read with their images and audio if there are any."""
        prompts = self._reader.split(prompt)
        if images is None and audio is None:
            return prompts
        from unspool.inputs.media import read_media

        return read_media(prompts, images, audio, self._reader)

    @property
    def _reader(self) -> Reader:
        return Reader(self.runtime, self.tokenizer, self.processor, self._embedder)

    def _plan_all(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        images: Any = None,
        audio: Any = None,
        config: Configs = None,
        tentative: bool,
        trace: bool,
        **options: Any,
    ) -> list[PlannedRequest]:
        """Return one planned request per prompt, which is not submitted. Arguments and errors as in `stream`."""
        return self._jobs(self._prompts(prompt, images, audio), config, options, tentative=tentative, trace=trace)

    def _jobs(self, prompts: Prompts, config: Configs, options: dict[str, Any], **wanted: bool) -> list[PlannedRequest]:
        """Return one planned request per prompt, with the options of its group."""
        jobs: list[PlannedRequest] = []
        for group in group_prompts(prompts, config, options):
            with group.naming():
                resolved, own = resolve_options(group.options, group.config, self.config)
                jobs += self._plan(group, resolved, own, **wanted)
        return jobs

    def _plan(self, group: Group, config: GenerationConfig, own: CallerObjects, **wanted: bool) -> list[PlannedRequest]:
        return plan_requests(
            group.prompts,
            config,
            own,
            reader=self._reader,
            detokenizer=self._detokenizer,
            first=group.first,
            **wanted,
        )

    def _finish(
        self, work: Sequence[PlannedRequest | ToScore], progress: bool | None, verb: str, unit: str = "prompt"
    ) -> list[Finished]:
        """Run requests without generated text to their end."""
        with progress_bar(len(work), progress, work=verb, unit=unit) as bar:
            return self._driver.collect(self._driver.submit_whole([each.request for each in work]), bar.update)

    def _distributions(self, jobs: Sequence[PlannedRequest], progress: bool | None) -> list[Distribution]:
        """Run requests that ask for one `FullDistribution` each, and return their answers."""
        found: list[Distribution] = []
        for done in self._finish(jobs, progress, "reading"):
            distribution = done.rows[0].distribution
            assert distribution is not None, "a FullDistribution ask is answered with a distribution"
            found.append(distribution)
        return found

    def _run(self, jobs: Sequence[PlannedRequest], progress: bool | None, unit: str = "prompt") -> list[Generation]:
        """Run requests to their end. The first error cancels the others and is raised."""
        tickets = self._driver.submit_whole([job.request for job in jobs])
        listeners = {
            ticket.number: Listener(job, index, self._detokenizer)
            for index, (ticket, job) in enumerate(zip(tickets, jobs, strict=True))
        }
        found: dict[int, Generation] = {}
        with progress_bar(len(jobs), progress, unit=unit) as bar:
            for event in self._driver.events(tickets):
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Committed):
                    listeners[event.request].note(event)
                elif isinstance(event, Finished):
                    found[event.request] = listeners[event.request].generation(event)
                    bar.update()
        return [found[ticket.number] for ticket in tickets]

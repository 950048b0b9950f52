"""Batches of prompts on the command line: results in the order of the file, each as soon as it is ready.

Owns: the order, the progress bar, and the exit code if a prompt fails. Does not know: how text is generated.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

import typer

from unspool.cli.endings import FAILED
from unspool.cli.records import Record
from unspool.cli.screen import SEPARATOR, safe
from unspool.config import GenerationConfig
from unspool.errors import OptionError
from unspool.seeds import fresh_seed

if TYPE_CHECKING:
    from unspool.model import LanguageModel
    from unspool.results import Generation
    from unspool.streaming import Stream

OPEN: Final = 256
"""Maximum number of prompts in the engine at the same time."""


class Result(Protocol):
    """A result that can be written as a line of JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON."""


def write_results(
    results: Iterable[tuple[Record, Result | str]],
    *,
    total: int,
    as_json: bool,
    text_of: Callable[[Any], str],
    to: Path | None,
) -> None:
    """Write one line of JSON, or a readable text, per record.

    Args:
        results: each record with its result, or with its error message, in order.
        total: number of records, for the progress bar.
        as_json: True for lines of JSON.
        text_of: returns the readable form of a result.
        to: target file; None for standard output.

    Raises:
        typer.Exit: after the last record, if a record failed. Each error also goes to standard error.
    """
    failed = 0
    with output_to(to) as output, _bar(total, output) as bar:
        for record, result in results:
            with bar.apart():
                if isinstance(result, str):
                    failed += 1
                    print(f"Error: {result}", file=sys.stderr, flush=True)
                shown = _json_line(record, result) if as_json else _block(record, result, text_of)
                output.write(safe(shown) if output.isatty() else shown)
                output.flush()
            bar.update()
    if failed:
        if total > 1:
            print(f"Error: {failed} of {total} failed", file=sys.stderr)
        raise typer.Exit(FAILED)


def generated(
    model: LanguageModel,
    records: Iterable[Record],
    shared: Mapping[str, Any],
    objects: Mapping[str, Any],
    *,
    as_json: bool,
) -> Iterator[tuple[Record, Generation | str]]:
    """Yield the generation, or the error message, of each record, in order. A failed prompt does not stop the others.

    Args:
        shared: options of all prompts; a record's own options override them.
        objects: the draft model as `assistant_model`, or empty.
        as_json: True if results are written as JSON, which can show `logprobs`.

    Raises:
        KeyboardInterrupt: if the user interrupts; its message has the seed of the first unfinished prompt.
    """
    config = GenerationConfig(**shared)
    first_seed = fresh_seed()
    waiting: deque[tuple[Record, int, Stream | str]] = deque()
    source = enumerate(records)
    place, seed = "", first_seed
    try:
        while True:
            while len(waiting) < OPEN and (one := next(source, None)) is not None:
                index, record = one
                seed_of = _seed(record, shared, first_seed + index)
                waiting.append((record, seed_of, _opened(model, record, config, objects, seed_of, as_json=as_json)))
            if not waiting:
                return
            record, seed, opened = waiting.popleft()
            place = record.place
            yield record, opened if isinstance(opened, str) else _read(record, opened)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{place} has the seed {seed}") from None
    finally:
        for _, _, opened in waiting:
            if not isinstance(opened, str):
                opened.close()


def _seed(record: Record, shared: Mapping[str, Any], otherwise: int) -> Any:
    given = record.options.get("seed", shared.get("seed"))
    return otherwise if given is None else given


def _opened(
    model: LanguageModel,
    record: Record,
    config: GenerationConfig,
    objects: Mapping[str, Any],
    seed: Any,
    *,
    as_json: bool,
) -> Stream | str:
    """Submit a prompt to the engine, and return its stream, or the error message."""
    if record.error is not None:
        return record.error
    options = {**record.options, **objects, "seed": seed}
    try:
        if not as_json and options.get("logprobs") is not None:
            raise OptionError("logprobs", options["logprobs"], "is only part of the JSON result", "add --json")
        return model.stream(record.values["prompt"], config=config, **options)
    except Exception as error:  # any error of one prompt must not stop the others
        return record.message_of(error)


def _read(record: Record, stream: Stream) -> Generation | str:
    try:
        with stream:
            for _ in stream:
                pass
        return stream.generation
    except Exception as error:  # as above
        return record.message_of(error)


def generation_text(generation: Generation) -> str:
    """Return the texts of a generation, separated by lines of three dashes."""
    texts = [one.text if one.text.endswith("\n") else f"{one.text}\n" for one in generation.completions]
    return SEPARATOR.join(texts)


@contextmanager
def output_to(file: Path | None) -> Iterator[TextIO]:
    """Yield standard output, or an open file that is closed at the end."""
    if file is None:
        yield sys.stdout
        return
    with file.open("w", encoding="utf-8") as output:
        yield output


def _json_line(record: Record, result: Result | str) -> str:
    found = {**record.values, "error": result} if isinstance(result, str) else result.to_dict()
    return json.dumps(found, ensure_ascii=False) + "\n"


def _block(record: Record, result: Result | str, text_of: Callable[[Any], str]) -> str:
    head = " ".join(str(next(iter(record.values.values()), record.place)).split())
    shown = head if len(head) <= 70 else f"{head[:67]}..."
    return f"==> {shown} <==\n{f'error: {result}' if isinstance(result, str) else text_of(result).rstrip()}\n\n"


class _NoBar:
    def update(self) -> None:
        """Do nothing."""

    def apart(self) -> AbstractContextManager[None]:
        """Return a context in which other text can be written."""
        return nullcontext()


class _TerminalBar(_NoBar):
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def update(self) -> None:
        self._bar.update()

    @contextmanager
    def apart(self) -> Iterator[None]:
        with self._bar.external_write_mode(file=sys.stderr):
            yield


@contextmanager
def _bar(total: int, output: TextIO) -> Iterator[_NoBar]:
    """Yield a progress bar on standard error; it is invisible unless standard error is a terminal."""
    if not sys.stderr.isatty():
        yield _NoBar()
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="prompt", desc="prompts", leave=False, dynamic_ncols=True) as bar:
        yield _TerminalBar(bar)

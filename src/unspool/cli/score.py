"""`unspool score`: log-probability and perplexity of texts.

Owns: the sources of texts, and the form of a score. Does not know: how a score is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli.batch import write_results
from unspool.cli.endings import guarded
from unspool.cli.options import OutputFlag, with_model
from unspool.cli.records import Record, read_records
from unspool.cli.sources import ModelChoice, read_prompt
from unspool.errors import PromptError
from unspool.tuning import SCORED_TEXTS

if TYPE_CHECKING:
    from unspool.model import LanguageModel
    from unspool.results import TextScore


@guarded
@with_model
def score(
    text: Annotated[
        list[str] | None,
        typer.Argument(
            help="The texts to score. If they are left out, a pipe is read as one text.", show_default=False
        ),
    ] = None,
    *,
    prompt: Annotated[
        str, typer.Option("--prompt", metavar="TEXT", help="Context before each text; it is not scored.")
    ] = "",
    text_file: Annotated[
        Path | None,
        typer.Option("--text-file", metavar="FILE", help="Read one text from a file; - is standard input."),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts",
            metavar="FILE",
            help='Read many texts, one per line: a text, or in a .jsonl file {"text": ..., "prompt": ...}. - is '
            "standard input.",
        ),
    ] = None,
    output: OutputFlag = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON with the log-probability of each token; one line per text.")
    ] = False,
    choice: ModelChoice,
) -> None:
    """Score texts: their log-probability under the model, and their perplexity.

    Log-probabilities are natural logarithms of the model's distribution, without processors. A failed text has its
    error as its result, and the exit code is 2.
    """
    records = _records(text, text_file, texts)
    model = choice.load()
    results = scored(model, records, prompt)
    write_results(results, total=len(records), as_json=as_json, text_of=str, to=output)


def _records(given: list[str] | None, file: Path | None, many: Path | None) -> list[Record]:
    """Return the texts to score as records.

    Raises:
        PromptError: if texts are missing, or come from two sources.
    """
    if sum(bool(one) for one in (given, file, many)) > 1:
        raise PromptError("texts are given twice; leave out all but one of TEXT, --text-file and --texts")
    if many is not None:
        return read_records(many, main="text", others=("prompt",), takes_options=False)
    if given and given != ["-"]:
        return [Record(place=f"text {count}", values={"text": one}) for count, one in enumerate(given, 1)]
    return [Record(place="the text", values={"text": read_prompt(given[0] if given else None, file, noun="text")})]


class Scored:
    """A score with its text."""

    def __init__(self, record: Record, prompt: Any, score: TextScore) -> None:
        self._values = {"prompt": prompt, **record.values}
        self._score = score

    def __str__(self) -> str:
        return str(self._score)

    def to_dict(self) -> dict[str, Any]:
        """Return prompt, text and score as plain JSON values."""
        return {**self._values, **self._score.to_dict()}


def scored(model: LanguageModel, records: Iterable[Record], prompt: str) -> Iterator[tuple[Record, Scored | str]]:
    """Yield the score, or the error message, of each record, in order. Several records share a forward pass.

    Args:
        prompt: prompt of the records without their own prompt.
    """
    for several in _chunks(records):
        whole = [one for one in several if one.error is None]
        try:
            found = dict(zip(map(id, whole), _scores(model, whole, prompt), strict=True))
        except Exception:  # a text failed: score each text alone
            found = {}
        for one in several:
            if one.error is not None:
                yield one, one.error
            else:
                yield one, found[id(one)] if id(one) in found else _score_alone(model, one, prompt)


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    waiting: list[Record] = []
    for one in records:
        waiting.append(one)
        if len(waiting) == SCORED_TEXTS:
            yield waiting
            waiting = []
    yield waiting


def _scores(model: LanguageModel, records: list[Record], prompt: str) -> list[Scored]:
    if not records:
        return []
    prompts = [one.values.get("prompt", prompt) for one in records]
    found = model.score(prompts, [one.values["text"] for one in records], progress=False)
    return [Scored(*each) for each in zip(records, prompts, found, strict=True)]


def _score_alone(model: LanguageModel, record: Record, prompt: str) -> Scored | str:
    try:
        return _scores(model, [record], prompt)[0]
    except Exception as error:  # any error of one text must not stop the others
        return record.message_of(error)

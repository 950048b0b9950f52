"""`unspool tune`: measures linear layers in each form, and the streams of memory, and prints the table.

Owns: the shapes to measure, and the table. Does not know: trials and their file (unspool.runtimes.weights).
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from unspool.cli.endings import guarded
from unspool.cli.options import Dtype, JsonFlag
from unspool.cli.sources import load_model
from unspool.errors import ModelError, OptionError
from unspool.progress import progress_bar
from unspool.tuning import TRIAL_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from unspool.runtimes.weights.trial import Shape, Times

_PIPE_WIDTH = 400


@guarded
def tune(
    *,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|PATH",
            help="Measure the layers of this model; by default all layers that were measured here before.",
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option("--dtype", metavar="NAME", help="Data type of the weights of the model.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="INT", min=1, help="Number of CPU threads for the model.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure linear layers on this CPU in each form, without a time limit, and keep the times for later runs."""
    lm = None if model is None else load_model(model, threads=threads, dtype=dtype, pack=False)
    # Imported late, like torch itself.
    import torch

    from unspool.kernels.library import obstacle
    from unspool.runtimes.weights import autotune
    from unspool.runtimes.weights.packed_linear import tunable_shapes

    if reason := obstacle():
        raise ModelError(f"there is one form of linear layers here, and nothing to measure: {reason}")
    file = autotune.tuning_file()
    shapes = list(file.times) if lm is None else tunable_shapes(lm.model)
    if not shapes and lm is None:
        rule = "must name a model, because no layer was measured on this machine yet"
        raise OptionError("model", None, rule, "for example `--model gpt2`")
    if not shapes:
        raise OptionError("model", model, "must have large linear layers in float32 or bfloat16", "name another model")
    autotune.choose_streams(again=True)
    with progress_bar(len(shapes), sys.stderr.isatty(), work="measuring", unit="shape") as bar:
        autotune.tune(shapes, file, again=True, tell=lambda _: bar.update())
    found = {shape: file.times[shape] for shape in shapes}
    if as_json:
        typer.echo(json.dumps(_records(found), indent=2))
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(table(found))
    if (seconds := file.streams.get(torch.get_num_threads())) is not None:
        times = ", ".join(f"{_microseconds([each])[0]:.0f} µs with {count}" for count, each in seconds.items())
        best = autotune.fastest_streams(seconds)
        typer.echo(f"Streams of a weight that a thread asks for ahead: {best} ({times})", err=True)
    typer.echo(f"The times are in {file.path}", err=True)


def table(found: Mapping[Shape, Times]) -> Table:
    """Return the table: a line per shape and form, the chosen form marked, times in microseconds."""
    lines = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for name in ("LAYER", "FORM", ""):
        lines.add_column(name, no_wrap=True)
    for rows in TRIAL_ROWS:
        lines.add_column(f"{rows} ROW{'S' * (rows > 1)}, µs", justify="right", no_wrap=True)
    for record in _records(found):
        for index, (form, times) in enumerate(record["microseconds"].items()):
            mark = "chosen" if form == record["form"] else ""
            lines.add_row("" if index else record["layer"], form, mark, *(f"{each:.0f}" for each in times))
    return lines


def _records(found: Mapping[Shape, Times]) -> list[dict[str, Any]]:
    """Return plain values: the layer in words, the chosen form, and the times of each form."""
    from unspool.runtimes.weights.autotune import fastest

    return [
        {
            "layer": str(shape),
            "form": fastest(times),
            "rows": list(TRIAL_ROWS),
            "microseconds": {form: _microseconds(seconds) for form, seconds in times.items()},
        }
        for shape, times in found.items()
    ]


def _microseconds(seconds: Iterable[float]) -> list[float]:
    return [round(each * 1e6, 1) for each in seconds]

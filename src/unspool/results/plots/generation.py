"""Plot of a generation: the probability of each token, one panel per completion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from unspool.errors import OptionError
from unspool.results.plots.parts import BLUE, VERMILION, clean, figure_of, literal, panels, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from unspool.results.generation import Completion, Generation

_LONGEST: Final = 14
_BEFORE: Final = 60


def plot_generation(
    generation: Generation, ax: Axes | Sequence[Axes] | None, *, logprobs: bool, max_tokens: int
) -> Figure:
    """Draw one bar per token, one panel per completion. Returns the figure."""
    if max_tokens < 1:
        raise OptionError("max_tokens", max_tokens, "must be at least 1", "it is the number of drawn tokens")
    count = len(generation.completions)
    longest = max(min(max_tokens, len(each.token_ids)) for each in generation.completions)
    found = panels(ax, rows=count, size=(max(6.5, 1.0 + 0.3 * longest), 2.8 * count))
    for axes, completion in zip(found, generation.completions, strict=True):
        _panel(axes, completion, logprobs=logprobs, max_tokens=max_tokens)
    prompt = generation.prompt
    if prompt:
        end = prompt if len(prompt) <= _BEFORE else f"…{prompt[1 - _BEFORE :]}"
        words = " ".join(short(word, _BEFORE) for word in end.split(" "))
        literal([found[0].set_title(f"{words}\n{found[0].get_title(loc='left')}", loc="left", fontsize="medium")])
    return figure_of(found[0])


def _panel(axes: Axes, completion: Completion, *, logprobs: bool, max_tokens: int) -> None:
    """Draw one completion: bars, and a mark at the most probable token of each position if it is known."""
    total = len(completion.token_ids)
    places = range(min(max_tokens, total))
    value: Callable[[float], float] = _finite if logprobs else math.exp
    axes.bar(places, [value(completion.logprobs[place]) for place in places], 0.8, color=BLUE, label="token")
    if completion.top_logprobs is not None:
        best = [max((each.logprob for each in row), default=math.nan) for row in completion.top_logprobs]
        heights = [value(best[place]) for place in places]
        axes.plot(places, heights, "_", color=VERMILION, markersize=9, markeredgewidth=2, label="most probable token")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    labels = completion.tokens or tuple(map(str, completion.token_ids))
    axes.set_xticks(places, [short(labels[place], _LONGEST) or "∅" for place in places], rotation=90, fontsize="small")
    literal(axes.get_xticklabels())
    axes.set_xlim(-0.6, len(places) - 0.4)
    if logprobs:
        axes.set_ylabel("log-probability")
    else:
        axes.set_ylim(0, 1)
        axes.set_ylabel("probability")
    shown = f"first {len(places)} of {total} tokens" if total > len(places) else f"{total} tokens"
    facts = f"{completion.index + 1}: {completion.finish_reason}, {shown}, log-probability {completion.logprob:.2f}"
    literal([axes.set_title(facts, loc="left", fontsize="medium")])
    clean(axes)


def _finite(value: float) -> float:
    """Return the log-probability; NaN for minus infinity, drawn as a gap."""
    return value if math.isfinite(value) else math.nan

"""The plots draw the numbers of the results, without a display, and token texts as they are."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib import pyplot

from tests.results.render.test_charts import chart
from tests.results.render.test_side_by_side import three
from tests.results.render.test_trace_tree import STOP, A, drawn, worked_beams
from tests.results.test_comparison import generation
from tests.tracing import trace_of
from unspool import MissingExtra, OptionError
from unspool.results import Generation, TopLogprob
from unspool.results.plots.parts import VERMILION
from unspool.results.plots.trace import places

HOSTILE = "$x_1$ \\alpha \u202e\n</script>" + "w" * 10_000


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draw into memory, and close the figures."""
    monkeypatch.delenv("DISPLAY", raising=False)
    matplotlib.use("Agg")
    yield
    pyplot.close("all")


def saved(figure: Any, name: str) -> None:
    """Draw the figure; with UNSPOOL_PLOTS set, keep it in that folder to be looked at."""
    figure.canvas.draw()
    if "UNSPOOL_PLOTS" in os.environ:
        figure.savefig(Path(os.environ["UNSPOOL_PLOTS"]) / f"{name}.png", dpi=80)


def hostile() -> Generation:
    """Two outputs with hostile tokens, a token of probability 0, and alternatives."""
    made = generation("a b")
    first = replace(
        made.completions[0],
        tokens=(HOSTILE, "$"),
        logprobs=(math.log(0.25), -math.inf),
        top_logprobs=((TopLogprob(5, "x", math.log(0.5)),), (TopLogprob(5, "x", -0.1), TopLogprob(6, "y", -2.0))),
    )
    return replace(made, prompt="$cost$ " * 30, completions=(first, replace(made.completions[0], index=1, tokens=())))


def test_next_tokens_are_bars_before_and_after_with_cut_tokens_hatched() -> None:
    tokens = chart()
    axes = tokens.plot()
    before, after = axes.containers
    assert [bar.get_width() for bar in before] == [entry.probability for entry in tokens]
    assert [bar.get_width() for bar in after] == [entry.processed_probability for entry in tokens]
    hatches = {entry.cut_by: bar.get_hatch() for entry, bar in zip(tokens, before, strict=True)}
    assert hatches[None] is None and len(set(hatches.values())) == len(hatches) == 3
    legend = axes.get_legend()
    assert legend is not None
    named = {text.get_text(): patch.get_hatch() for text, patch in zip(legend.texts, legend.get_patches(), strict=True)}
    assert named == {"model": None, "drawn": None} | {f"cut by {n}": h for n, h in hatches.items() if n}
    labels = {text.get_position()[1]: (text.get_text(), text.get_color()) for text in axes.texts}
    for place, entry in enumerate(tokens):
        assert labels[place][0] == (f"{entry.processed_probability:.2%}" if entry.kept else f"cut: {entry.cut_by}")
        assert (labels[place][1] == VERMILION) != entry.kept
    low, high = axes.get_ylim()
    assert low > high, "the first entry is at the top"


def test_a_generation_has_a_panel_per_completion_with_a_bar_per_token() -> None:
    figure = hostile().plot()
    first, second = figure.axes
    assert [bar.get_height() for bar in first.patches] == pytest.approx([0.25, 0.0])
    assert list(first.lines[0].get_ydata()) == pytest.approx([0.5, math.exp(-0.1)])
    assert [bar.get_height() for bar in second.patches] == pytest.approx([0.5, 0.5])
    assert [label.get_text() for label in second.get_xticklabels()] == ["0", "1"]
    saved(figure, "generation")
    (low,) = hostile().plot(logprobs=True, max_tokens=1).axes[0].patches
    assert low.get_height() == pytest.approx(math.log(0.25))  # type: ignore[attr-defined]
    assert math.isnan(hostile().plot(logprobs=True).axes[0].patches[1].get_height())  # type: ignore[attr-defined]


def test_token_texts_are_short_and_are_not_formulas() -> None:
    figure = hostile().plot()
    label = figure.axes[0].get_xticklabels()[0]
    assert label.get_text() == "$x_1$␣\\alpha␣…"
    texts = [*figure.axes[0].get_xticklabels(), *figure.axes[1].get_xticklabels()]
    assert not any(text.get_parse_math() for text in texts)
    trace = trace_of(worked_beams, [A], ends=[STOP], num_beams=2, length_penalty=0.0, max_new_tokens=4)
    nodes = tuple(replace(node, text="$\\frac{$" if node.token is not None else "") for node in trace.nodes)
    axes = replace(trace, nodes=nodes).plot()
    assert axes.texts[1].get_text().startswith("$\\frac{$\n")
    saved(axes.figure, "formula")  # matplotlib raises an error if it reads a broken formula


def test_a_trace_is_a_tree_of_ranked_nodes() -> None:
    """The worked example: " b" 60% and " c" 40% after the prompt, then the end after " c" with 90%."""
    trace = drawn("worked_beams")
    axes = trace.plot()
    assert places(trace) == {
        node.id: expected
        for node, expected in zip(
            trace.nodes,
            [
                (0, 1, 0.0),
                (1, 1, pytest.approx(math.log(0.6))),
                (1, 2, pytest.approx(math.log(0.4))),
                (2, 1, pytest.approx(math.log(0.36))),
            ],
            strict=True,
        )
    }
    boxes = {text.get_gid(): text for text in axes.texts}
    lines = {line.get_gid(): line for line in axes.lines}
    for node in trace.nodes:
        position, rank, score = places(trace)[node.id]
        box = boxes[f"node-{node.id}"]
        assert box.get_position() == (position, rank)
        assert node.token is None or f"\n{score:.2f}" in box.get_text()
        assert (box.get_fontweight() == "bold") == (0 in node.outputs)
        if node.parent is not None:
            parent = places(trace)[node.parent]
            assert list(lines[f"edge-{node.id}"].get_xdata()) == [parent.position, position]
            assert list(lines[f"edge-{node.id}"].get_ydata()) == [parent.rank, rank]
    assert len(boxes) == len(trace.nodes) and len(lines) == len(trace.nodes) - 1


def test_a_long_trace_is_cut_and_says_so() -> None:
    axes = drawn("two_outputs").plot(max_tokens=2)
    assert {text.get_position()[0] for text in axes.texts} == {0, 1, 2}
    assert "first 2 of 5 tokens" in axes.get_title(loc="left")


def test_draft_tokens_of_a_second_model_have_no_node() -> None:
    trace = drawn("assisted")
    drafts = {node.id for node in trace.nodes if node.draft}
    assert drafts and not drafts & places(trace).keys()
    assert {text.get_gid() for text in trace.plot().texts} == {f"node-{each}" for each in places(trace)}


def test_a_comparison_has_grouped_bars_with_the_names_of_the_entries() -> None:
    compared = three()
    figure = compared.plot()
    names = (("mean_logprob",), ("distinct_1", "distinct_2", "distinct_3"), ("rep_2", "rep_3", "rep_4"))
    for axes, group in zip(figure.axes, names, strict=True):
        bars = [box for box in axes.containers if hasattr(box, "patches")]
        for drawn_bars, name in zip(bars, group, strict=True):
            expected = [getattr(row.figures, name) for row in compared.rows]
            assert [bar.get_width() for bar in drawn_bars] == pytest.approx(expected)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["greedy", "nucleus", "beam"]
    saved(figure, "comparison")


def test_the_axes_of_the_caller_are_used() -> None:
    figure, found = pyplot.subplots(1, 3)
    assert chart().plot(found[0]) is found[0]
    assert three().plot(found) is figure
    assert drawn("worked_beams").plot(ax=found[1]) is found[1]
    assert generation("a b").plot(found[2]) is figure
    with pytest.raises(OptionError, match="`ax` must have one axes per panel, here 3, got 2;"):
        three().plot(found[:2])
    for wrong in (generation("a"), drawn("worked_beams")):
        with pytest.raises(OptionError, match="`max_tokens` must be at least 1, got 0"):
            wrong.plot(max_tokens=0)
    assert len(pyplot.get_fignums()) == 1


def test_without_matplotlib_the_error_has_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.startswith("unspool.results.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for result in (chart(), three(), drawn("worked_beams"), generation("a b")):
        with pytest.raises(MissingExtra, match=r'pip install "unspool\[plot\]"'):
            result.plot()

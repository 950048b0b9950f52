"""The picture of a trace, letter by letter on toys small enough to work by hand."""

from __future__ import annotations

import io
import textwrap
from dataclasses import replace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.results.render.test_charts import Collector
from tests.toys import mixing_toy, toy
from tests.tracing import trace_of
from unspool.results.render.trace_marks import share
from unspool.results.render.trace_tree import trace_plain
from unspool.results.trace import Trace
from unspool.runtimes.toy import ToyRuntime

A, B, C, STOP = range(4)


def worked_beams() -> ToyRuntime:
    """The table of BeamSearch's worked example."""
    return ToyRuntime({A: [0, 0.6, 0.4, 0], B: [0.3, 0, 0.3, 0.4], C: [0, 0.1, 0, 0.9]}, 4, eos_token_ids=(STOP,))


def worked_contrast() -> ToyRuntime:
    """The table of ContrastiveSearch's worked example."""
    table = {A: [0, 0.6, 0.4, 0], B: [0, 0.6, 0.4, 0], C: [0.8, 0, 0, 0.2], STOP: [0, 0, 0, 1]}
    return ToyRuntime(table, 4, eos_token_ids=(STOP,))


def worked_target() -> ToyRuntime:
    """The tables of Assisted's worked example."""
    return ToyRuntime({A: [0, 0.6, 0.4], B: [0.3, 0, 0.7], C: [0.8, 0.2, 0]}, 3)


def worked_draft() -> ToyRuntime:
    return ToyRuntime({A: [0, 0.9, 0.1], B: [0.1, 0, 0.9], C: [0.1, 0.9, 0]}, 3)


def drawn(name: str) -> Trace:
    make, prompt, options = {
        "worked_beams": (worked_beams, A, {"num_beams": 2, "length_penalty": 0.0, "max_new_tokens": 4}),
        "two_outputs": (toy, A, {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 7}),
        "best_of": (toy, A, {"best_of": 3, "do_sample": True, "seed": 13, "max_new_tokens": 8}),
        "greedy": (toy, A, {"max_new_tokens": 4}),
        "sample": (
            toy,
            C,
            {"temperature": 0.5, "top_k": 2, "bad_words_ids": [[B]], "seed": 3, "max_new_tokens": 4}
            | {"num_return_sequences": 2},
        ),
        "contrastive": (worked_contrast, A, {"penalty_alpha": 0.6, "top_k": 2, "max_new_tokens": 5}),
        "assisted": (
            worked_target,
            A,
            {"own": {"assistant": worked_draft()}, "num_assistant_tokens": 2, "max_new_tokens": 6}
            | {"assistant_confidence_threshold": 0.0},
        ),
    }[name]
    return trace_of(make, [prompt], ends=[STOP], **options)  # type: ignore[arg-type]


PICTURES = {
    ("worked_beams", 80): """
         a
        beam, max_new_tokens 4, num_beams 2, length_penalty 0.0, seed 0, 3 tokens tried,
        2 steps

        │ ␣c 40%
        ├─ ␣b 60%  … unfinished
        ╰ <end> 90%  ★ 1: eos, score -1.022

        │ chosen  ├─ its rivals  ★ best output  … still alive at the end
    """,
    ("worked_beams", 40): """
         a
        beam, max_new_tokens 4, num_beams 2,
        length_penalty 0.0, seed 0,
        3 tokens tried, 2 steps

        │ ␣c 40%
        ├─ ␣b 60%  … unfinished
        ╰ <end> 90%  ★ 1: eos, score -1.022

        │ chosen  ├─ its rivals  ★ best output
        … still alive at the end
    """,
    ("two_outputs", 80): """
         a
        beam, max_new_tokens 7, num_return_sequences 2, num_beams 3, seed 0,
        13 tokens tried, 5 steps

        │ ␣b 60%
        ├─ ␣c 40%  ␣b 20%  ✗ beaten at token 3
        │ ␣c 70%
        ├─ ␣a 30%  ␣b 60%
        │  │ ␣c 70%
        │  ├─ ␣a 30%  … unfinished
        │  ╰ <end> 50%  ● 2: eos, score -0.655  logprob -3.275
        │ <end> 50%  ★ 1: eos, score -0.520  logprob -1.561
        ├─ ␣b 20%  ␣c 70%  … unfinished
        ╰─ ␣c 20%  ✗ beaten at token 4

        │ chosen  ├─ its rivals  ★ best output  ● other outputs  ✗ given up
        … still alive at the end
    """,
    ("two_outputs", 40): """
         a
        beam, max_new_tokens 7,
        num_return_sequences 2, num_beams 3,
        seed 0, 13 tokens tried, 5 steps

        │ ␣b 60%
        ├─ ␣c 40%  ␣b 20%  ✗ beaten at token 3
        │ ␣c 70%
        ├─ ␣a 30%  ␣b 60%
        │  │ ␣c 70%
        │  ├─ ␣a 30%  … unfinished
        │  ╰ <end> 50%  ● 2: eos, score -0.655
        │    logprob -3.275
        │ <end> 50%  ★ 1: eos, score -0.520
          logprob -1.561
        ├─ ␣b 20%  ␣c 70%  … unfinished
        ╰─ ␣c 20%  ✗ beaten at token 4

        │ chosen  ├─ its rivals  ★ best output
        ● other outputs  ✗ given up
        … still alive at the end
    """,
    ("best_of", 80): """
         a
        best_of, max_new_tokens 8, do_sample True, best_of 3, seed 13, 9 tokens tried,
        4 steps

        │ ␣b 60%
        ├─ ␣b 60%  ␣c 70%  ␣c 20%  <end> 50%  ✗ eos, not returned
        ├─ ␣c 40%  <end> 50%  ✗ eos, not returned
        ╰ ␣c 70%  <end> 50%  ★ 1: eos, score -0.520  logprob -1.561

        │ chosen  ├─ its rivals  ★ best output  ✗ given up
    """,
    ("best_of", 40): """
         a
        best_of, max_new_tokens 8,
        do_sample True, best_of 3, seed 13,
        9 tokens tried, 4 steps

        │ ␣b 60%
        ├─ ␣b 60%  ␣c 70%  ␣c 20%  <end> 50%
        │    ✗ eos, not returned
        ├─ ␣c 40%  <end> 50%
        │    ✗ eos, not returned
        ╰ ␣c 70%  <end> 50%
          ★ 1: eos, score -0.520  logprob -1.561

        │ chosen  ├─ its rivals  ★ best output
        ✗ given up
    """,
    ("greedy", 80): """
         a
        greedy, max_new_tokens 4, seed 0, 3 tokens tried, 3 steps

        ● 1: eos, score -1.561
        step  token    model   others
           1  ␣b      60.00%   ␣c 40%
           2  ␣c      70.00%   ␣a 30%
           3  <end>   50.00%   ␣b 20%  ␣c 20%  ␣a 10%
    """,
    ("greedy", 40): """
         a
        greedy, max_new_tokens 4, seed 0,
        3 tokens tried, 3 steps

        ● 1: eos, score -1.561
        step  token    model
           1  ␣b      60.00%
              ␣c 40%
           2  ␣c      70.00%
              ␣a 30%
           3  <end>   50.00%
              ␣b 20%  ␣c 20%  ␣a 10%
    """,
    ("sample", 80): """
         c
        sample, max_new_tokens 4, num_return_sequences 2, temperature 0.5, top_k 2,
        bad_words_ids [[1]], seed 3, 1 token tried, 1 step

        ● 1: eos, score -0.693
        step  token    model    drawn   others
           1  <end>   50.00%   86.21%   ␣b 20% (bad_words_ids)  ␣c 20%  ␣a 10% (top_k)
                                        bad_words_ids cut 1  top_k cut 1

        ● 2: eos, score -0.693
        step  token    model    drawn   others
           1  <end>   50.00%   86.21%   ␣b 20% (bad_words_ids)  ␣c 20%  ␣a 10% (top_k)
                                        bad_words_ids cut 1  top_k cut 1
    """,
    ("sample", 40): """
         c
        sample, max_new_tokens 4,
        num_return_sequences 2, temperature 0.5,
        top_k 2, bad_words_ids [[1]], seed 3,
        1 token tried, 1 step

        ● 1: eos, score -0.693
        step  token    model    drawn
           1  <end>   50.00%   86.21%
              ␣b 20% (bad_words_ids)  ␣c 20%
              ␣a 10% (top_k)
              bad_words_ids cut 1  top_k cut 1

        ● 2: eos, score -0.693
        step  token    model    drawn
           1  <end>   50.00%   86.21%
              ␣b 20% (bad_words_ids)  ␣c 20%
              ␣a 10% (top_k)
              bad_words_ids cut 1  top_k cut 1
    """,
    ("contrastive", 80): """
         a
        contrastive, max_new_tokens 5, penalty_alpha 0.6, top_k 2, seed 0,
        4 tokens tried, 3 steps

        ● 1: eos, score -2.526
        step  token    model  similar   others ~ similar
           1  ␣c      40.00%    0.000   ␣b 60% ~1.000
           2  <end>   20.00%    0.243   ␣a 80% ~1.000
    """,
    ("contrastive", 40): """
         a
        contrastive, max_new_tokens 5,
        penalty_alpha 0.6, top_k 2, seed 0,
        4 tokens tried, 3 steps

        ● 1: eos, score -2.526
        step  token    model  similar
           1  ␣c      40.00%    0.000
              ␣b 60% ~1.000
           2  <end>   20.00%    0.243
              ␣a 80% ~1.000
    """,
    ("assisted", 80): """
         a
        assisted, max_new_tokens 6, num_assistant_tokens 2,
        assistant_confidence_threshold 0.0, seed 0, 7 tokens tried, 7 steps

        ● 1: length, score -2.181
        pass  accepted
           1  -         → ␣b 60%
           2  1 of 2    ✓ ␣c 70%  ✗ ␣b 20%  → ␣a 80%
           3  1 of 1    ✓ ␣b 60%  → ␣c 70%
           4  -         → ␣a 80%
        2 of 3 guesses accepted in 4 passes

        ✓ accepted  ✗ rejected  → the model's own
    """,
    ("assisted", 40): """
         a
        assisted, max_new_tokens 6,
        num_assistant_tokens 2,
        assistant_confidence_threshold 0.0,
        seed 0, 7 tokens tried, 7 steps

        ● 1: length, score -2.181
        pass  accepted
           1  -         → ␣b 60%
           2  1 of 2    ✓ ␣c 70%  ✗ ␣b 20%
              → ␣a 80%
           3  1 of 1    ✓ ␣b 60%  → ␣c 70%
           4  -         → ␣a 80%
        2 of 3 guesses accepted in 4 passes

        ✓ accepted  ✗ rejected
        → the model's own
    """,
}


@pytest.mark.parametrize(("name", "width"), PICTURES)
def test_the_picture(name: str, width: int) -> None:
    assert trace_plain(drawn(name), width=width) == textwrap.dedent(PICTURES[name, width]).strip("\n")


def printed(trace: Trace, width: int = 80, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(trace)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(out, str)
    return out


@pytest.mark.parametrize("width", [40, 60, 100])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 5, "num_return_sequences": 3},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"best_of": 4, "do_sample": True},
        {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.2},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=str,
)
def test_no_line_is_wider_than_the_terminal_and_none_is_broken(options: dict[str, Any], width: int) -> None:
    trace = trace_of(mixing_toy, [3, 1, 2, 3, 1, 2], max_new_tokens=25, **options)
    lines = printed(trace, width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert [line.rstrip() for line in lines] == trace_plain(trace, width=width).splitlines()
    best = trace.path(0)
    assert all(f"␣{chr(97 + (node.token or 0))} " in "\n".join(lines) for node in best)


def test_a_trace_prints_itself() -> None:
    trace = drawn("two_outputs")
    assert str(trace) == trace_plain(trace, width=100)
    assert printed(trace).splitlines() == [line.rstrip() for line in trace_plain(trace, width=80).splitlines()]
    assert repr(trace) == "<Trace of beam: nodes=14, steps=5, outputs=2>"


def test_colors_mark_the_best_output_and_what_was_given_up() -> None:
    text = printed(drawn("two_outputs"), force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[1;96m␣b 60%\x1b[0m" in text  # shared with the other output, and part of the best
    assert "\x1b[1;96m★ 1: eos, score -0.520\x1b[0m" in text
    assert "\x1b[1m● 2: eos, score -0.655\x1b[0m" in text
    assert "\x1b[2m✗ beaten at token 3\x1b[0m" in text


def test_tokens_can_neither_drive_the_terminal_nor_write_markup() -> None:
    trace = drawn("two_outputs")
    names = {0: "[red]", 1: "\x1b[31m", 2: "\n", 3: "💡" * 30}
    spoiled = replace(
        trace,
        nodes=tuple(node if node.token is None else replace(node, text=names[node.token]) for node in trace.nodes),
        prompt="Once\n<b>upon</b> \x1b[31m",
    )
    text = printed(spoiled, 40)
    assert "\x1b" not in text
    assert "[red] 30%" in text and "\\x1b[31m 60%" in text and "↵ 70%" in text
    assert text.startswith("Once↵<b>upon</b> \\x1b[31m\n")
    assert max(map(cell_len, text.splitlines())) <= 40
    page = Collector(spoiled._repr_html_())
    assert set(page.tags) <= {"pre", "span"}
    assert page.attributes == {"style"}
    assert "<b>upon</b>" in page.text


def test_a_long_prompt_shows_its_end() -> None:
    trace = replace(drawn("greedy"), prompt="word " * 50 + "the end")
    first = trace_plain(trace, width=40).splitlines()[0]
    assert len(first) <= 40
    assert first.startswith("…") and first.endswith("word the end")
    assert trace_plain(replace(trace, prompt=None), width=40).startswith("(1 prompt token)\n")


def test_what_an_output_lacks_is_said() -> None:
    trace = drawn("worked_beams")
    lacking = replace(trace, outputs=(replace(trace.outputs[0], unmet="the word b"),))
    assert "★ 1: eos, score -1.022  unmet: the word b" in trace_plain(lacking, width=80)


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (1.0, "100%"), (0.9999, ">99%"), (0.995, ">99%"), (0.994, "99%"), (0.5, "50%"), (0.0996, "10%"),
        (0.0994, "9.9%"), (0.001, "0.1%"), (0.0009, "<0.1%"), (0.0, "0%"),
    ],
)  # fmt: skip
def test_short_percentages(probability: float, text: str) -> None:
    assert share(probability) == text

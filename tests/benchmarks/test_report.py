"""What a record says, worked out by hand; and that docs/performance.md says what the newest record does."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import report, results
from benchmarks.chart import draw
from benchmarks.goals import verdicts
from benchmarks.results import Results
from tests.benchmarks.records import case, entry, record


def lines(text: str) -> list[str]:
    """Return the lines of a report with single blanks, so that the widths of columns do not matter."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_peers_are_compared_pair_by_pair():
    text = lines(report.markdown(record()))
    # 10 tokens in a median of 1 s; 10 passes of 1e9 bytes a second at 2e10 bytes a second
    assert "| the case gpt2-float32/greedy | unspool | 10.0 tokens/s | | 50% | |" in text
    # 2/1, 4/2, 2.4/1; 10 tokens in a median of 2.4 s
    assert "| | transformers | 4.2 tokens/s | 2.00 (2.00 to 2.40) | 21% | the same |" in text
    # 0.8/1, 1/2, 0.5/1
    assert "| | ctranslate2 float32 | 12.5 tokens/s | 0.50 (0.50 to 0.80) | 62% | 1 of 3 outputs differ |" in text
    assert "- the case gpt2-float32/greedy: a word of warning." in text


def test_the_first_token_and_those_after_it_are_told_apart():
    text = lines(report.markdown(record()))
    assert "| the case gpt2-float32/long-prompt: to the first token | unspool | 1.00 s | | | |" in text
    # 0.9 s for the 9 tokens after the first; 1e9 bytes in 0.1 s at 2e10 bytes a second
    assert "| the case gpt2-float32/long-prompt: each token after it | unspool | 10.0 tokens/s | | 50% | |" in text
    assert "| | transformers | 5.0 tokens/s | 2.00 (2.00 to 2.00) | 25% | the same |" in text


def test_what_a_peer_wins_is_said_first_and_computed():
    text = report.markdown(record())
    (won,) = [line for line in text.splitlines() if "times as fast" in line]
    # the other way round: 1/0.5, 1/0.8
    assert won == ("- a GPT-2, the case gpt2-float32/greedy: ctranslate2 float32 is 2.00 times as fast (1.25 to 2.00)")
    faster = record()
    faster["cases"][0]["entries"][2]["seconds"] = [3.0, 3.0, 3.0]
    assert "Nowhere in this run." in report.markdown(faster)


def test_costs_parts_memory_machine_and_gaps_are_there():
    text = lines(report.markdown(record()))
    assert "| | 5 beams | 130.0 ms | 1.30 (1.30 to 1.30) |" in text
    # 0.45 s, 0.02 s and 0.01 s for 10 steps
    assert "| 1 request | 45.00 | 2.00 | 1.00 |" in text
    assert "| a GPT-2 | unspool | 100 MiB | 150 MiB |" in text
    assert "- llama.cpp bf16: llama_cpp is not installed (gpt2-float32/greedy)" in text
    assert text[0].startswith("Measured on 2026-11-21: A Machine; AVX2; 2 cores; 16.0 GiB of memory. 2 threads")
    assert "The machine read memory at 20.0 GB/s (median over the run; best 25.0)." in text[0]


@pytest.mark.parametrize(("change", "words"), [({"quick": True}, "Tiny models"), ({"finished": False}, "not finished")])
def test_figures_that_are_not_to_be_quoted_say_so(change: dict, words: str):
    assert words in report.markdown(record() | change).splitlines()[0]
    assert words not in report.markdown(record())


def test_goals_are_held_against_the_medians():
    found = {verdict.goal: verdict for verdict in verdicts(record())}
    assert found["gpt2-float32/greedy: transformers"] == (
        "gpt2-float32/greedy: transformers",
        "at least 1.3",
        "2.00",
        True,
    )
    assert found["gpt2-float32/greedy: ctranslate2 float32"].met is False
    assert found["gpt2-float32/beam-5: transformers"].met is None
    outside = found["gpt2-float32/greedy: time outside of the model's forward"]
    assert (outside.measured, outside.met) == ("10.0%", False)


@pytest.mark.parametrize(("seconds", "met"), [(1.2, True), (1.3, False)])
def test_a_cost_must_stay_below_its_goal(seconds: float, met: bool):
    costs = case("gpt2-bfloat16/beam-step", entry("greedy", "unspool", [1.0]), entry("5 beams", "unspool", [seconds]))
    costs["kind"] = "cost"
    found = {verdict.goal: verdict for verdict in verdicts(record() | {"cases": [costs]})}
    assert found["gpt2-bfloat16/beam-step: 5 beams"].met is met


def test_the_page_gets_its_report_between_the_marks_and_nothing_else_changes():
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    written = report.with_results(page, [record()])
    assert written.startswith("before\n") and written.endswith("\nafter\n")
    assert "old" not in written and "(performance.svg)" in written
    assert report.with_results(written, [record()]) == written
    with pytest.raises(ValueError, match="the page lacks"):
        report.with_results("before\n", [record()])


def test_all_machines_are_side_by_side():
    other = record()
    other["machine"] |= {"cpu": "Another", "vector": "AVX2, AMX", "bandwidth": {"best": 4e10, "median": 4e10}}
    other["cases"] = other["cases"][1:2]
    text = lines(report.side_by_side([record(), other]))
    assert text[0] == "| Case | Side | A Machine, 2 cores | Another, 2 cores |"
    # 10 passes of 1e9 bytes in a second at 2e10 bytes a second; this case is absent on the other machine
    assert "| a GPT-2: the case gpt2-float32/greedy | unspool, share of bandwidth | 50% | |" in text
    assert "| | transformers | 2.00 | |" in text
    assert (
        "| a GPT-2: the case gpt2-float32/long-prompt: each token after it | unspool, share of bandwidth | 50% | 25% |"
        in text
    )
    page = report.with_results(f"{report.BEGIN}{report.END}", [record(), other])
    assert page.index("## A Machine, 2 cores") < page.index("## Another, 2 cores")
    assert "### Cases in which a peer is faster" in page and "#### a GPT-2" in page


def test_a_table_holds_no_bars_but_its_own():
    rows = [line for line in report.markdown(record()).splitlines() if "as it likes" in line]
    assert rows and all(line.replace(r"\|", "").count("|") == 4 for line in rows)


def test_the_chart_draws_a_bar_for_each_side_the_longest_for_the_fastest():
    tree = ElementTree.fromstring(draw(record()))
    bars = [mark for mark in tree.iter() if mark.tag.endswith("rect") and mark.get("class") != "back"]
    assert [bar.get("class") for bar in bars[:3]] == ["unspool", "transformers", "ctranslate2"]
    ours, theirs, fastest = (float(bar.get("width", "")) for bar in bars[:3])
    assert ours / fastest == pytest.approx(0.8, rel=0.01)
    assert theirs / fastest == pytest.approx(0.8 / 2.4, rel=0.01)
    texts = [mark.text for mark in tree.iter() if mark.tag.endswith("text")]
    assert "4.2 tokens/s" in texts and "a GPT-2" in texts


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_is_on_disk_after_each_case(tmp_path: Path):
    file = tmp_path / "there" / "record.json"
    machine = {"cpu": "A Machine"}
    found = Results(file, machine=machine, checkpoints={}, quick=True)
    first = case("a/b", entry("unspool", "unspool", [1.0]) | {"versions": {"unspool": "9"}}, bandwidths=[1e10, 3e10])
    found.add(first)
    found.add(case("a/c", bandwidths=[2e10]))
    saved = results.read(file)
    assert [each["name"] for each in saved["cases"]] == ["a/b", "a/c"]
    assert saved["machine"]["bandwidth"] == {"best": 3e10, "median": 2e10}
    assert (saved["versions"], saved["finished"]) == ({"unspool": "9"}, False)
    found.finish()
    found.keep(tmp_path / "kept")
    assert results.read(tmp_path / "kept" / "record.json")["finished"] is True


def test_a_record_of_another_schema_is_refused(tmp_path: Path):
    file = tmp_path / "record.json"
    file.write_text(json.dumps({"schema": 0}))
    with pytest.raises(ValueError, match="schema 0"):
        results.read(file)


def kept(folder: Path, name: str, **machine: Any) -> Results:
    found = Results(folder / name, machine={"vector": "", "cores": 2, **machine}, checkpoints={}, quick=False)
    found.finish()
    return found


def test_each_machine_has_one_record_the_newest(tmp_path: Path):
    assert results.of_all_machines(tmp_path) == []
    kept(tmp_path, "2026-11-21-b.json", cpu="B", note=1)
    kept(tmp_path, "2026-12-01-a.json", cpu="A", note=2)
    kept(tmp_path, "2026-11-30-b.json", cpu="B", note=3)
    kept(tmp_path, "2026-11-29-b.json", cpu="B", vector="AMX", note=4)
    assert [record["machine"]["note"] for record in results.of_all_machines(tmp_path)] == [2, 3, 4]


def test_a_record_replaces_older_ones_of_its_machine_alone(tmp_path: Path):
    for name, cpu in (("2026-11-21-b.json", "B"), ("2026-11-22-a.json", "A")):
        kept(tmp_path, name, cpu=cpu)
    for _ in range(2):
        kept(tmp_path / "elsewhere", "2026-11-23-b.json", cpu="B").keep(tmp_path)
    assert sorted(file.name for file in tmp_path.glob("*.json")) == ["2026-11-22-a.json", "2026-11-23-b.json"]


def test_the_page_says_what_the_records_say():
    page = report.PAGE.read_text()
    records = results.of_all_machines()
    if not records:
        assert report.NOTHING_YET in page
        return
    assert page == report.with_results(page, records), "run: python -m benchmarks.report"
    assert report.CHART.read_text() == draw(records[0]), "run: python -m benchmarks.report"

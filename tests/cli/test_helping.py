"""Help pages: every flag in full, no line too wide, and examples that run."""

import shlex
from contextlib import nullcontext

import pytest

from tests.docs.blocks import run_command
from unspool.cli.examples import EXAMPLES
from unspool.cli.main import app
from unspool.cli.options import flag_of, generation_options
from unspool.config import GROUPS
from unspool.runtimes.weights.tuning_file import TuningFile

COMMANDS = [command for command in EXAMPLES if command]
WITH_OPTIONS = ["generate", "chat", "next", "trace", "compare"]


@pytest.mark.parametrize("command", WITH_OPTIONS)
def test_help_shows_every_option_under_its_group(run, command: str):
    lines = run(command, "--help").out.splitlines()
    titles = [line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    used = {option.group for option in generation_options()}
    assert [title for title in titles if title in GROUPS] == [group for group in GROUPS if group in used]
    first_words = [line.split()[0] for line in lines if line.startswith("  -")]
    for option in generation_options():
        aliases = ("--strategy,",) if command == "compare" and option.name == "strategy" else (flag_of(option),)
        assert [word for word in first_words if word in aliases], option.name


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_no_text_of_help_is_cut_or_wider_than_the_terminal(run, monkeypatch, command: str, width: int):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = run(*command.split(), "--help").out.splitlines()
    examples = {f"  {line}" for line in EXAMPLES[command]}
    assert not [line for line in lines if "…" in line]
    too_wide = [line for line in lines if len(line) > width and line not in examples]
    assert width < 80 or not too_wide
    if width == 40:  # a word, such as a flag, is never broken
        assert all(len(line.split()) <= 2 or line.lstrip().startswith("Usage") or len(line) <= 52 for line in too_wide)


def test_help_has_no_styles_in_a_pipe(run):
    assert "\x1b" not in run("generate", "--help").out


def test_every_command_has_two_or_three_examples():
    assert set(COMMANDS) == {command.name for command in app.registered_commands}
    assert all(2 <= len(EXAMPLES[command]) <= 3 for command in COMMANDS)


@pytest.mark.model
@pytest.mark.parametrize(
    "line",
    [line for command in COMMANDS for line in EXAMPLES[command] if line != "unspool chat --plain --temperature 0.7"],
)
def test_examples_run(line: str, monkeypatch, tmp_path):
    times = TuningFile(tmp_path / "linear.json")
    monkeypatch.setattr("unspool.runtimes.weights.autotune.tuning_file", lambda: times)
    monkeypatch.setattr("unspool.runtimes.weights.trial.last_level_cache", lambda: 1 << 20)
    if "|" not in line and shlex.split(line)[1] != "chat":
        monkeypatch.setattr("sys.stdin", None)
    if shlex.split(line)[1] in ("serve", "explore"):  # a server runs until a signal: this one ends when it is ready
        monkeypatch.setattr("unspool.serving.run.serve", lambda app, sockets, ready: print(ready(0) or "served"))
        monkeypatch.setattr("unspool.cli.serve.bound", lambda host, port: nullcontext([]))  # 8000 can be in use
        monkeypatch.setattr("webbrowser.open", lambda address: True)
    assert run_command(line, line).strip()

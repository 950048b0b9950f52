"""The command itself: help, version, wrong calls."""

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest


def test_version(run):
    assert run("--version").out == f"unspool {importlib.metadata.version('unspool')}\n"


def test_help_names_the_commands(run):
    done = run("--help")
    assert done.status == 0
    for command in ("generate", "chat", "next", "score", "trace", "compare", "models"):
        assert command in done.out


def test_no_arguments_show_the_help_and_no_empty_error(run):
    done = run()
    assert "Usage" in done.out + done.err
    assert "Error" not in done.out + done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tell"], "No such command 'tell'"),
        (["generate", "hi", "--temperatur", "1"], "no flag --temperatur; did you mean --temperature?"),
        (["generate", "hi", "--max_new_tokens", "1"], "did you mean --max-new-tokens?"),
        (["generate", "hi", "--max-tokens", "1"], "did you mean --max-new-tokens?"),
        (["generate", "hi", "--stop", "x"], "did you mean --stop-strings?"),
        (["generate", "hi", "--output-attentions"], "there is no flag --output-attentions; --help lists all flags"),
        (["generate", "hi", "--token-healing"], "the tokens of a prompt are never changed; leave it out"),
        (["generate", "hi", "--xyz"], "--help lists all flags"),
        (["score", "hi", "--temperature", "1"], "there is no flag --temperature; --help lists all flags"),
        (["genrate", "hi"], "Did you mean 'generate'?"),
        (["generate", "hi", "--temperature", "warm"], "--temperature"),
        (["generate", "hi", "--temperature"], "--temperature"),
        (["generate", "hi", "--top-p", "1.5"], "--top-p must be in (0, 1], got 1.5"),
        (["generate", "hi", "--sequence-bias", "[[1"], "--sequence-bias must map"),
        (["generate", "hi", "--do-sample", "--no-do-sample"], "leave out one of --do-sample and --no-do-sample"),
        (["generate", "hi", "there"], "there"),
        (["next", "hi", "--limit", "0"], "--limit"),
        (["models", "--color"], "--color"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(run, arguments: list[str], message: str):
    done = run(*arguments)
    assert done.status == 2
    assert done.out == ""
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1
    assert message in done.err


def test_the_installed_command_and_the_module_answer():
    name = "unspool.exe" if sys.platform == "win32" else "unspool"
    installed = Path(sysconfig.get_path("scripts")) / name
    for command in ([installed], [sys.executable, "-m", "unspool.cli.main"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("unspool ")

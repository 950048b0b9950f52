"""The command line on the embedded model, nothing faked."""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_terminal import TERMINAL

ROOT = Path(__file__).resolve().parents[2]
UNSPOOL = [sys.executable, "-m", "unspool.cli.main"]
SAMPLING = ("--temperature", "0.8", "--top-p", "0.95", "--seed", "3", "--max-new-tokens", "12")

pytestmark = pytest.mark.model


def test_streamed_whole_json_and_python_agree(run):
    import unspool

    expected = unspool.load().generate("Once upon a time", temperature=0.8, top_p=0.95, seed=3, max_new_tokens=12)
    streamed = run("generate", "Once upon a time", *SAMPLING)
    assert (streamed.status, streamed.err) == (0, "")
    assert streamed.out == expected.text.rstrip("\n") + "\n"
    assert run("generate", "Once upon a time", "--no-stream", *SAMPLING).out == streamed.out
    result = json.loads(run("generate", "Once upon a time", "--json", *SAMPLING).out)
    assert (result["text"], result["seed"]) == (expected.text, 3)


def test_the_demo_ends_with_a_whole_sentence(run):
    """`make demo` as it is written in the Makefile: the model itself ends the tale."""
    makefile = (ROOT / "Makefile").read_text()
    (command,) = re.findall(r"^\t@\$\(BIN\)/unspool (generate .*) \$\(ARGS\)$", makefile, re.MULTILINE)
    for name, value in re.findall(r"^(PROMPT|SEED) \?= (.*)$", makefile, re.MULTILINE):
        command = command.replace(f"$({name})", value)
    result = json.loads(run(*shlex.split(command), "--json").out)
    assert result["completions"][0]["finish_reason"] == "eos"
    assert result["text"].endswith(".")


def test_next_draws_the_distribution_that_python_gives(run):
    import unspool

    expected = unspool.load().next_tokens("The king", top_k=3, limit=5)
    result = json.loads(run("next", "The king", "--top-k", "3", "--limit", "5", "--json").out)
    assert [token["token_id"] for token in result["tokens"]] == [token.token_id for token in expected]
    drawn = run("next", "The king", "--top-k", "3", "--limit", "5")
    assert (drawn.status, drawn.err) == (0, "")
    assert "cut: top_k" in drawn.out
    assert "\x1b" not in drawn.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-return-sequences", "2"], "--num-return-sequences is not read"),
        (["--temperature", "0.5", "--no-do-sample"], "--temperature is not read"),
        (["--model", "no/such/folder/here"], "no/such/folder/here"),
        (["--max-new-tokens", "5", "--eos-token-id", "999999"], "--eos-token-id must hold"),
    ],
)
def test_what_cannot_be_honored_is_one_line(run, arguments: list[str], message: str):
    done = run("generate", "Once", *arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("Error: ") and done.err.count("\n") == 1
    assert message in done.err


@pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind are a Unix thing")
def test_ctrl_c_while_a_tale_streams_ends_it():
    process = subprocess.Popen(
        [*UNSPOOL, "generate", "Once", "--ignore-eos", "--max-new-tokens", "1000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=TERMINAL,
        cwd=ROOT,
    )
    assert process.stdout is not None
    begin = process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (begin + rest).endswith(b"\n")
    assert re.fullmatch(rb"Interrupted: --seed \d+ repeats this run\n", errors)

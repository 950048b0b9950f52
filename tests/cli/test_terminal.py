"""In a real terminal and a real pipe, each in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "tests.cli.fakes"]
DEFAULT_DECODER_PROMPT = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
TERMINAL = {**DEFAULT_DECODER_PROMPT, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT / "src")}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a Unix thing")


def read_until(descriptor: int, enough: Callable[[str], bool], seconds: float = 60.0) -> str:
    """Return what the terminal shows, as soon as it is enough or the other side is closed."""
    import select

    shown, deadline = "", time.monotonic() + seconds
    while not enough(shown) and time.monotonic() < deadline:
        if not select.select([descriptor], [], [], 0.1)[0]:
            continue
        try:
            data = os.read(descriptor, 4096)
        except OSError:  # Linux says so when the last writer has gone
            break
        if not data:
            break
        shown += data.decode()
    return shown


def in_terminal(*arguments: str, environment: dict[str, str], interrupt_after: str | None = None) -> tuple[int, str]:
    """Run the command in a pseudo-terminal, Ctrl-C pressed once the text is seen. Returns exit code and screen."""
    import pty

    keyboard, terminal = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT, env=environment
    )
    os.close(terminal)
    try:
        shown = ""
        if interrupt_after is not None:
            shown = read_until(keyboard, lambda text: interrupt_after in text)
            process.send_signal(signal.SIGINT)
        shown += read_until(keyboard, lambda _: False)
        return process.wait(timeout=60), shown.replace("\r\n", "\n")
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)


def test_ctrl_c_in_a_terminal_leaves_it_clean():
    status, shown = in_terminal("generate", "Once", environment=TERMINAL, interrupt_after=" and then and")
    assert status == 130
    assert shown.startswith("\x1b[2mOnce\x1b[0m and then and")
    assert shown.endswith("\n")
    assert "Traceback" not in shown
    assert shown.count("\x1b") == 2


def test_no_color_leaves_every_escape_out():
    environment = {**TERMINAL, "NO_COLOR": "1"}
    status, shown = in_terminal("generate", "Once", environment=environment, interrupt_after=" and then and")
    assert status == 130
    assert "\x1b" not in shown


def in_shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which UNSPOOL stands for the command."""
    line = line.replace("UNSPOOL", " ".join(COMMAND))
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, env=TERMINAL, timeout=60)


def test_a_closed_pipe_ends_quietly():
    done = in_shell("UNSPOOL generate Once | head -c 20; status=${PIPESTATUS[0]}; echo; echo $status")
    assert done.stdout.splitlines() == [" and then and then a", "141"]
    assert done.stderr == ""


def test_a_closed_pipe_of_help_ends_quietly():
    done = in_shell("UNSPOOL generate --help | true")
    assert done.stderr == ""


def test_an_encoding_that_lacks_a_character_shows_a_question_mark():
    code = "from unspool.cli.main import main; assert main(['--version']) == 0; print('König')"
    environment = {**TERMINAL, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0
    assert done.stdout.endswith("K?nig\n")

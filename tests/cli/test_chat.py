"""`unspool chat`: through a pipe in this process, in a pseudo-terminal in one of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cli.emulator import Terminal
from tests.cli.test_terminal import ROOT, TERMINAL, read_until
from tests.speakers import recite
from tests.text.tokenizers import byte_level
from unspool import LanguageModel, OptionError, PromptError
from unspool.cli.commands import complete, is_command
from unspool.cli.dialogue import Dialogue
from unspool.text.chat import transcript

DEFAULT_DECODER_PROMPT = ("chat", "--plain", "--max-new-tokens", "12")
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\\n' }}{% endfor %}"


@pytest.fixture(scope="module")
def tale() -> Any:
    import unspool

    return unspool.load("tale-draft")


@pytest.fixture
def talk(run: Callable[..., Any], tale: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `unspool chat` on the embedded draft with these lines piped in."""
    monkeypatch.setattr("unspool.cli.sources.load_model", lambda *_, **__: tale)

    def call(*lines: str, flags: tuple[str, ...] = DEFAULT_DECODER_PROMPT) -> Any:
        return run(*flags, piped="".join(f"{line}\n" for line in lines))

    return call


def said(tale: Any, *turns: str, **options: Any) -> str:
    """What the model answers to the last of these turns, the user's and its own in alternation."""
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    options = {"max_new_tokens": 12, "stop_strings": ["\nUser:", "\nAssistant:"], **options}
    text: str = tale.generate(transcript(messages), **options).text.strip()
    return text


pytestmark = pytest.mark.model


def test_every_line_of_a_pipe_is_a_message_and_the_conversation_goes_on(talk: Any, tale: Any) -> None:
    done = talk("Who is the king?", "", "And the queen?")
    first = said(tale, "Who is the king?")
    second = said(tale, "Who is the king?", first, "And the queen?")
    assert (done.status, done.err) == (0, "")
    assert done.out == f"{first}\n{second}\n"


def test_options_of_the_command_line_and_of_set(talk: Any, tale: Any) -> None:
    done = talk(
        "Who?", "/set temperature 0.8", "/set seed 3", "/retry", "/options", "/set temperature default", "/options"
    )
    lines = done.out.splitlines()
    sampled = said(tale, "Who?", temperature=0.8, seed=4).splitlines()
    start = len(said(tale, "Who?").splitlines())
    assert lines[start : start + len(sampled)] == sampled, "another try has another seed"
    assert done.out.endswith("max_new_tokens = 12\ntemperature = 0.8\nseed = 3\nmax_new_tokens = 12\nseed = 3\n")


def test_a_conversation_can_be_taken_back_and_changed(talk: Any, tale: Any) -> None:
    done = talk("Who?", "/undo", "A king.", "/edit A queen.", "/reset", "Who?")
    who, king, queen = (said(tale, text) for text in ("Who?", "A king.", "A queen."))
    assert (done.status, done.out) == (0, f"{who}\n{king}\n{queen}\n{who}\n")


def test_a_line_that_ends_with_a_backslash_goes_on(talk: Any, tale: Any) -> None:
    assert talk("Who\\", "is it?", "//odd").out.startswith(said(tale, "Who\nis it?") + "\n")


def test_the_system_message_stands_before_all_else(talk: Any, tale: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    expected = tale.generate(transcript(messages), max_new_tokens=12, stop_strings=["\nUser:"]).text.strip()
    assert talk("Who?", flags=(*DEFAULT_DECODER_PROMPT, "--system", "Be brief.")).out == f"{expected}\n"
    assert talk("/system Be brief.", "Who?").out == f"system: Be brief.\n{expected}\n"
    assert talk("/system Be brief.", "/system off", "Who?").out.endswith(f"no system message\n{said(tale, 'Who?')}\n")


def test_a_conversation_is_saved_and_taken_up(talk: Any, tale: Any, tmp_path: Path) -> None:
    file = tmp_path / "tale.json"
    assert talk("Who?", f"/save {file}", "And?", f"/save {file}").status == 0
    saved = json.loads(file.read_text())
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"] * 2
    assert saved["messages"][1]["content"] == said(tale, "Who?")
    assert (saved["model"], saved["options"]) == ("tale-draft", {"max_new_tokens": 12})
    done = talk(f"/load {file}", "/undo", "And?")
    assert done.out == saved["messages"][3]["content"] + "\n"


def test_a_file_that_holds_something_else_is_left_alone(talk: Any, tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("Dear aunt,")
    done = talk("Who?", f"/save {file}")
    assert (done.status, file.read_text()) == (2, "Dear aunt,")
    assert "it is left as it is" in done.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/undo", "nothing to undo"),
        ("/retry", "no message to answer again"),
        ("/edit", "no message to edit"),
        ("/sett temperature 3", "did you mean /set?"),
        ("/set temperature", "/set needs an option and a value"),
        ("/set temperature -1", "temperature must be 0 or in [1e-18, 1e18], got -1; use 1.0 or off to"),
        ("/set tempratur 1", "did you mean temperature?"),
        ("/set top_p 0.5 0.6", "top_p must be in"),
        ("/set length_penalty 2", "length_penalty is not read"),
        ("/set use_cache on", "does not change the tokens"),
        ("/set logprobs 3", "cannot be used in a conversation"),
        ("/load no/such/file", "no/such/file: No such file"),
        ("/save", "needs a file name"),
    ],
)
def test_the_first_error_ends_a_pipe(talk: Any, line: str, message: str) -> None:
    done = talk(line, "Who?")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("Error: ") and done.err.count("\n") == 1
    assert message in done.err


def test_help_lists_every_command(talk: Any) -> None:
    shown = talk("/help").out
    for name in ("help", "system", "reset", "undo", "retry", "edit", "save", "load", "set", "options", "model", "exit"):
        assert f"\n  /{name} " in f"\n{shown}"
    assert talk("/exit", "Who?").out == ""


def test_a_model_without_a_template_is_explained(talk: Any) -> None:
    done = talk("Who?", flags=("chat",))
    assert (done.status, done.out) == (2, "")
    assert "tale-draft has no chat template" in done.err
    assert "--plain" in done.err and "--chat-template FILE" in done.err


def test_a_template_of_the_users_own(talk: Any, tale: Any, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATE)
    done = talk("Who?", flags=("chat", "--chat-template", str(file), "--max-new-tokens", "8"))
    ids = tale.tokenizer("user: Who?\n", add_special_tokens=False)["input_ids"]
    assert done.out == tale.generate(ids, max_new_tokens=8).text.rstrip("\n") + "\n"


def test_the_model_is_shown_and_changed(talk: Any, tale: Any) -> None:
    done = talk("/model", "/model another")
    assert done.out == f"tale-draft: {tale.info.backend}\n" * 2


def test_wrong_options_are_told_before_the_first_message(talk: Any) -> None:
    done = talk("Who?", flags=(*DEFAULT_DECODER_PROMPT, "--do-sample", "--num-return-sequences", "2"))
    assert (done.status, done.out) == (2, "")
    assert "--num-return-sequences cannot be used in a conversation" in done.err


# --- without a model ------------------------------------------------------------------------------------------------


def dialogue(*texts: str, template: str | None = TEMPLATE, **options: Any) -> Dialogue:
    lm = recite(*(texts or ("A king.",)))
    return Dialogue(lm, options, chat_template=template)


def test_an_answer_that_fails_leaves_the_conversation_as_it_was() -> None:
    from unspool.cli.chat import _answer
    from unspool.cli.commands import ChatSession
    from unspool.cli.keyboard import Piped

    talk = dialogue()
    desk = ChatSession(dialogue=talk, source=Piped(), load=None, show=print, remark=print)  # type: ignore[arg-type]
    assert _answer(desk, partial(talk.stream, "Who?"), quiet=True) == "read"
    kept = list(talk.messages)
    assert [message["content"] for message in kept] == ["Who?", "A king."]
    talk.lm = LanguageModel(recite("A king.", max_length=4).runtime, byte_level())
    with pytest.raises(PromptError):
        _answer(desk, partial(talk.stream, "And then? " * 9), quiet=True)
    assert talk.messages == kept


@pytest.mark.parametrize(
    ("text", "value"),
    [("off", False), ("on", True), ("true", True), ("default", None)],
)
def test_switches_are_set_in_words(text: str, value: Any) -> None:
    talk = dialogue()
    talk.set_option("ignore-eos", text)
    assert talk.options.get("ignore_eos") is value
    with pytest.raises(OptionError, match="`ignore_eos`"):
        talk.set_option("ignore_eos", "maybe")
    assert talk.options.get("ignore_eos") is value


def test_structured_options_are_json_or_text() -> None:
    talk = dialogue()
    talk.set_option("stop_strings", '["a", "b"]')
    assert talk.options["stop_strings"] == ("a", "b")
    talk.set_option("stop_strings", "User:")
    assert talk.options["stop_strings"] == ("User:",)
    talk.set_option("stop_strings", "off")
    assert talk.options["stop_strings"] is None


def test_completion() -> None:
    assert complete("/re") == ["/reset", "/retry"]
    assert complete("/set temp") == ["temperature"]
    assert complete("hello /re") == complete("/save fi") == []
    assert is_command("/help") and not is_command("//help") and not is_command("help /")


# --- in a terminal --------------------------------------------------------------------------------------------------


class Session:
    """A program in a pseudo-terminal, and what a person does there."""

    def __init__(self, process: subprocess.Popen[bytes], keyboard: int) -> None:
        self._process, self._keyboard, self._seen = process, keyboard, 0
        self.shown = ""

    def wait_for(self, text: str) -> None:
        """Wait until the text has come behind what was waited for last."""
        if text not in self.shown[self._seen :]:
            self.shown += read_until(self._keyboard, lambda new: text in (self.shown + new)[self._seen :])
        assert text in self.shown[self._seen :], f"{text!r} did not come: {self.shown!r}"
        self._seen = self.shown.index(text, self._seen) + len(text)

    def type(self, text: str) -> None:
        os.write(self._keyboard, text.encode())

    def interrupt(self, text: str) -> None:
        """Interrupt until this text has come: Python's line editor misses a signal just before it begins to wait."""
        for _ in range(60):
            self._process.send_signal(signal.SIGINT)
            self.shown += read_until(self._keyboard, lambda new: text in (self.shown + new)[self._seen :], seconds=1.0)
            if text in self.shown[self._seen :]:
                break
        self.wait_for(text)

    def end(self) -> int:
        """Wait for the program to end; returns its status."""
        self.shown += read_until(self._keyboard, lambda _: False)
        return self._process.wait(timeout=60)

    def rows(self) -> list[str]:
        """What stands on the screen, dim text left out."""
        terminal = Terminal(100, 60)
        terminal.write(self.shown.replace("\r\n", "\n").replace("\x1b[?2004h", "").replace("\x1b[?2004l", ""))
        return terminal.plain()


@contextmanager
def at_terminal(*flags: str) -> Iterator[Session]:
    import fcntl
    import pty
    import struct
    import termios

    keyboard, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 100, 0, 0))
    environment = {**TERMINAL, "INPUTRC": "/dev/null", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "unspool.cli.main", "chat", "--plain", "--model", "tale-draft", *flags],
        stdin=side, stdout=side, stderr=side, cwd=ROOT, env=environment,
    )  # fmt: skip
    os.close(side)
    try:
        yield Session(process, keyboard)
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a Unix thing")
def test_a_session_at_a_terminal(tale: Any) -> None:
    with at_terminal("--max-new-tokens", "12") as session:
        session.wait_for("> ")
        session.type("Who?\r")
        session.wait_for("seed")
        session.wait_for("> ")
        session.type("/undo now\r")
        session.wait_for("undone: Who?")
        session.wait_for("> ")
        session.type("\x1b[200~A king\rand a queen.\x1b[201~\r")
        session.wait_for("seed")
        session.wait_for("> ")
        session.type("/set tempratur 1\r")
        session.wait_for("did you mean")
        session.wait_for("> ")
        session.type("/edit\r")
        session.wait_for("and a queen.")
        session.type("\x7f!\r")
        session.wait_for("seed")
        session.wait_for("> ")
        session.type("\x04")
        assert session.end() == 0
    text = "\n".join(session.rows())
    for expected in (said(tale, "Who?"), said(tale, "A king\nand a queen."), said(tale, "A king\nand a queen!")):
        assert expected in text
    assert "Traceback" not in session.shown


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a Unix thing")
def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    with at_terminal("--max-new-tokens", "900", "--ignore-eos") as session:
        session.wait_for("> ")
        session.type("Who?\r")
        session.wait_for("Who?\r\n")
        session.wait_for(" ")
        session.interrupt("stopped")
        session.wait_for("> ")
        session.type("half a message")
        session.wait_for("half a message")
        session.interrupt("> ")
        session.type("/options\r")
        session.wait_for("ignore_eos = true")
        session.wait_for("> ")
        session.type("/exit\r")
        assert session.end() == 0
    assert "Traceback" not in session.shown

"""What a person sees and what a pipe gets."""

import io

import pytest

from tests.cli.fakes import FakeModel
from unspool.cli.generate import show_chunks, summary
from unspool.cli.screen import Screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def screen(
    output: io.StringIO, *, prompt: str = "Once", echo: bool = False, errors: io.StringIO | None = None
) -> Screen:
    return Screen(prompt=prompt, echo=echo, output=output, errors=errors or output)


def test_a_terminal_shows_the_prompt_dim_before_each_output(terminal: Terminal):
    show_chunks(screen(terminal), FakeModel(" a", " b").stream("Once"))
    assert terminal.getvalue() == "\x1b[2mOnce\x1b[0m a\n\x1b[2m---\x1b[0m\n\x1b[2mOnce\x1b[0m b\n"


def test_echo_shows_no_second_prompt_in_a_terminal(terminal: Terminal):
    show_chunks(screen(terminal, echo=True), FakeModel(" a").stream("Once"))
    assert terminal.getvalue() == "\x1b[2mOnce\x1b[0m a\n"


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_plain_terminal_gets_no_escapes(terminal: Terminal, monkeypatch, variables: dict[str, str]):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    show_chunks(screen(terminal), FakeModel(" a").stream("Once"))
    assert terminal.getvalue() == "Once a\n"


def test_control_characters_of_a_model_do_not_reach_the_terminal(terminal: Terminal):
    screen(terminal).text("a\x1b[2Jb\x07\tc\r\n\x9bd é 👑")
    assert terminal.getvalue() == "a[2Jb\tc\nd é 👑"


def test_a_pipe_gets_the_text_as_it_is():
    pipe = io.StringIO()
    screen(pipe).text("a\x1b[2Jb\r\n")
    assert pipe.getvalue() == "a\x1b[2Jb\r\n"


def test_remarks_are_for_people(terminal: Terminal):
    screen(io.StringIO(), errors=terminal).remark("seen")
    assert terminal.getvalue() == "\x1b[2mseen\x1b[0m\n"
    pipe = io.StringIO()
    screen(io.StringIO(), errors=pipe).remark("unseen")
    assert pipe.getvalue() == ""


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        ((" a b c d",), "4 tokens, 8.0 tokens/s, ended by length, seed 7"),
        ((" a",), "1 token, 2.0 tokens/s, ended by length, seed 7"),
        ((" a", " b"), "2 tokens, 4.0 tokens/s, ended by length, seed 7"),
    ],
)
def test_the_closing_line_says_what_it_took_and_how_to_repeat_it(texts: tuple[str, ...], line: str):
    assert summary(FakeModel(*texts, finish_reason="length").generate("Once")) == line

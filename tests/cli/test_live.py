"""A tail behind the text: what a person sees at every moment, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.emulator import Terminal
from tests.cli.fakes import FakeModel, FakeStream, undrawn
from tests.cli.test_terminal import ROOT, TERMINAL
from unspool import Chunk
from unspool.cli.generate import show_chunks
from unspool.cli.live import column_after, fold
from unspool.cli.screen import Screen

Update = tuple[str, str | None]


class Output:
    """Standard output in a terminal."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal, self.written = terminal, ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.written += text
        self.terminal.write(text)

    def flush(self) -> None:
        pass


@pytest.fixture(autouse=True)
def with_styles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        "unspool.cli.screen.terminal_size",
        lambda stream: os.terminal_size((stream.terminal.columns, stream.terminal.lines)),
    )


def opened(columns: int, lines: int, prompt: str = "") -> tuple[Screen, Terminal]:
    terminal = Terminal(columns, lines)
    output: Any = Output(terminal)
    return Screen(prompt=prompt, echo=False, output=output, errors=output), terminal


def written(columns: int, lines: int, text: str, tail: str = "") -> Terminal:
    """The terminal after a program has simply written the text, and the tail in dim."""
    terminal = Terminal(columns, lines)
    terminal.write(f"{text}\x1b[2m{tail}\x1b[0m")
    return terminal


def after(columns: int, lines: int, *updates: Update) -> Terminal:
    screen, terminal = opened(columns, lines)
    for text, tail in updates:
        screen.text(text, tail=tail)
    return terminal


def test_a_tail_stands_dim_behind_the_text_and_is_rewritten_in_place() -> None:
    screen, terminal = opened(20, 5, prompt="Once")
    screen.prompt()
    for text, tail, plain, dim in [
        ("", " a man", "", "Once a man"),
        ("", " a king", "", "Once a king"),
        (" a", " king", " a", "Once king"),
        ("", None, " a", "Once king"),
        (" ki", None, " a ki", "Once king"),
        ("ng", "", " a king", "Once"),
    ]:
        screen.text(text, tail=tail)
        assert terminal.rows() == [(plain, dim)]
    screen.end_line()
    assert terminal.rows() == [(" a king", "Once")]
    assert terminal.place() == (1, 0)


@pytest.mark.parametrize("columns", [20, 80])
def test_a_tail_wraps_and_is_erased_from_all_its_rows(columns: int) -> None:
    words = " and then the king" * 12
    terminal = after(columns, 24, ("Once", words))
    assert terminal.rows() == written(columns, 24, "Once", words).rows()
    assert len(terminal.rows()) == -(-len("Once" + words) // columns)
    assert terminal.place() == (0, 4)
    assert after(columns, 24, ("Once", words), ("", " no")).rows() == [("Once", " no")]
    assert after(columns, 24, ("Once", words), (" more", "")).rows() == [("Once more", "")]


@pytest.mark.parametrize("text", ["x" * 20, "你" * 10, "x" * 19 + "你", "👍" * 10, "e\u0301" * 20])
@pytest.mark.parametrize("tail", [" the king", "你好", "\nking", "\u0301"])
@pytest.mark.parametrize("then", ["king", "\nking", "你"])
def test_a_full_row_loses_no_cell_and_gains_no_empty_row(text: str, tail: str, then: str) -> None:
    """Where a row is full a terminal waits with the wrap; drawing a tail forces it, and erasing must not show."""
    assert after(20, 9, (text, tail), (then, "")).rows() == written(20, 9, text + then).rows()
    screen, terminal = opened(20, 9)
    screen.text(text, tail=tail)
    screen.end_line()
    assert terminal.place() == written(20, 9, text + "\n").place()


def test_wide_characters_take_two_cells_and_none_is_cut_in_two() -> None:
    terminal = after(7, 5, ("国王", "有一个👍女儿"))
    assert terminal.rows() == [("国王", "有"), ("", "一个👍"), ("", "女儿")]
    assert terminal.place() == (0, 4)


def test_marks_join_the_tail_and_never_the_text() -> None:
    assert after(20, 5, ("e", "\u0301e\u0301")).rows() == [("e", "é")]
    assert after(20, 5, ("e", "\u0301e\u0301"), ("", "")).rows() == [("e", "")]


def test_newlines_in_a_tail_begin_rows() -> None:
    terminal = after(20, 5, ("a", "b\n\nc\n"))
    assert terminal.rows() == [("a", "b"), ("", ""), ("", "c")]
    assert terminal.place() == (0, 1)


def test_at_the_bottom_the_screen_scrolls_for_the_tail_and_the_text_goes_on_where_it_was() -> None:
    screen, terminal = opened(20, 4)
    screen.text("1\n2\n3\n4", tail=" and\nfive\nsix")
    assert terminal.gone == [("1", ""), ("2", "")]
    assert terminal.rows()[2:] == [("3", ""), ("4", " and"), ("", "five"), ("", "six")]
    screen.text(" is all", tail="")
    screen.end_line()
    assert terminal.plain() == ["1", "2", "3", "4 is all"]
    assert terminal.place() == (4, 0)


@pytest.mark.parametrize("lines", [1, 2, 4])
def test_a_tail_longer_than_the_screen_is_cut_at_its_end(lines: int) -> None:
    screen, terminal = opened(10, lines)
    screen.text("0\n1\n2", tail="".join(f"\ntail {number}" for number in range(9)))
    assert terminal.dim() == "".join(f"tail{number}" for number in range(lines - 1))
    screen.text("!", tail="")
    assert terminal.rows() == [("0", ""), ("1", ""), ("2!", "")]


def test_control_characters_in_a_tail_do_not_reach_the_terminal() -> None:
    assert after(20, 5, ("a", "b\x1b[2Jc\r\x9bd\te")).rows() == [("a", "b[2Jcd e")]


pieces = st.lists(st.sampled_from(["a", "bc ", "é", "e\u0301", "你", "👍", "\n", "ü ü ü "]), max_size=9).map("".join)
tails = st.none() | st.lists(
    st.sampled_from(["a", "wood ", "é", "e\u0301", "国", "🎉", "\n", "x" * 7]), max_size=30
).map("".join)


@given(
    columns=st.sampled_from([4, 5, 20]),
    lines=st.sampled_from([2, 3, 24]),
    updates=st.lists(st.tuples(pieces, tails), max_size=6),
)
def test_whatever_comes_the_text_is_as_if_there_were_no_tail(columns: int, lines: int, updates: list[Update]) -> None:
    """At every moment; and behind it the tail, as far as it fits."""
    screen, terminal = opened(columns, lines)
    text, tail = "", ""
    for more, now in updates:
        screen.text(more, tail=now)
        text, tail = text + more, tail if now is None else now
        alone = written(columns, 200, text)
        assert terminal.plain() == alone.plain()
        assert terminal.place() == alone.place()
        behind = written(columns, 200, text, tail).dim()
        assert behind.startswith(terminal.dim())
        if lines == 24 and len(tail) < 10:
            assert terminal.dim() == behind
    screen.end_line()
    ended = written(columns, 200, text if text.endswith("\n") or not text else text + "\n")
    assert terminal.rows() == ended.rows()
    assert terminal.place() == ended.place()


@given(text=pieces, column=st.integers(0, 20))
def test_columns_are_counted_as_a_terminal_counts_them(text: str, column: int) -> None:
    terminal = written(20, 50, "x" * column + text)
    assert column_after(text, column, 20) == terminal.cursor.x


def test_rows_begin_in_the_column_given_and_tabs_become_spaces() -> None:
    assert fold("ab\tc\t\nd", 5, 10) == ["ab c ", "d"]
    assert fold("a\tb", 9, 10) == ["a", "b"]
    assert fold("", 3, 10) == [""]
    assert column_after("a\tb", 0, 20) == 9
    assert column_after("a\t\t\t\t", 0, 20) == 19


# --- the command ------------------------------------------------------------------------------------------------


class Wavering(FakeModel):
    """Streams chunks with tails, as a beam search does; the tail changes its mind once."""

    def __init__(self, *chunks: Chunk, error: BaseException | None = None) -> None:
        super().__init__("".join(chunk.text for chunk in chunks if not chunk.index), error=error)
        self.chunks = chunks

    def stream(self, prompt: str, **options: Any) -> FakeStream:
        self.calls.append(("stream", prompt, undrawn(options)))

        def chunks() -> Any:
            yield from self.chunks
            if self.error:
                raise self.error

        return FakeStream(chunks(), self._result(prompt))


WAVERING = (
    Chunk(text="", tentative=" a man who"),
    Chunk(text=" a", token_ids=(1,), tentative=" king"),
    Chunk(text=" king.", token_ids=(2,), tentative="", finish_reason="eos", is_last=True),
)


def test_show_chunks_shows_the_tail_of_the_output_that_is_live() -> None:
    screen, terminal = opened(20, 9)
    chunks = (
        Chunk(text="", tentative=" b", index=1),
        *WAVERING[:2],
        Chunk(text=" b.", index=1, tentative="", finish_reason="eos"),
        WAVERING[2],
    )
    show_chunks(screen, chunks)
    assert terminal.rows() == [(" a king.", ""), ("", "---"), (" b.", "")]
    output: Any = screen._output
    assert "a man who" in output.written
    assert " b\x1b" not in output.written


def test_an_interrupt_takes_the_tail_away() -> None:
    screen, terminal = opened(20, 9)
    with pytest.raises(KeyboardInterrupt):
        show_chunks(screen, Wavering(*WAVERING[:2], error=KeyboardInterrupt()).stream("Once"))
    assert terminal.rows() == [(" a", "")]
    assert terminal.place() == (1, 0)


@pytest.mark.parametrize("cut", range(0, 60, 3))
def test_an_interrupt_takes_away_a_tail_that_was_cut_off_in_its_drawing(cut: int) -> None:
    """At Ctrl-C a terminal discards what it has not shown yet, be it the middle of an escape."""
    screen, terminal = opened(20, 9)
    screen.text("Once", tail=" upon a time")
    output: Any = screen._output
    write, kept = output.terminal.write, [cut]

    def write_some(text: str) -> None:
        write(text[: kept[0]] + "^C")
        output.terminal.write = write

    output.terminal.write = write_some
    screen.text("", tail=" there was a king who")
    screen.end_line()
    assert terminal.rows() == [("Once", "")]
    assert terminal.place() == (1, 0)


def test_a_pipe_asks_for_no_tails(run: Callable[..., Any], use: Callable[..., Any]) -> None:
    model = use(Wavering(*WAVERING))
    assert run("generate", "Once", "--num-beams", "3").out == " a king.\n"
    assert model.calls == [("stream", "Once", {"num_beams": 3})]


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_tails_are_shown_where_they_can_be_told_from_the_text(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    screen, _ = opened(20, 9)
    assert screen.shows_tails == (not variables)
    show_chunks(screen, Wavering(*WAVERING).stream("Once"))
    output: Any = screen._output
    assert ("\x1b" in output.written) == (not variables)
    assert variables == {} or output.written == " a king.\n"


# --- the real thing ---------------------------------------------------------------------------------------------


def in_terminal(*arguments: str, interrupt: bool = False) -> tuple[int, Terminal, str]:
    """Run the command in a pseudo-terminal of 30 columns, Ctrl-C pressed once a tail stands there."""
    import fcntl
    import pty
    import struct
    import termios

    keyboard, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 8, 30, 0, 0))
    environment = {name: value for name, value in TERMINAL.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "unspool.cli.main", "generate", *arguments, "--quiet"],
        stdin=side, stdout=side, stderr=side, cwd=ROOT, env=environment,
    )  # fmt: skip
    os.close(side)
    data, sent = b"", False
    try:
        while True:
            try:
                more = os.read(keyboard, 4096)
            except OSError:  # Linux says so when the last writer has gone
                break
            if not more:
                break
            data += more
            if interrupt and not sent and data.count(b"\x1b8") > 3:
                os.write(keyboard, b"\x03")
                process.send_signal(signal.SIGINT)
                sent = True
        status = process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)
    shown = data.decode().replace("\r\n", "\n")
    terminal = Terminal(30, 8)
    terminal.write(shown)
    return status, terminal, shown


@pytest.mark.model
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a Unix thing")
def test_a_beam_search_in_a_terminal_ends_with_its_text_alone() -> None:
    import unspool

    options: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 30}
    expected = unspool.load().generate("Once upon a time", **options)
    status, terminal, shown = in_terminal("Once upon a time", "--num-beams", "4", "--max-new-tokens", "30")
    assert status == 0
    assert shown.count("\x1b8") > 5, "no tail was shown"
    plain = written(30, 50, f"\x1b[2mOnce upon a time\x1b[0m{expected.text}\n")
    assert terminal.rows() == plain.rows()


@pytest.mark.model
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a Unix thing")
def test_greedy_search_in_a_terminal_has_no_tail() -> None:
    assert "\x1b8" not in in_terminal("Once upon a time", "--max-new-tokens", "8")[2]


@pytest.mark.model
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a Unix thing")
def test_ctrl_c_leaves_no_tail() -> None:
    status, terminal, shown = in_terminal(
        "Once upon a time", "--num-beams", "4", "--max-new-tokens", "600", "--ignore-eos", interrupt=True
    )
    assert status == 130
    assert "Traceback" not in shown
    assert terminal.dim() == "Onceuponatime"
    assert terminal.place()[1] == 0

"""The harness itself: what runs, what is compared, what is refused."""

import textwrap

import pytest

from tests.docs.blocks import BlockError, compare, find_blocks, run_page


def page(text: str) -> str:
    return textwrap.dedent(text).replace("~~~", "```")


def test_python_blocks_of_a_page_share_their_names():
    text = page(
        """
        ~~~python
        total = 40
        ~~~
        words
        ~~~python
        total += 2
        print(total)
        ~~~
        ~~~text output
        42
        ~~~
        """
    )
    assert run_page(text, "page.md") == 2


def test_an_error_names_the_line_of_the_page():
    text = page(
        """\
        # Title

        ~~~python
        value = 1
        value / 0
        ~~~
        """
    )
    with pytest.raises(ZeroDivisionError) as caught:
        run_page(text, "page.md")
    last = caught.traceback[-1]
    assert (str(last.path), last.lineno + 1) == ("page.md", 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("~~~python\nprint(1)\n~~~\n~~~text output\n2\n~~~\n", "page shows"),
        ("~~~text output\n2\n~~~\n", "no python block"),
        ("~~~python no-run\n1 / 0\n~~~\n", "says why"),
        ("~~~python no-rum: slow\n1 / 0\n~~~\n", "unknown words"),
        ("~~~console check\n$ ls\n~~~\n", "only `unspool` commands"),
        ("~~~console\n$ unspool no-such-command\n~~~\n", "ended with 2"),
        ("~~~console check\n$ unspool --version\nunspool 99.0\n~~~\n", "page shows"),
    ],
)
def test_a_page_that_is_wrong_fails(text: str, message: str):
    with pytest.raises(BlockError, match=message):
        run_page(page(text), "page.md")


def test_what_is_not_run_says_why():
    (block,) = find_blocks(page("~~~python no-run: needs the network\n1 / 0\n~~~\n"))
    assert block.reason == "needs the network"
    assert run_page(page("~~~python no-run: needs the network\n1 / 0\n~~~\n~~~bash\nrm\n~~~\n"), "page.md") == 0


def test_a_checked_command_prints_what_the_page_shows():
    assert run_page(page("~~~console check\n$ unspool --version\nunspool ...\n~~~\n"), "page.md") == 1


def test_a_pipe_goes_through_the_shell():
    assert run_page(page("~~~console check\n$ unspool --version | tr a-z A-Z\nUNSPOOL ...\n~~~\n"), "page.md") == 1


@pytest.mark.parametrize(
    ("shown", "printed", "equal"),
    [
        ("one\ntwo\n", "one\ntwo", True),
        ("one  \n", "one\n", True),
        ("one ... three\n", "one two three\n", True),
        ("one\n", "one\ntwo\n", False),
        ("one\n", "two\n", False),
    ],
)
def test_comparison(shown: str, printed: str, equal: bool):
    if equal:
        compare(shown, printed, "page.md:1")
    else:
        with pytest.raises(BlockError):
            compare(shown, printed, "page.md:1")

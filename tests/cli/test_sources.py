"""Where a prompt comes from."""

import pytest

from tests.cli.fakes import FakeModel


@pytest.fixture
def prompt_of(run, use):
    """Return the prompt the model is given, or the error line."""

    def call(*arguments: str, piped: str | bytes = "") -> str:
        model = use(FakeModel())
        done = run("generate", *arguments, piped=piped)
        return model.calls[0][1] if model.calls else done.err

    return call


@pytest.mark.parametrize(
    ("raw", "prompt"),
    [
        (b"Once", "Once"),
        (b"Once\n", "Once"),
        (b"Once\r\n", "Once"),
        (b"Once\n\n", "Once\n"),
        (b" Once ", " Once "),
        ("Es war König 👑\n".encode(), "Es war König 👑"),
        (b"\xef\xbb\xbfOnce", "Once"),
        (b"Once\xff", "is not UTF-8 text: byte 4 does not fit"),
    ],
)
def test_files_and_pipes_are_read_alike(prompt_of, tmp_path, raw: bytes, prompt: str):
    file = tmp_path / "prompt.txt"
    file.write_bytes(raw)
    for got in (
        prompt_of("--prompt-file", str(file)),
        prompt_of("--prompt-file", "-", piped=raw),
        prompt_of("-", piped=raw),
        prompt_of(piped=raw),
    ):
        assert got == prompt or (got.startswith("Error: ") and prompt in got)


def test_an_argument_is_taken_as_it_is_even_when_empty(prompt_of):
    assert prompt_of(" Once\n", piped="something else") == " Once\n"
    assert prompt_of("", piped="something else") == ""
    assert prompt_of("--", "--echo") == "--echo"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the prompt is missing"),
        (["Once", "--prompt-file", "-"], "given twice"),
        (["--prompt-file", "no/such/file"], "no/such/file: No such file or directory"),
    ],
)
def test_a_missing_prompt_is_told(prompt_of, arguments: list[str], message: str):
    assert message in prompt_of(*arguments)


def test_a_closed_standard_input_is_no_prompt(run, use, monkeypatch):
    from unspool.cli.sources import read_prompt
    from unspool.errors import PromptError

    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(PromptError, match="the prompt is missing"):
        read_prompt(None, None)

"""`unspool generate`: what goes to the model, what comes out where."""

import json

import pytest

from tests.cli.fakes import FakeModel
from unspool.errors import ModelError, OptionError

DEFAULT_DECODER_PROMPT = {
    "dtype": None,
    "device": None,
    "quantize": None,
    "gguf_file": None,
    "tokenizer": None,
    "threads": None,
}
TALE = " there was a king"


def test_it_streams_and_ends_the_line(run, use):
    model = use(FakeModel(TALE))
    done = run("generate", "Once")
    assert (done.status, done.out, done.err) == (0, " there was a king\n", "")
    assert model.calls == [("stream", "Once", {})]
    assert model.loaded == (None, DEFAULT_DECODER_PROMPT)


def test_a_text_that_ends_its_line_gets_no_second_one(run, use):
    use(FakeModel(" a king.\n"))
    assert run("generate", "Once").out == " a king.\n"


def test_all_at_once_prints_the_same(run, use):
    model = use(FakeModel(TALE))
    assert run("generate", "Once", "--no-stream").out == " there was a king\n"
    assert model.calls[0][0] == "generate"


@pytest.mark.parametrize("form", ["--stream", "--no-stream"])
def test_a_pipe_gets_the_prompt_only_with_echo(run, use, form: str):
    use(FakeModel(TALE))
    assert run("generate", "Once", "--echo", form).out == "Once there was a king\n"


@pytest.mark.parametrize("form", ["--stream", "--no-stream"])
def test_several_outputs_come_one_after_the_other_though_they_are_made_together(run, use, form: str):
    use(FakeModel(" one two three four", " a b", "", " x y z"))
    assert run("generate", "Once", form).out == " one two three four\n---\n a b\n---\n---\n x y z\n"


def test_json_is_the_whole_result(run, use):
    use(FakeModel(" es war einmal ein König 👑"))
    done = run("generate", "Once", "--json")
    result = json.loads(done.out)
    assert result["text"] == " es war einmal ein König 👑"
    assert "👑" in done.out
    assert (result["seed"], result["completions"][0]["finish_reason"]) == (7, "eos")


def test_the_flags_of_the_model_are_passed_on(run, use):
    model = use(FakeModel())
    run(
        "generate",
        "Once",
        "--model",
        "some/folder",
        "--dtype",
        "bfloat16",
        "--device",
        "cpu",
        "--quantize",
        "int8",
        "--threads",
        "2",
        "--gguf-file",
        "x.gguf",
    )
    assert model.loaded == (
        "some/folder",
        {
            **DEFAULT_DECODER_PROMPT,
            "dtype": "bfloat16",
            "device": "cpu",
            "quantize": "int8",
            "threads": 2,
            "gguf_file": "x.gguf",
        },
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ModelError("no folder and no hub id: nowhere"), "Error: no folder and no hub id: nowhere\n"),
        (OptionError("top_k", -1, "must be at least 1", "use 0"), "Error: --top-k must be at least 1, got -1; use 0\n"),
        (OSError("a text\nof two lines"), "Error: OSError: a text of two lines (--debug shows the traceback)\n"),
        (RuntimeError("boom"), "Error: RuntimeError: boom (--debug shows the traceback)\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("form", ["--stream", "--no-stream", "--json"])
def test_an_error_is_one_line_after_the_text_there_was(run, use, form: str, error: Exception, line: str):
    use(FakeModel(TALE, error=error))
    done = run("generate", "Once", form)
    assert (done.status, done.err) == (2, line)
    assert done.out in ("", " \n")


def test_debug_shows_where_an_error_comes_from(run, use):
    use(FakeModel(TALE, error=RuntimeError("boom")))
    done = run("generate", "Once", "--debug")
    assert done.status == 2
    assert "Traceback" in done.err
    assert "fakes.py" in done.err
    assert done.err.endswith("Error: RuntimeError: boom (--debug shows the traceback)\n")


def test_ctrl_c_ends_the_line_tells_the_seed_and_exits_with_130(run, use):
    use(FakeModel(" there", error=KeyboardInterrupt()))
    done = run("generate", "Once")
    assert (done.status, done.err) == (130, "Interrupted: --seed 99 repeats this run\n")
    assert done.out.endswith("\n")

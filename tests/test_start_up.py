"""What stands between a command and its first token: modules, and collections of garbage where there is none."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from typing import Any

import pytest

from unspool.startup import gc_paused

# What a small decoder has no use for: other kinds of models, other doors, packages of weights it does not have.
NEEDLESS = (
    "torchvision",
    "torchaudio",
    "torchao",
    "bitsandbytes",
    "sklearn",
    "scipy",
    "pandas",
    "tensorflow",
    "jax",
    "numpy.ma",
    "IPython",
    "llguidance",
    "rich",
    "typer",
    "transformers.pipelines",
    "transformers.trainer",
    "transformers.image_processing_utils",
    "transformers.models.auto.processing_auto",
    "transformers.models.auto.image_processing_auto",
    "transformers.models.whisper",
    "transformers.models.gpt2.modeling_gpt2",
    "unspool.cli",
    "unspool.functional",
    "unspool.interop",
    "unspool.pipelines",
    "unspool.runtimes.seq2seq.runtime",
    "unspool.runtimes.generic.runtime",
    "unspool.runtimes.generic.long_rope",
    "unspool.runtimes.decoder.cuda_graphs",
    "unspool.runtimes.decoder.capture",
)

FIRST_TOKEN = f"""
import gc, json, sys
seen = []
gc.callbacks.append(lambda phase, info: seen.append(phase))
import unspool
del seen[:]
load = unspool.load
during = len(seen)
young, old = (len(gc.get_objects(generation=n)) for n in (0, 2))
chunk = next(iter(load().stream("Once upon", max_new_tokens=1)))
needless = [name for name in {NEEDLESS!r} if name in sys.modules]
print(json.dumps(dict(text=chunk.text, during=during, young=young, old=old, on=gc.isenabled(), needless=needless)))
"""


def run(code: str) -> Any:
    """Run the code in a Python of its own; return what it printed, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def first_token() -> Any:
    return run(FIRST_TOKEN)


@pytest.mark.model
def test_the_embedded_model_writes_without_what_it_has_no_use_for(first_token: Any) -> None:
    assert first_token["text"]
    assert first_token["needless"] == []


@pytest.mark.model
def test_no_garbage_is_looked_for_while_pytorch_and_transformers_are_imported(first_token: Any) -> None:
    assert first_token["during"] == 0
    assert first_token["on"]
    # What came is counted as old, or the next collection would walk all of it.
    assert first_token["young"] < first_token["old"] / 10


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_collector_runs_again_after_an_import_that_failed() -> None:
    with pytest.raises(ImportError), gc_paused():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_what_was_frozen_stays_frozen() -> None:
    report = "before = gc.get_freeze_count(); unspool.OptionError; print(gc.get_freeze_count() - before)"
    assert run(f"import gc, unspool; gc.freeze(); {report}") == 0
    assert run(f"import gc, unspool; {report}") == 0


def test_a_command_leaves_nothing_to_collect_but_a_call_from_python_does() -> None:
    code = """
import gc, sys
from unspool.cli.main import main
sys.argv = ["unspool", "--version"]
sys.stdout, out = sys.stderr, sys.stdout
assert main(["--version"]) == 0
called = gc.get_freeze_count()
assert main() == 0
print([called, gc.get_freeze_count()], file=out)
"""
    called, ended = run(code)
    assert called == 0
    assert ended > 1000

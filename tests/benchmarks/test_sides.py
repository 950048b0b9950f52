"""Unspool and transformers, as the suite calls them, write the same on the same checkpoint."""

from pathlib import Path

import pytest

from benchmarks.checkpoints import as_ids, as_text, checkpoints, prepare, tokenizer_folder, weights_read
from benchmarks.prompts import mixed_prompts, prompt
from benchmarks.sides.side import Side, side_of
from benchmarks.work import Work
from benchmarks.worker import Worker

SIZE = checkpoints(quick=True)["gpt2-float32"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "tiny"
    from benchmarks.checkpoints import write

    write(SIZE, folder)
    return folder


@pytest.fixture(scope="module")
def sides(checkpoint: Path) -> tuple[Side, Side]:
    import torch

    loaded = tuple(side_of(name, torch.get_num_threads()) for name in ("unspool", "transformers"))
    for side in loaded:
        side.load(checkpoint, {})
    return loaded


@pytest.mark.parametrize(
    "work",
    [
        Work(prompts=(prompt(SIZE, 32),), new_tokens=6),
        Work(prompts=(prompt(SIZE, 32),), new_tokens=6, options={"num_beams": 5}),
        Work(prompts=mixed_prompts(SIZE, 16), new_tokens=4),
        Work(prompts=mixed_prompts(SIZE, 8), new_tokens=4, batch_size=4, text=True),
        Work(prompts=(prompt(SIZE, 300),), new_tokens=4, watch_first=True),
    ],
    ids=["greedy", "beams", "batch", "texts", "long"],
)
def test_both_write_the_same(work: Work, sides: tuple[Side, Side]):
    ours, theirs = (side.run(work) for side in sides)
    assert ours.token_ids == theirs.token_ids
    assert [len(ids) for ids in ours.token_ids] == [work.new_tokens] * len(work.prompts)
    assert (ours.first_seconds is not None) == (theirs.first_seconds is not None) == work.watch_first


def test_passes_are_counted(sides: tuple[Side, Side]):
    work = Work(prompts=mixed_prompts(SIZE, 8), new_tokens=4, batch_size=4)
    ours, theirs = (side.run(work) for side in sides)
    assert theirs.passes == 2 * 4  # two batches
    # all at once; prompts longer than the token budget of a pass take another one
    assert ours.passes is not None and 4 <= ours.passes <= 6
    assert ours.parts["forward"] > 0 and ours.parts["steps"] >= 4


def test_a_worker_times_the_work_and_nothing_else(checkpoint: Path):
    worker = Worker("bandwidth", 1)
    loaded = worker.answer({"do": "load", "checkpoint": str(checkpoint), "options": {"bytes": 2**20}})
    assert "1 MiB" in loaded["info"]
    answer = worker.answer({"do": "run", "work": Work(prompts=(), new_tokens=0).to_dict()})
    # five readings lie within the time
    assert answer["parts"]["bytes_per_second"] * answer["seconds"] > 5 * 2**20
    again = worker.answer(
        {
            "do": "run",
            "work": Work(prompts=(), new_tokens=0).to_dict(),
            "before": Work(prompts=(), new_tokens=0).to_dict(),
        }
    )
    assert again["parts"]["bytes_per_second"] * again["seconds"] > 5 * 2**20
    wrong = worker.answer({"do": "run", "work": {"prompts": [], "new_tokens": 1, "unknown": 2}})
    assert "unknown" in wrong["error"]


def test_the_weights_that_a_pass_reads_are_counted(checkpoint: Path):
    # the tied head, and in each layer attention (4 squares) and MLP (8 squares); positions are looked up
    assert weights_read(checkpoint) == 1000 * 128 + 2 * 12 * 128 * 128


def test_words_are_token_ids(checkpoint: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(checkpoint))
    ids = [17, 10, 999, 101]
    assert tokenizer(as_text(ids)).input_ids == ids == as_ids(tokenizer.decode(ids))


def test_a_written_checkpoint_is_not_written_again(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("benchmarks.checkpoints.folder_of", lambda *given, **further: checkpoint)
    monkeypatch.setattr("subprocess.run", lambda *given, **further: pytest.fail("it was"))
    assert prepare(SIZE, tmp_path, quick=True) == checkpoint

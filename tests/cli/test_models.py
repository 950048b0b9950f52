"""`unspool models`: what is embedded, what is cached, and what neither holds."""

import json
from pathlib import Path

import pytest

from unspool.cli import inventory
from unspool.cli.inventory import cached_models, count_parameters, embedded_models


def write_weights(folder: Path, shapes: dict[str, list[int]], name: str = "model.safetensors") -> None:
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: torch.zeros(shape, dtype=torch.float16) for key, shape in shapes.items()}
    save_file(tensors, folder / name, metadata={"format": "pt"})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the Hugging Face cache lie here, empty, and no other package bring a model."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("unspool.cli.models.installed_models", list)
    return folder


def add_to_cache(cache: Path, kind: str, name: str, shapes: dict[str, list[int]]) -> None:
    repository = cache / f"{kind}s--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    write_weights(repository / "snapshots" / commit, shapes)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)


def test_parameters_are_counted_over_all_files_without_reading_the_weights(tmp_path: Path):
    write_weights(tmp_path, {"a": [3, 4], "b": [5]}, "model-00001-of-00002.safetensors")
    write_weights(tmp_path, {"c": [2, 2, 2], "scalar": []}, "model-00002-of-00002.safetensors")
    assert count_parameters(tmp_path) == 12 + 5 + 8 + 1


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", b"\x05" + bytes(7) + b"hello"])
def test_a_file_that_is_no_safetensors_file_counts_as_unknown(tmp_path: Path, content: bytes):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert count_parameters(tmp_path) is None


def test_a_folder_without_weights_counts_as_unknown(tmp_path: Path):
    assert count_parameters(tmp_path) is None


def test_the_embedded_model_comes_before_its_draft(tmp_path: Path):
    write_weights(tmp_path / "tale" / "draft", {"a": [10]})
    write_weights(tmp_path / "tale", {"a": [1000]})
    (tmp_path / "tale" / "figures.json").write_text('{"tale": {"bits_per_byte_valid": 1.5}}')
    tale, draft = embedded_models(tmp_path / "tale")
    assert (tale.title, tale.name, tale.parameters, tale.bits_per_byte) == ("tale", None, 1000, 1.5)
    assert (draft.title, draft.name, draft.parameters, draft.bits_per_byte) == (
        "tale-draft",
        "tale-draft",
        10,
        None,
    )
    assert tale.size > 2000


def test_the_cache_lists_models_only(cache: Path):
    add_to_cache(cache, "model", "someone/tiny", {"a": [7, 100]})
    add_to_cache(cache, "dataset", "someone/words", {"a": [1]})
    (model,) = cached_models()
    assert (model.title, model.name, model.place, model.parameters) == ("someone/tiny", "someone/tiny", "cached", 700)


def test_no_cache_is_no_error(cache: Path):
    cache.rmdir()
    assert cached_models() == []


def test_the_table_is_plain_in_a_pipe_and_cuts_no_name(run, cache: Path, tmp_path: Path, monkeypatch):
    write_weights(tmp_path / "tale", {"a": [1200]})
    monkeypatch.setattr("unspool.cli.models.embedded_models", lambda: embedded_models(tmp_path / "tale"))
    add_to_cache(cache, "model", "someone/" + "long-name-" * 9, {"a": [2, 1000000]})
    done = run("models")
    assert (done.status, done.err) == (0, "")
    head, tale, cached = done.out.splitlines()
    assert head.split() == ["MODEL", "WHERE", "PARAMETERS", "ON", "DISK", "BITS", "PER", "BYTE"]
    assert tale.split() == ["tale", "embedded", "1.2k", "2.5", "kB"]
    assert cached.split() == ["someone/" + "long-name-" * 9, "cached", "2.0M", "4.0", "MB"]


def test_a_copy_without_the_embedded_model_says_so(run, cache: Path, monkeypatch):
    monkeypatch.setattr("unspool.cli.models.embedded_models", list)
    done = run("models")
    assert done.status == 0
    assert "lacks the embedded model" in done.err


def test_json(run, cache: Path, tmp_path: Path, monkeypatch):
    write_weights(tmp_path / "tale", {"a": [1200]})
    monkeypatch.setattr("unspool.cli.models.embedded_models", lambda: embedded_models(tmp_path / "tale"))
    (tale,) = json.loads(run("models", "--json").out)
    assert tale["parameters"] == 1200
    assert tale["place"] == "embedded"
    assert tale["folder"] == str(tmp_path / "tale")


@pytest.mark.model
def test_the_embedded_model_of_this_package_is_found():
    tale = embedded_models(inventory.EMBEDDED)[0]
    assert tale.title == "tale"
    assert tale.parameters is not None
    assert tale.parameters > 1_000_000
    assert tale.bits_per_byte is not None

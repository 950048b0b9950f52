"""Several configs in one folder, and the hub: a fake one, since no test leaves this machine."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from rich.console import Console

from tests.toys import toy
from unspool import LanguageModel, ModelError, OptionError
from unspool.config import UNSET, GenerationConfig


class FakeHub:
    """Takes the place of HfApi: keeps what is uploaded in a folder, and the arguments of each call."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.token = folder, [], None

    def __call__(self, *, token: Any) -> FakeHub:
        self.token = token
        return self

    def create_repo(self, repo_id: str, **options: Any) -> SimpleNamespace:
        self.calls.append(("create_repo", repo_id, options))
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def upload_file(self, *, path_or_fileobj: bytes, path_in_repo: str, repo_id: str, **options: Any) -> Any:
        self.calls.append(("upload_file", repo_id, options))
        path = self.folder / repo_id / path_in_repo
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path_or_fileobj)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def download(self, repo_id: str, filename: str, *, subfolder: str | None, **options: Any) -> str:
        self.calls.append(("download", repo_id, options))
        return str(self.folder / repo_id / (subfolder or "") / filename)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.download)
    yield fake


def test_several_configs_live_in_one_folder_and_are_loaded_by_name(tmp_path: Path) -> None:
    GenerationConfig(num_beams=2, max_new_tokens=4).save_pretrained(tmp_path, "translation.json")
    GenerationConfig(temperature=0.7, max_new_tokens=6).save_pretrained(tmp_path, "story.json")
    GenerationConfig(max_new_tokens=2).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "generation_config.json", "story.json", "translation.json"
    ]  # fmt: skip
    lm = LanguageModel(toy())
    found = lm.generate([0], config=GenerationConfig.from_pretrained(tmp_path, "translation.json"))
    assert found.strategy == "beam"
    assert found.completions == lm.generate([0], num_beams=2, max_new_tokens=4).completions
    assert lm.generate([0], config=GenerationConfig.from_pretrained(tmp_path, "story.json")).strategy == "sample"
    with pytest.raises(
        ModelError, match=r"does not contain tale\.json; it contains generation_config\.json, story\.json, trans"
    ):
        GenerationConfig.from_pretrained(tmp_path, "tale.json")


def test_a_subfolder_counts_and_options_come_before_the_file(tmp_path: Path) -> None:
    GenerationConfig(top_k=5, temperature=0.5).save_pretrained(tmp_path / "inner", "a.json")
    config = GenerationConfig.from_pretrained(tmp_path, "a.json", subfolder="inner", top_k=9, top_p=0.5)
    assert config == GenerationConfig(top_k=9, temperature=0.5, top_p=0.5)
    with pytest.raises(OptionError, match="`top_kk` is not an option.*did you mean `top_k`"):
        GenerationConfig.from_pretrained(tmp_path, "a.json", subfolder="inner", top_kk=9)


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is a file; a config is saved into a folder"):
        GenerationConfig().save_pretrained(tmp_path / "file")


def test_an_extra_that_is_no_json_is_named(tmp_path: Path) -> None:
    config = GenerationConfig.from_stored({"helper": object()})
    with pytest.raises(ModelError, match="cannot be written as JSON: object"):
        config.save_pretrained(tmp_path)


def test_a_config_pushed_to_the_hub_comes_back(hub: FakeHub) -> None:
    config = GenerationConfig(num_beams=4, sequence_bias={(5, 7): -2.0}, top_k=None)
    address = config.push_to_hub("stories", "translation.json", private=True, token="t", commit_message="four beams")
    assert address == "https://hub/me/stories/commit/1"
    assert hub.token == "t"
    commit = {"commit_message": "four beams", "commit_description": None, "revision": None, "create_pr": False}
    assert hub.calls == [
        ("create_repo", "stories", {"private": True, "exist_ok": True}),
        ("upload_file", "me/stories", commit),
    ]
    back = GenerationConfig.from_pretrained("me/stories", "translation.json", revision="main", cache_dir="c")
    assert back == config.replace(top_k=0)
    assert hub.calls[-1][2]["revision"] == "main" and hub.calls[-1][2]["cache_dir"] == "c"


def test_the_defaults_of_a_push_name_the_file(hub: FakeHub) -> None:
    GenerationConfig(max_new_tokens=5).push_to_hub("you/model", revision="dev", create_pr=True)
    assert json.loads((hub.folder / "you/model/generation_config.json").read_text()) == {"max_new_tokens": 5}
    assert hub.calls[-1][2] == {
        "commit_message": "Upload generation_config.json",
        "commit_description": None,
        "revision": "dev",
        "create_pr": True,
    }


def test_saving_can_push_as_well(hub: FakeHub, tmp_path: Path) -> None:
    config = GenerationConfig(max_new_tokens=5)
    config.save_pretrained(tmp_path / "my-model", push_to_hub=True, private=False)
    assert (hub.folder / "me/my-model/generation_config.json").read_bytes() == (
        tmp_path / "my-model/generation_config.json"
    ).read_bytes()
    config.save_pretrained(tmp_path / "my-model", "a.json", push_to_hub=True, repo_id="you/other")
    assert (hub.folder / "you/other/a.json").exists()
    with pytest.raises(OptionError, match="`repo_id` is read only together with `push_to_hub`"):
        config.save_pretrained(tmp_path, repo_id="you/other")


def test_what_the_hub_refuses_is_said_in_one_line() -> None:
    with pytest.raises(ModelError, match=r"cannot upload generation_config\.json to 'me/model': ") as caught:
        GenerationConfig().push_to_hub("me/model", token="t")  # tests are offline
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="cannot upload .* to 'no//name'"):
        GenerationConfig().push_to_hub("no//name")


def test_a_difference_prints_as_a_table() -> None:
    stored = GenerationConfig(top_k=50, top_p=0.9, eos_token_id=2)
    config = GenerationConfig(top_k=None, temperature=0.7, top_p=0.9, num_beams=4, eos_token_id=2)
    difference = config.diff(stored)
    assert difference == {"num_beams": (4, UNSET), "temperature": (0.7, UNSET), "top_k": (None, 50)}
    assert str(difference).splitlines() == [
        "option       here  there",
        "num_beams    4     not given (1)",
        "temperature  0.7   not given",
        "top_k        off   50",
    ]
    assert str(config.diff(config)) == "no differences"


def test_a_difference_prints_the_same_through_rich_and_shortens_nothing_there() -> None:
    config = GenerationConfig(stop_strings=["[bold]" + "x" * 60])
    difference = config.diff(GenerationConfig())
    with io.StringIO() as text:
        Console(file=text, width=120).print(difference)
        assert "[bold]" + "x" * 60 in text.getvalue()
    assert str(difference).splitlines()[1] == "stop_strings  ('[bold]" + "x" * 31 + "…  not given"

"""Settings of the server from flags and a TOML file."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

import unspool
from tests.serving.test_tools import CALL, RESPONSE, TEMPLATE, TOOLS
from unspool.cli.serve import _greet
from unspool.cli.sources import ModelChoice
from unspool.errors import OptionError
from unspool.runtimes.toy import ToyRuntime
from unspool.serving.response_template import set_response_template
from unspool.serving.settings import ModelSettings, Settings, read_settings


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(
        'port = 8080\napi_key = ["a", "b"]\nmodel = "tale"\nmax_cache_tokens = 4096\nassistant_model = ["tale-draft"]\n'
    )
    settings, models, choice = read_settings(file, {"port": 9, "threads": 1}, Settings, ModelSettings, ModelChoice)
    assert settings == Settings(port=9, api_key=("a", "b"))
    assert models == ModelSettings(max_cache_tokens=4096, assistant_model=("tale-draft",))
    assert models.limits() == {"max_cache_tokens": 4096}
    assert choice == ModelChoice(model="tale", threads=1)
    assert read_settings(None, {}, Settings) == [Settings()]


@pytest.mark.parametrize(
    ("text", "option", "told"),
    [
        ("prot = 1", "prot", "did you mean `port`"),
        ("port = -1", "port", "at least 0"),
        ('port = "many"', "port", "integer"),
        ("max_cache_tokens = 0", "max_cache_tokens", "at least 1"),
        ('unknown_fields = "drop"', "unknown_fields", "'error' or 'warn'"),
        ("port", "config", "TOML"),
    ],
)
def test_a_fault_in_the_file_is_named(tmp_path: Path, text: str, option: str, told: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    with pytest.raises(OptionError, match=told) as caught:
        read_settings(file, {}, Settings, ModelSettings, ModelChoice)
    assert caught.value.option == option


def test_a_response_template_is_a_file_or_json(tmp_path: Path) -> None:
    lm = unspool.load()
    set_response_template(lm.tokenizer, json.dumps(RESPONSE))
    assert lm.tokenizer.response_template == RESPONSE
    file = tmp_path / "template.json"
    file.write_text(json.dumps({**RESPONSE, "defaults": {}}))
    set_response_template(lm.tokenizer, str(file))
    assert lm.tokenizer.response_template["defaults"] == {}
    for wrong in ("{", "{}", '{"fields": {"a": {"opened": "x"}}, "start_anchor": "y"}'):
        with pytest.raises(OptionError, match="must be a response template of transformers"):
            set_response_template(lm.tokenizer, wrong)
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe{")
    with pytest.raises(OptionError, match="must be a response template of transformers"):
        set_response_template(lm.tokenizer, str(binary))
    with pytest.raises(OptionError, match="needs a tokenizer"):
        set_response_template(None, "{}")
    with pytest.raises(OSError):
        set_response_template(lm.tokenizer, str(tmp_path / "absent.json"))


def test_the_template_of_the_docs_finds_calls_and_reasoning() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    lm = unspool.load()
    set_response_template(lm.tokenizer, page.partition("```json\n")[2].partition("```")[0])
    text = f"<think>Rome is far.</think>{CALL}<|im_end|>"
    message = lm.tokenizer.parse_response(text, prefix="<|im_start|>assistant\n", tools=TOOLS)
    assert message["reasoning_content"] == "Rome is far."
    assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"place": "Rome"}}


@pytest.mark.model
def test_a_server_of_a_file_serves_tools_and_bounds_its_cache(tmp_path: Path) -> None:
    lm = unspool.load()
    lm.tokenizer.chat_template = TEMPLATE
    lm.save_pretrained(tmp_path / "model")
    (tmp_path / "template.json").write_text(json.dumps(RESPONSE))
    lines = {
        "model": str(tmp_path / "model"), "served_model_name": ["m"], "port": 0, "threads": 1,
        "response_template": str(tmp_path / "template.json"), "max_cache_tokens": 300, "max_sequences": 2,
    }  # fmt: skip
    file = tmp_path / "server.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()))
    command = [sys.executable, "-m", "unspool.cli.main", "serve", "--config", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            while "Serving m at" not in line:
                assert line or process.poll() is None, "the server did not start"
                line = process.stderr.readline()
            with openai.OpenAI(base_url=line.split()[-1], api_key="none", max_retries=0) as client:
                call: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "The weather?"}]}
                answer = client.chat.completions.create(**call, tools=TOOLS, tool_choice="required", max_tokens=99)
                assert answer.choices[0].finish_reason == "tool_calls"
                with pytest.raises(openai.BadRequestError, match="the limit of .* is 300") as caught:
                    client.chat.completions.create(**call, max_tokens=400)
                assert caught.value.code == "capacity_exceeded"
                with pytest.raises(openai.BadRequestError, match="3 sequences"):
                    client.chat.completions.create(**call, max_tokens=9, extra_body={"num_beams": 3})
        finally:
            process.terminate()
        process.stderr.read()
        assert process.wait(30) == 0


def test_the_lines_to_try_read_the_key_from_a_variable(capsys: pytest.CaptureFixture[str]) -> None:
    lm = unspool.LanguageModel(ToyRuntime(lambda tokens: [1.0, 1.0], 2))
    _greet(lm, Settings(api_key=("secret",)), 8000)
    told = capsys.readouterr().err
    assert '-H "Authorization: Bearer $UNSPOOL_API_KEY"' in told and "secret" not in told
    (python,) = (shlex.split(line)[-1] for line in told.splitlines() if "python -c" in line)
    assert "os.environ['UNSPOOL_API_KEY']" in ast.unparse(ast.parse(python))
    _greet(lm, Settings(), 8000)
    told = capsys.readouterr().err
    assert "UNSPOOL_API_KEY" not in told and 'api_key="none"' in told

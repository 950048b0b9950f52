"""The rules of the HTTP API: fields, errors, headers and the routes about the server."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.serving.conftest import serving

httpx = pytest.importorskip("httpx2", reason="comes with openai")

pytestmark = pytest.mark.model

BASE: dict[str, Any] = {"model": "tale", "prompt": "Once", "max_tokens": 2, "temperature": 0}


def post(address: str, body: Any, path: str = "/v1/completions", **more: Any) -> Any:
    return httpx.post(f"{address}{path}", json=body, timeout=60, **more)


# Bodies as well-known programs send them by default.
CLIENTS: dict[str, dict[str, Any]] = {
    "LangChain's text model": {
        **BASE, "temperature": 0.7, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0, "n": 1, "seed": None,
        "logprobs": None,
    },
    "promptfoo": {
        **BASE, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "best_of": 1,
        "stop": ["<|im_end|>", "<|endoftext|>"],
    },
    "lm-eval, scoring": {
        "model": "tale", "prompt": [[5, 6, 7]], "max_tokens": 1, "temperature": 0, "seed": 1234, "logprobs": 1,
        "echo": True,
    },
    "lm-eval, generating": {
        "model": "tale", "prompt": [[5, 6, 7], [8, 9]], "max_tokens": 2, "temperature": 0, "seed": 1234,
        "stop": ["\n\n", "Q:"],
    },
    "Open WebUI": {**BASE, "user": {"name": "Ann", "id": "1", "role": "user"}, "metadata": {"chat_id": "3"}},
    "continue": {**BASE, "stop": ["a1", "b2", "c3", "d4", "e5", "f6", "g7", "h8"]},
    "neutral values": {
        **BASE, "echo": False, "logit_bias": {}, "suffix": "", "n": 1, "best_of": 1, "stop": [], "min_p": 0,
        "repetition_penalty": 1.0, "top_k": -1, "min_tokens": 0, "skip_special_tokens": True, "store": False,
        "response_format": {"type": "text"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CLIENTS)
def test_bodies_of_well_known_programs_are_answered(address: str, name: str) -> None:
    answer = post(address, CLIENTS[name])
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"]


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({**BASE, "temprature": 1}, "temprature"),
    "wrong type": ({**BASE, "max_tokens": "many"}, "max_tokens"),
    "boolean for a number": ({**BASE, "max_tokens": True}, "max_tokens"),
    "out of range": ({**BASE, "temperature": 0.5, "top_p": 7}, "top_p"),
    "missing": ({"model": "tale"}, "prompt"),
    "empty list": ({**BASE, "prompt": []}, "prompt"),
    "id outside the vocabulary": ({**BASE, "prompt": [999999]}, "prompt"),
    "too long": ({**BASE, "prompt": [5] * 2000}, "prompt"),
    "too many stops": ({**BASE, "stop": ["x"] * 17}, "stop"),
    "too many outputs": ({**BASE, "n": 65, "temperature": 1}, "n"),
    "n of greedy": ({**BASE, "n": 2}, "n"),
    "best_of below n": ({**BASE, "n": 3, "best_of": 2, "temperature": 1}, "best_of"),
    "best_of in a stream": ({**BASE, "best_of": 2, "temperature": 1, "stream": True}, "best_of"),
    "too many logprobs": ({**BASE, "logprobs": 99}, "logprobs"),
    "bias outside the vocabulary": ({**BASE, "logit_bias": {"999999": 1}}, "logit_bias"),
    "option of Unspool": ({**BASE, "num_beams": 0}, "num_beams"),
    "unread option": ({**BASE, "length_penalty": 2.0}, "length_penalty"),
    "draft model": ({**BASE, "assistant": "nobody"}, "assistant"),
    "suffix": ({**BASE, "suffix": " end"}, "suffix"),
    "response_format": ({**BASE, "response_format": {"type": "xml"}}, "response_format.type"),
    "structured_outputs": ({**BASE, "structured_outputs": {"jsn": "{}"}}, "structured_outputs.jsn"),
    "contradiction": ({**BASE, "max_new_tokens": 3}, "max_new_tokens"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_names_its_field(address: str, name: str) -> None:
    body, param = FAULTS[name]
    answer = post(address, body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error" and error["message"]


def test_a_too_long_prompt_is_told_in_the_words_that_clients_look_for(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 1024 tokens") as caught:
        client.completions.create(model="tale", prompt=[5] * 1024)
    assert caught.value.code == "context_length_exceeded"


def test_an_unknown_field_gets_the_nearest_name(address: str) -> None:
    assert "did you mean `temperature`?" in post(address, {**BASE, "temprature": 1}).json()["error"]["message"]


def test_a_body_must_be_json_with_its_type(address: str) -> None:
    url = f"{address}/v1/completions"
    kind = {"Content-Type": "application/json"}
    assert httpx.post(url, content=b"{", headers=kind).status_code == 400
    assert httpx.post(url, content=b'{"model": NaN}', headers=kind).json()["error"]["code"] == "invalid_json"
    assert httpx.post(url, content=b"[1]", headers=kind).status_code == 400
    assert httpx.post(url, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert httpx.post(url, content=b"[" * 100_000, headers=kind).status_code == 400
    large = httpx.post(url, content=b'{"prompt": "' + b"x" * (5 << 20), headers=kind)
    assert large.status_code == 413 and large.json()["error"]["type"] == "invalid_request_error"


def test_other_hosts_routes_and_models_are_refused(address: str) -> None:
    assert httpx.get(f"{address}/v1/models", headers={"Host": "evil.example"}).status_code == 403
    missing = httpx.get(f"{address}/v1/nothing")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "not_found"
    unknown = post(address, {**BASE, "model": "gpt-5"})
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
    assert "tale" in unknown.json()["error"]["message"]


def test_a_request_id_comes_back(address: str) -> None:
    assert httpx.get(f"{address}/health", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert len(httpx.get(f"{address}/health").headers["x-request-id"]) > 8


def test_routes_about_the_server(address: str, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tale"]
    assert client.models.retrieve("tale").id == "tale"
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    assert httpx.get(f"{address}/version").json()["version"]
    text = httpx.get(f"{address}/metrics").text
    assert "unspool_num_requests_running" in text and "unspool_generation_tokens_total" in text
    encoded = post(address, {"prompt": "Once upon", "return_token_strs": True}, "/tokenize").json()
    assert encoded["count"] == len(encoded["tokens"]) == len(encoded["token_strs"])
    decoded = post(address, {"tokens": encoded["tokens"][1:]}, "/detokenize").json()
    assert decoded == {"prompt": "Once upon"}
    assert httpx.get(f"{address}/tokenizer_info").json()["eos_token"]
    paths = httpx.get(f"{address}/openapi.json").json()["paths"]
    assert "/v1/completions" in paths and "/v1/chat/completions" in paths


def test_keys_are_required_if_set_and_health_stays_public(tale: Any) -> None:
    with serving(tale, api_key=("one", "two")) as (address, _):
        assert httpx.get(f"{address}/health").status_code == 200
        refused = httpx.get(f"{address}/v1/models")
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
        for headers in ({"Authorization": "Bearer two"}, {"authorization": "bearer one"}, {"api-key": "one"}):
            assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 200
        assert httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer three"}).status_code == 401


def test_browsers_may_call_from_a_named_origin_only(tale: Any, address: str) -> None:
    ask = {"Origin": "http://app.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{address}/v1/completions", headers=ask).headers
    with serving(tale, cors_origin=("http://app.example",), api_key=("k",)) as (other, _):
        allowed = httpx.options(f"{other}/v1/completions", headers=ask)
        assert allowed.headers["access-control-allow-origin"] == "http://app.example"


def test_unknown_fields_can_be_ignored_visibly(tale: Any) -> None:
    with serving(tale, unknown_fields="warn", any_model=True) as (address, _):
        answer = post(address, {**BASE, "model": "gpt-5", "reasoning_effort": "low", "verbosity": "high"})
        assert answer.status_code == 200
        assert answer.headers["x-unspool-ignored"] == "reasoning_effort, verbosity"

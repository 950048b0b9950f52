"""Rules of the fields: prompts, lengths, defaults, names, seeds, and bodies of well-known chat programs."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import openai
import pytest
import torch

import unspool
from tests.serving.conftest import serving
from tests.serving.test_protocol import BASE, post
from unspool.serving.execution.fingerprint import fingerprint
from unspool.serving.requests.fields import FIELDS

httpx = pytest.importorskip("httpx2", reason="comes with openai")

pytestmark = pytest.mark.model

ASKED: list[Any] = [{"role": "user", "content": "A king had"}]
CHAT: dict[str, Any] = {"model": "tale", "messages": ASKED, "max_tokens": 3, "temperature": 0}


def test_token_ids_get_no_special_token_and_texts_get_those_of_the_tokenizer(client: openai.OpenAI, tale: Any) -> None:
    with_special = tale.tokenizer("Once upon")["input_ids"]
    plain = tale.tokenizer("Once upon", add_special_tokens=False)["input_ids"]
    assert len(with_special) == len(plain) + 1
    for prompt, more, expected in (
        (plain, {}, plain),
        ("Once upon", {}, with_special),
        ("Once upon", {"add_special_tokens": False}, plain),
        ("Once upon", {"truncate_prompt_tokens": 2}, with_special[-2:]),
    ):
        found = client.completions.create(
            model="tale", prompt=prompt, max_tokens=1, extra_body={"return_token_ids": True, **more}
        )
        assert (found.choices[0].model_extra or {})["prompt_token_ids"] == expected
        assert found.usage is not None and found.usage.prompt_tokens == len(expected)


def test_echo_decodes_token_ids_and_comes_first_in_a_stream(client: openai.OpenAI, tale: Any) -> None:
    ids = tale.tokenizer("Once upon", add_special_tokens=False)["input_ids"]
    call: dict[str, Any] = {"model": "tale", "max_tokens": 4, "temperature": 0, "echo": True}
    for prompt in (ids, "Once upon"):
        whole = client.completions.create(prompt=prompt, **call).choices[0].text
        assert whole.startswith("Once upon") and len(whole) > len("Once upon")
        chunks = list(client.completions.create(prompt=prompt, stream=True, **call))
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole
        assert chunks[0].choices[0].text.startswith("Once upon")


def test_the_default_length_is_16_or_the_rest_of_the_context(client: openai.OpenAI, tale: Any) -> None:
    found = client.completions.create(model="tale", prompt="Once", temperature=0, extra_body={"ignore_eos": True})
    assert found.usage is not None and found.usage.completion_tokens == 16
    assert found.choices[0].finish_reason == "length"
    long: list[Any] = [{"role": "user", "content": "once " * 1000}]
    count = len(tale.chat(long, max_new_tokens=1).prompt_token_ids)
    assert 1000 < count < tale.info.max_length
    chat = client.chat.completions.create(model="tale", messages=long, seed=1, extra_body={"ignore_eos": True})
    assert chat.usage is not None and chat.usage.total_tokens == tale.info.max_length
    assert chat.choices[0].finish_reason == "length"
    with serving(tale, served_model_name=("tale",), default_max_tokens=5) as (address, _):
        body = {**CHAT, "max_tokens": None, "ignore_eos": True}
        assert post(address, body, "/v1/chat/completions").json()["usage"]["completion_tokens"] == 5


def test_both_names_of_the_length_must_agree(address: str) -> None:
    both = {**CHAT, "max_completion_tokens": 3}
    assert post(address, both, "/v1/chat/completions").json()["usage"]["completion_tokens"] == 3
    refused = post(address, {**both, "max_tokens": 4}, "/v1/chat/completions")
    assert refused.status_code == 400 and "contradicts" in refused.json()["error"]["message"]


def test_chat_templates_get_further_keys_and_their_faults_are_told(address: str, client: openai.OpenAI) -> None:
    template = "{% for m in messages %}{{ m.agent or '-' }}{{ m.content }}{% endfor %}"
    messages = [{**ASKED[0], "agent": "sage", "messageId": 7}]
    body = {**CHAT, "messages": messages, "chat_template": template, "return_token_ids": True}
    choice = post(address, body, "/v1/chat/completions").json()["choices"][0]
    written = post(address, {"tokens": choice["prompt_token_ids"]}, "/detokenize").json()["prompt"]
    assert "sageA king had" in written
    faulty = {**CHAT, "chat_template": "{{ raise_exception('roles must alternate') }}"}
    refused = post(address, faulty, "/v1/chat/completions")
    assert refused.status_code == 400 and "roles must alternate" in refused.json()["error"]["message"]


def test_a_model_without_a_chat_template_says_what_to_do() -> None:
    with serving(unspool.load(), served_model_name=("tale",)) as (address, _):
        refused = post(address, CHAT, "/v1/chat/completions")
        assert refused.status_code == 400 and "chat_template" in refused.json()["error"]["message"]


def test_penalties_are_openais_and_count_the_output_only(client: openai.OpenAI, tale: Any, reference: Any) -> None:
    """Each logit is less by the presence penalty, and by the frequency penalty per occurrence in the output."""
    prompt, presence, frequency = "The king and the king and the king", 0.8, 0.7
    ids = list(tale.tokenizer(prompt)["input_ids"])
    written: list[int] = []
    for _ in range(14):
        with torch.no_grad():
            logits = reference(torch.tensor([ids + written])).logits[0, -1]
        for token in set(written):
            logits[token] -= presence + frequency * written.count(token)
        written.append(int(logits.argmax()))
    assert len(set(written)) < len(written) and not set(written) & set(tale.info.eos_token_ids)
    call: dict[str, Any] = {"model": "tale", "prompt": prompt, "max_tokens": 14, "temperature": 0}
    body = {"return_token_ids": True}
    found = client.completions.create(**call, presence_penalty=presence, frequency_penalty=frequency, extra_body=body)
    plain = client.completions.create(**call, extra_body=body)
    assert (found.choices[0].model_extra or {})["token_ids"] == written
    assert (plain.choices[0].model_extra or {})["token_ids"] != written


def test_an_empty_key_is_no_key(address: str) -> None:
    """lm-evaluation-harness sends `Bearer ` without a key if none is set."""
    headers = {"Authorization": "Bearer ", "Content-Type": "application/json"}  # httpx refuses to send this header
    asked = urllib.request.Request(f"{address}/v1/completions", json.dumps(BASE).encode(), headers)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert answer.status == 200


def test_health_and_requests_get_503_while_the_server_ends(tale: Any) -> None:
    with serving(tale, served_model_name=("tale",)) as (address, service):
        assert httpx.get(f"{address}/health").status_code == 200
        service.admission.closed = True
        assert httpx.get(f"{address}/health").status_code == 503
        for path, body in (("/v1/completions", BASE), ("/v1/chat/completions", CHAT)):
            refused = post(address, body, path)
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"


def test_any_seed_repeats_its_text(client: openai.OpenAI, tale: Any) -> None:
    texts = set()
    for seed in (0, -3, 2**63 - 1, -(2**63)):
        call: dict[str, Any] = {"model": "tale", "prompt": "Once upon a time", "max_tokens": 8, "seed": seed}
        alone = client.completions.create(**call).choices[0].text
        company = client.completions.create(**{**call, "prompt": ["The king", "Once upon a time"]}).choices[1].text
        streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**call, stream=True))
        native = tale.generate("Once upon a time", max_new_tokens=8, seed=seed, do_sample=True).text
        assert alone == company == streamed == native
        texts.add(alone)
    assert len(texts) > 1


def test_the_fingerprint_changes_with_weights_and_data_type() -> None:
    lm = unspool.load()
    same, other = unspool.load(), unspool.load(dtype="bfloat16")
    assert fingerprint(lm) == fingerprint(same) != fingerprint(other)
    changed = unspool.load()
    next(iter(changed.model.parameters())).data.mul_(1.5)
    assert fingerprint(changed) != fingerprint(lm)


def test_usage_of_a_stream_can_come_with_each_chunk(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    call: dict[str, Any] = {
        "model": "tale",
        "max_tokens": 4,
        "temperature": 0,
        "stream": True,
        "stream_options": options,
    }
    for chunks in (
        list(client.completions.create(prompt="Once upon", **call)),
        list(client.chat.completions.create(messages=ASKED, **call)),
    ):
        counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
        assert len(counts) == len(chunks) and counts == sorted(counts) and counts[-1] == 4
        assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens_details is not None


def test_a_stream_has_no_blank_chunks(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="tale", prompt="Once upon", max_tokens=9, temperature=0, stream=True))
    assert all(chunk.choices[0].text or chunk.choices[0].finish_reason for chunk in chunks)
    talk = list(client.chat.completions.create(**CHAT, stream=True))
    assert [bool(chunk.choices[0].delta.content) for chunk in talk] == [False, *[True] * (len(talk) - 2), False]


def test_a_model_can_have_several_names(tale: Any) -> None:
    with serving(tale, served_model_name=("org/tale", "short")) as (address, _):
        assert [each["id"] for each in httpx.get(f"{address}/v1/models").json()["data"]] == ["org/tale", "short"]
        assert httpx.get(f"{address}/v1/models/org/tale").json()["max_model_len"] == tale.info.max_length
        for name in ("org/tale", "short"):
            assert post(address, {**BASE, "model": name}).json()["model"] == name
        assert httpx.get(f"{address}/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_inert_fields_are_accepted_with_any_value(address: str) -> None:
    for route, path, body in (("completions", "/v1/completions", BASE), ("chat", "/v1/chat/completions", CHAT)):
        inert = [field.name for field in FIELDS if field.source == "inert" and route in field.routes]
        assert len(inert) >= 9
        answer = post(address, {**body, **dict.fromkeys(inert, {"any": ["thing"]})}, path)
        assert answer.status_code == 200, answer.text


def test_metrics_count_the_prefix_cache(address: str) -> None:
    def read() -> dict[str, float]:
        lines = [line for line in httpx.get(f"{address}/metrics").text.splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    before = read()
    usage = post(address, {**BASE, "prompt": "There was once a fox who lived in a wood", "n": 1}).json()["usage"]
    again = post(address, {**BASE, "prompt": "There was once a fox who lived in a wood"}).json()["usage"]
    after = read()
    queries = after["unspool_prefix_cache_queries_total"] - before["unspool_prefix_cache_queries_total"]
    hits = after["unspool_prefix_cache_hits_total"] - before["unspool_prefix_cache_hits_total"]
    assert queries == usage["prompt_tokens"] + again["prompt_tokens"]
    assert hits == sum(each["prompt_tokens_details"]["cached_tokens"] for each in (usage, again)) > 0
    assert after["unspool_kv_cache_usage_perc"] == 0.0


def test_the_log_has_one_line_per_request_without_its_text(address: str, caplog: pytest.LogCaptureFixture) -> None:
    prompt = "Once there was a heron who lived in a deep green wood"
    with caplog.at_level("INFO", "unspool.server"):
        usage = post(address, {**BASE, "prompt": prompt}, headers={"X-Request-Id": "r1"}).json()["usage"]
        post(address, {**BASE, "prompt": prompt, "stream": True, "num_beams": 2, "temperature": None, "max_tokens": 3},
             headers={"X-Request-Id": "r2"})  # fmt: skip
        post(address, {**BASE, "prompt": prompt, "top_p": 7, "temperature": 1}, headers={"X-Request-Id": "r3"})
    lines = [record.getMessage() for record in caplog.records if record.name == "unspool.server"]
    found = {line.split()[0]: dict(pair.split("=") for pair in line.split()) for line in lines}
    assert len(found) == len(lines) == 3
    first, second, third = (found[f"request=r{number}"] for number in (1, 2, 3))
    assert (first["status"], first["outcome"], first["strategy"]) == ("200", "answered", "greedy")
    assert int(first["prompt_tokens"]) == usage["prompt_tokens"] and int(first["completion_tokens"]) == 2
    assert (second["status"], second["outcome"], second["strategy"]) == ("200", "streamed", "beam")
    assert int(second["completion_tokens"]) == 3 and float(second["seconds"]) > 0
    assert int(second["cached_tokens"]) == usage["prompt_tokens"] - 1
    assert (third["status"], third["outcome"], third["strategy"]) == ("400", "invalid_value", "-")
    assert not any("heron" in line for line in lines)


# Bodies as well-known programs send them by default, to the chat route.
PROGRAMS: dict[str, dict[str, Any]] = {
    "Open WebUI": {"stream": True, "model": "tale", "messages": ASKED, "max_tokens": 3},
    "Open WebUI, continued": {
        **CHAT, "messages": [*ASKED, {"role": "assistant", "content": "There was"}],
        "continue_final_message": True, "add_generation_prompt": False, "stream": True,
    },
    "LangChain": {
        "messages": ASKED, "model": "tale", "max_completion_tokens": 3, "stream": False, "temperature": 0.7,
    },
    "LangChain, structured": {
        "messages": ASKED, "model": "tale", "max_completion_tokens": 90, "seed": 1, "parallel_tool_calls": False,
        "response_format": {"type": "json_schema", "json_schema": {"name": "A", "strict": True, "schema": {
            "type": "object", "properties": {"name": {"enum": ["Ann", "Bob"]}}, "required": ["name"],
            "additionalProperties": False}}},
    },
    "aider": {"model": "tale", "messages": ASKED, "stream": True, "temperature": 0, "max_tokens": 3},
    "continue": {**CHAT, "stream": True, "stop": [f"stop{n}" for n in range(14)]},
    "guidance": {
        **CHAT, "guided_decoding_backend": "guidance", "guided_grammar": 'start: "yes" | "no"',
        "structured_outputs": {"grammar": 'start: "yes" | "no"'}, "logprobs": True, "top_logprobs": 10,
    },
    "outlines": {**CHAT, "structured_outputs": {"regex": "yes|no"}},
    "promptfoo": {
        "model": "tale", "messages": ASKED, "max_tokens": 3, "temperature": 0, "top_p": 1, "presence_penalty": 0,
        "frequency_penalty": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_bodies_of_well_known_chat_programs_are_answered(address: str, name: str) -> None:
    body = PROGRAMS[name]
    answer = post(address, body, "/v1/chat/completions")
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]" and not any("error" in json.loads(event) for event in events[:-1])
        return
    content = answer.json()["choices"][0]["message"]["content"]
    if "json_schema" in json.dumps(body):
        assert json.loads(content)["name"] in ("Ann", "Bob")
    elif "structured_outputs" in body:
        assert content in ("yes", "no")


def test_llama_index_asks_completions_for_the_best_tokens(address: str) -> None:
    found = post(address, {**BASE, "logprobs": 2, "stream": False}).json()["choices"][0]["logprobs"]
    assert len(found["top_logprobs"]) == 2

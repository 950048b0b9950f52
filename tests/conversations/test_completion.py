"""Conversations: messages in, messages out, by the tokenizer's own chat template."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

import unspool
from tests.speakers import recite
from tests.text.tokenizers import byte_fallback, byte_level
from tests.toys import toy
from unspool import LanguageModel, OptionError, PromptError, Stream
from unspool.conversations.completion import ChatGeneration, ChatStream
from unspool.text.chat import answer_of, encode_chat, read_chat, transcript, turn_end

ANSWER = "There was a king who had a daughter."
HELLO = [{"role": "user", "content": "Tell me of a king."}]

TURNS = (
    "{% if tools %}tools: {% for tool in tools %}{{ tool.function.name }} {% endfor %}{{ '\\n' }}{% endif %}"
    "{% for message in messages %}{{ message.role }}\n{{ message.content }}<|turn|>{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant{{ mood or '' }}{{ '\\n' }}{% endif %}"
)
"""Every turn ends with a token of its own, as in ChatML."""


def speaker(*texts: str, template: str | None = TURNS, **options: Any) -> LanguageModel:
    """A model that recites, and whose tokenizer has a chat template."""
    lm = recite(*(texts or (ANSWER,)), **options)
    tokenizer = type(lm.tokenizer)(
        tokenizer_object=lm.tokenizer.backend_tokenizer, eos_token="<|end|>", extra_special_tokens=["<|turn|>"]
    )
    tokenizer.chat_template = template
    return LanguageModel(lm.runtime, tokenizer)


def test_messages_go_in_and_a_message_comes_out() -> None:
    lm = speaker()
    answer = lm.chat(HELLO)
    assert isinstance(answer, ChatGeneration)
    assert answer.message == {"role": "assistant", "content": ANSWER}
    assert answer.messages == [*HELLO, answer.message]
    assert str(answer) == answer.text == ANSWER
    assert answer.completions[0].finish_reason == "eos"
    again = lm.chat([*answer.messages, {"role": "user", "content": "And then?"}])
    assert [message["role"] for message in again.messages] == ["user", "assistant", "user", "assistant"]
    assert HELLO == [{"role": "user", "content": "Tell me of a king."}], "what is given stays as it is"


def test_the_prompt_is_what_the_tokenizer_makes_of_the_messages() -> None:
    lm = speaker()
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    for options in ({}, {"continue_final_message": True}):
        theirs = lm.tokenizer.apply_chat_template(
            messages, add_generation_prompt=not options, return_dict=False, **options
        )
        assert lm.chat(messages, max_new_tokens=1, **options).prompt_token_ids == tuple(theirs)


def test_no_token_begins_the_prompt_twice() -> None:
    """Llama's templates write the begin-of-sequence token, which its tokenizers write as well."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_fallback()
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    bos = tokenizer.bos_token_id
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer = type(tokenizer)(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{{ bos_token }}" + TURNS
    assert tokenizer("a")["input_ids"][0] == bos
    ids = encode_chat(HELLO, tokenizer)
    assert ids[0] == bos and ids.count(bos) == 1


def test_a_text_is_one_turn_of_the_users_and_a_list_of_texts_several_conversations() -> None:
    lm = speaker()
    text = HELLO[0]["content"]
    answer = lm.chat(text)
    assert (answer.messages, answer.prompt_token_ids) == (lm.chat(HELLO).messages, lm.chat(HELLO).prompt_token_ids)
    assert [each.history for each in lm.chat([text, "And?"])] == [
        tuple(HELLO), ({"role": "user", "content": "And?"},)
    ]  # fmt: skip
    stream = lm.chat(text, stream=True)
    assert "".join(chunk.text for chunk in stream) == ANSWER


@pytest.mark.parametrize("content", ["There was ", " There was", "\n There was \n", "There was"])
@pytest.mark.parametrize("filter", ["", " | trim", ".rstrip()", ".lstrip()"])
def test_a_continued_message_is_what_the_model_saw_and_what_it_wrote(content: str, filter: str) -> None:
    template = "{% for message in messages %}[{{ message.role }}]{{ message.content FILTER }}<|turn|>{% endfor %}"
    lm = speaker(" a king.", template=template.replace(" FILTER", filter))
    answer = lm.chat([*HELLO, {"role": "assistant", "content": content}], continue_final_message=True)
    shown = lm.tokenizer.decode(answer.prompt_token_ids)
    assert shown + answer.text == shown[: shown.rindex("[assistant]")] + "[assistant]" + answer.message["content"]
    assert answer.messages == [*HELLO, answer.message]


def test_several_conversations_are_answered_together() -> None:
    lm = speaker()
    other = [{"role": "user", "content": "And of a queen?"}]
    answers = lm.chat([HELLO, other])
    assert [answer.messages[0] for answer in answers] == [HELLO[0], other[0]]
    assert lm.chat([HELLO])[0].message == answers[0].message


def test_the_last_message_can_be_continued() -> None:
    lm = speaker()
    begun = [*HELLO, {"role": "assistant", "content": "There was", "name": "bard"}]
    answer = lm.chat(begun, continue_final_message=True)
    assert answer.text == ANSWER.removeprefix("There was")
    assert answer.message == {"role": "assistant", "content": ANSWER, "name": "bard"}
    assert answer.messages == [HELLO[0], answer.message]
    parts = [*HELLO, {"role": "assistant", "content": [{"type": "text", "text": "There was"}]}]
    with pytest.raises(PromptError, match="with text content"):
        lm.chat(parts, continue_final_message=True)


def test_several_outputs_are_several_answers() -> None:
    lm = speaker("A king.", "A queen.")
    answer = lm.chat(HELLO, num_beams=2, num_return_sequences=2)
    assert [message["content"] for message in answer.answers] == ["A king.", "A queen."]
    assert answer.message == answer.answers[0]


def test_a_stored_end_outside_the_vocabulary_does_not_stop_a_conversation() -> None:
    lm = speaker("Good.<|turn|>More")
    lm.config = unspool.GenerationConfig(eos_token_id=50256)
    answer = lm.chat(HELLO)
    assert (answer.text, answer.completions[0].finish_reason) == ("Good.", "eos")


@pytest.mark.parametrize(("stop", "text"), [("<|turn|>", "Good."), ("od.<|turn|>M", "Go")])
def test_a_stop_string_of_a_conversation_can_hold_a_special_token(stop: str, text: str) -> None:
    lm = speaker("Good.<|turn|>More")
    answer = lm.chat(HELLO, stop_strings=stop, ignore_eos=True, max_new_tokens=9)
    assert (answer.text, answer.completions[0].finish_reason) == (text, "stop")


def test_a_stream_brings_the_same_answer_in_chunks() -> None:
    lm = speaker()
    stream = lm.chat(HELLO, stream=True)
    assert isinstance(stream, ChatStream)
    with pytest.raises(RuntimeError, match="not ended"):
        _ = stream.generation
    chunks = [chunk.text for chunk in stream]
    assert len(chunks) > 5
    assert "".join(chunks) == ANSWER
    assert stream.generation.messages == lm.chat(HELLO).messages
    both = lm.chat([HELLO, HELLO], stream=True)
    assert {chunk.prompt for chunk in both} == {0, 1}
    assert [one and one.message for one in both.generations] == [stream.generation.message] * 2


def test_a_stream_can_be_read_by_an_event_loop_and_left_early() -> None:
    lm = speaker()

    async def read() -> str:
        async with lm.chat(HELLO, stream=True) as stream:
            return "".join([chunk.text async for chunk in stream])

    assert asyncio.run(read()) == ANSWER
    with lm.chat(HELLO, stream=True) as stream:
        next(stream)
    assert not lm.runtime.cached  # type: ignore[attr-defined]
    with pytest.raises(unspool.CancelledRequest):
        list(stream)


def test_an_answer_ends_where_the_template_ends_a_turn() -> None:
    """Many models' generation configs name the end of a text alone, which a conversation goes on past."""
    lm = speaker("A king.<|turn|>user\nThen?")
    turn = lm.tokenizer.convert_tokens_to_ids("<|turn|>")
    assert turn_end(lm.tokenizer) == turn not in lm.info.eos_token_ids
    answer = lm.chat(HELLO)
    assert answer.message["content"] == "A king."
    assert answer.completions[0].token_ids[-1] == turn
    assert answer.completions[0].finish_reason == "eos"
    for said in ({"eos_token_id": lm.tokenizer.eos_token_id}, {"config": unspool.GenerationConfig(ignore_eos=True)}):
        assert lm.chat(HELLO, max_new_tokens=12, **said).text.startswith("A king.user\n")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TURNS, "<|turn|>"),
        ("{% for m in messages %}{{ m.content }} {{ eos_token }}{% endfor %}", "<|end|>"),
        ("{% for m in messages %}### {{ m.role }}: {{ m.content }}\n{% endfor %}", None),
        ("{{ raise_exception('no') }}", None),
        ("nothing of what is said", None),
    ],
)
def test_the_end_of_a_turn_is_read_off_the_template(template: str, expected: str | None) -> None:
    found = turn_end(byte_level(), template)
    assert found == (None if expected is None else byte_level().convert_tokens_to_ids(expected))


def test_tools_and_variables_reach_the_template() -> None:
    def weather(city: str) -> str:
        """Tell the weather.

        Args:
            city: where.
        """
        return city

    lm = speaker()
    text = lm.tokenizer.decode(lm.chat(HELLO, tools=[weather], max_new_tokens=1).prompt_token_ids)
    assert text.startswith("tools: weather \nuser\n")
    moody = lm.chat(HELLO, chat_template_kwargs={"mood": " (merry)"}, max_new_tokens=1)
    assert lm.tokenizer.decode(moody.prompt_token_ids).endswith("assistant (merry)\n")


def test_a_template_can_be_passed() -> None:
    lm = speaker(template=None)
    with pytest.raises(PromptError, match="no chat template.*chat_template="):
        lm.chat(HELLO)
    answer = lm.chat(HELLO, chat_template="{{ messages[0].content }}{{ '\n' }}")
    assert lm.tokenizer.decode(answer.prompt_token_ids) == "Tell me of a king.\n"
    assert answer.message["content"] == ANSWER


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "got an empty list"),
        (3, "got int"),
        ({"role": "user", "content": "Hello"}, "got dict"),
        ([{"role": "user"}], "message 0 must be a dict"),
        ([*HELLO, "Hello"], "message 1 must be a dict"),
        ([HELLO, []], "got an empty list"),
        ([HELLO, HELLO[0]], "got dict"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        speaker().chat(messages)


def test_what_a_template_does_not_take_is_told_in_its_words() -> None:
    lm = speaker(template="{{ raise_exception('Roles must alternate.') }}")
    with pytest.raises(PromptError, match="rejects these messages: Roles must alternate"):
        lm.chat([*HELLO, *HELLO])
    with pytest.raises(PromptError, match="returns an empty text"):
        lm.chat(HELLO, chat_template="{% if false %}{% endif %}")


def test_options_are_refused_as_in_generate() -> None:
    for wrong in ({"tempratur": 1.0}, {"stream": "yes"}, {"continue_final_message": 1}):
        with pytest.raises(OptionError):
            speaker().chat(HELLO, **wrong)  # type: ignore[call-overload]
    with pytest.raises(PromptError, match="longer|room|holds"):
        speaker(max_length=8).chat(HELLO)


def test_a_conversation_needs_a_tokenizer_that_knows_templates() -> None:
    with pytest.raises(PromptError, match="needs a tokenizer"):
        LanguageModel(toy()).chat(HELLO)

    class Bare:
        def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
            return ""

    with pytest.raises(PromptError, match="cannot apply chat templates"):
        LanguageModel(toy(), Bare()).chat(HELLO)


def test_results_are_plain_json() -> None:
    answer = speaker().chat(HELLO)
    known = json.loads(json.dumps(answer.to_dict()))
    assert known["messages"] == answer.messages
    assert known["completions"][0]["text"] == ANSWER


def test_messages_with_calls_of_tools_may_go_without_content() -> None:
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {}}}]
    assert read_chat([*HELLO, {"role": "assistant", "tool_calls": calls}])[1]["tool_calls"] == calls


def test_a_response_template_takes_an_answer_apart() -> None:
    class Parsing:
        response_template = {"some": "schema"}

        def decode(self, ids: list[int]) -> str:
            return " ".join(map(str, ids))

        def parse_response(self, text: str, *, prefix: str, tools: Any) -> dict[str, Any]:
            return {"role": "assistant", "content": text, "thinking": prefix, "tools": tools}

    message = answer_of("shown", tokenizer=Parsing(), prompt_ids=(1, 2), token_ids=(3,), tools=None)
    assert message == {"role": "assistant", "content": "3", "thinking": "1 2", "tools": None}


@pytest.mark.model
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"content": {"content": "text"}, "thinking": {"open": "<think>", "content": "text", "optional": False}},
            "think",
        ),
        ({"tool_calls": {"open": "It ", "content": "json", "repeats": True}, "content": {"content": "text"}}, "json"),
    ],
    ids=["a missing field", "a malformed call"],
)
def test_an_answer_that_the_response_template_cannot_read_is_kept_as_text(fields: dict[str, Any], reason: str) -> None:
    lm = unspool.load()
    lm.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    lm.tokenizer.response_template = {"start_anchor": "king.", "fields": fields}
    question = [{"role": "user", "content": "Tell me of the king."}]
    with pytest.warns(UserWarning, match=f"`response_template` cannot read an answer .*{reason}.*whole text"):
        answer = lm.chat(question, choice=["It is warm."], max_new_tokens=30)
    assert answer.text == "It is warm."
    assert answer.message == {"role": "assistant", "content": "It is warm."}
    stream = lm.chat(question, choice=["It is warm."], max_new_tokens=30, stream=True)
    assert "".join(chunk.text for chunk in stream) == "It is warm."
    with pytest.warns(UserWarning, match="cannot read an answer"):
        assert stream.generation.message == answer.message


@pytest.mark.model
def test_a_stop_string_is_no_part_of_a_parsed_answer() -> None:
    lm = unspool.load()
    lm.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    lm.tokenizer.response_template = {"start_anchor": "king.", "fields": {"content": {"content": "text"}}}
    answer = lm.chat(HELLO, choice=["It is warm. END of it"], stop_strings=["END"], max_new_tokens=30)
    assert answer.text == "It is warm. " and answer.message["content"] == "It is warm."


def test_a_transcript_is_a_page_of_text() -> None:
    messages = [
        {"role": "system", "content": "Answer in verse. "},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": " A bard."},
        {"role": "user", "content": "Sing!"},
    ]
    assert transcript(messages) == "Answer in verse.\n\nUser: Who are you?\nAssistant: A bard.\nUser: Sing!\nAssistant:"
    with pytest.raises(PromptError, match="only text"):
        transcript([{"role": "user", "content": [{"type": "image"}]}])


def test_a_chat_stream_can_all_that_a_stream_can() -> None:
    public = {name for name in vars(Stream) if not name.startswith("_")} | {"__aiter__", "__anext__", "__aenter__"}
    assert public <= set(vars(ChatStream))


@pytest.mark.model
def test_the_embedded_model_answers_by_a_template_of_ours() -> None:
    lm = unspool.load("tale-draft")
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    answer = lm.chat([{"role": "user", "content": "Once upon a time"}], chat_template=template, max_new_tokens=12)
    assert answer.text == lm.generate("Once upon a time", max_new_tokens=12).text

"""unspool.Chat: a conversation that keeps its history, whole, streamed, taken back and stored."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conversations.test_completion import speaker
from tests.speakers import recite
from unspool import Chat, GenerationConfig, NumericsError, OptionError, PromptError
from unspool.text.chat import transcript

ANSWER = "There was a king who had a daughter."


def said(chat: Chat) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in chat.messages]


def test_each_turn_is_what_the_whole_conversation_brings() -> None:
    lm = speaker(ANSWER)
    chat = Chat(lm, system="Be brief.")
    first = chat.say("Tell me of a king.")
    assert str(first) == ANSWER
    second = chat.say("And then?")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Tell me of a king."},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "And then?"},
    ]
    whole = lm.chat(messages)
    assert second.prompt_token_ids == whole.prompt_token_ids
    assert chat.messages == [*messages, second.message] == whole.messages
    assert repr(chat) == f"<Chat with {lm.info.name}: 5 messages>"


def test_options_of_a_turn_come_before_those_of_the_conversation() -> None:
    chat = Chat(speaker(ANSWER), config=GenerationConfig(max_new_tokens=4), stop_strings=["king"])
    assert chat.say("Who?").usage.completion_tokens == 4
    assert chat.say("Who?", max_new_tokens=100).text == "There was a "
    chat.options["max_new_tokens"] = 2
    assert chat.say("Who?").usage.completion_tokens == 2


def test_a_stream_joins_the_conversation_at_its_end() -> None:
    chat = Chat(speaker(ANSWER))
    stream = chat.stream("Who?")
    assert said(chat) == [("user", "Who?")]
    assert "".join(chunk.text for chunk in stream) == ANSWER == str(stream.generation)
    assert said(chat) == [("user", "Who?"), ("assistant", ANSWER)]


def test_a_stream_is_read_async_as_well() -> None:
    chat = Chat(speaker(ANSWER))

    async def read() -> str:
        return "".join([chunk.text async for chunk in chat.stream("Who?")])

    assert asyncio.run(read()) == ANSWER
    assert said(chat)[-1] == ("assistant", ANSWER)


@pytest.mark.parametrize("way", ["loop", "close", "with", "next turn"])
def test_a_stream_closed_early_leaves_what_was_said(way: str) -> None:
    chat = Chat(speaker(ANSWER))
    stream = chat.stream("Who?")
    if way == "loop":
        heard = ""
        for chunk in stream:
            heard += chunk.text
            if len(heard) > 6:
                break
    elif way == "with":
        with stream:
            heard = next(stream).text + next(stream).text
    else:
        heard = next(stream).text + next(stream).text
        stream.close() if way == "close" else chat.say("And?")
    assert said(chat)[:2] == [("user", "Who?"), ("assistant", heard)]
    assert ANSWER.startswith(heard) and heard != ANSWER
    assert chat.lm.engine.idle, "the rest is not written"
    stream.close()
    assert len(said(chat)) == (4 if way == "next turn" else 2), "closing twice adds nothing"


def test_a_stream_closed_before_the_first_word_leaves_nothing() -> None:
    chat = Chat(speaker(ANSWER))
    chat.stream("Who?").close()
    assert chat.messages == []


def test_an_error_leaves_the_conversation_as_it_was() -> None:
    chat = Chat(speaker(ANSWER))
    chat.say("Who?")
    before = said(chat)
    every = list(range(chat.lm.info.vocab_size))
    with pytest.raises(NumericsError):
        chat.say("And?", suppress_tokens=every)
    with pytest.raises(NumericsError):
        list(chat.stream("And?", suppress_tokens=every))
    with pytest.raises(OptionError):
        chat.stream("And?", top_p=7.0)
    with pytest.raises(NumericsError):
        chat.retry(suppress_tokens=every)
    with pytest.raises(PromptError):
        chat.say([{"content": "no role"}])
    assert said(chat) == before


def test_turns_are_taken_back_answered_again_and_changed() -> None:
    chat = Chat(speaker(ANSWER), system="Be brief.")
    assert chat.undo() is None
    for call in (chat.retry, lambda: chat.edit("What?")):
        with pytest.raises(PromptError, match="contains no message to"):
            call()
    chat.say("Who?")
    chat.say("And?")
    assert chat.undo() == "And?"
    assert said(chat) == [("system", "Be brief."), ("user", "Who?"), ("assistant", ANSWER)]
    assert chat.retry().text == ANSWER and len(chat.messages) == 3
    assert "".join(chunk.text for chunk in chat.edit("Where?", stream=True)) == ANSWER
    assert said(chat)[1:] == [("user", "Where?"), ("assistant", ANSWER)]
    chat.reset()
    assert said(chat) == [("system", "Be brief.")]
    chat.system = None
    assert chat.messages == []


def test_each_try_of_a_message_has_the_next_seed_and_a_new_message_the_first_again() -> None:
    chat = Chat(speaker(ANSWER), temperature=1.0, seed=5)
    seeds = [chat.say("Who?").seed, chat.retry().seed, chat.retry().seed, chat.say("And?").seed]
    assert seeds == [5, 6, 7, 5]
    assert chat.retry(seed=9).seed == chat.seed == 9
    fresh = Chat(speaker(ANSWER), temperature=1.0)
    assert fresh.say("Who?").seed == fresh.seed


def test_results_of_tools_are_messages_of_their_own() -> None:
    chat = Chat(speaker(ANSWER))
    chat.say({"role": "tool", "content": "18 degrees"})
    chat.say([{"role": "tool", "content": "a"}, {"role": "tool", "content": "b"}])
    assert [role for role, _ in said(chat)] == ["tool", "assistant", "tool", "tool", "assistant"]


def test_a_model_without_a_template_talks_in_a_transcript() -> None:
    lm = recite(" A king.\nUser: and")
    with pytest.raises(PromptError, match="no chat template"):
        Chat(lm)
    chat = Chat(lm, plain=True, system="Be brief.", max_new_tokens=20)
    answer = chat.say("Who?")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    stops = ["\nUser:", "\nAssistant:"]
    alone = lm.generate(transcript(messages), max_new_tokens=20, stop_strings=stops)
    assert answer.prompt_token_ids == alone.prompt_token_ids and answer.text == alone.text
    assert said(chat)[-1] == ("assistant", alone.text.strip())
    chat.undo()
    list(chat.stream("Who?"))
    assert said(chat)[-1] == ("assistant", alone.text.strip())


def test_wrong_options_are_told_at_once() -> None:
    with pytest.raises(OptionError, match="did you mean `temperature`"):
        Chat(speaker(ANSWER), tempratur=0.5)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_conversation_is_saved_and_taken_up(tmp_path: Path) -> None:
    lm, file = speaker(ANSWER), tmp_path / "chat.json"
    chat = Chat(lm, system="Sei kurz: ä🦊", temperature=0.7, seed=3, config=GenerationConfig(max_new_tokens=50))
    chat.say("Who?")
    chat.save(file)
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert stored["options"] == {"max_new_tokens": 50, "temperature": 0.7, "seed": 3}
    again = Chat.load(file, lm, seed=4)
    assert again.messages == chat.messages
    assert again.options == {"max_new_tokens": 50, "temperature": 0.7, "seed": 4}
    assert again.say("And?").seed == 4
    again.save(file)
    assert len(Chat.load(str(file), lm).messages) == 5


def test_a_file_holds_the_old_conversation_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "chat.json"
    chat = Chat(speaker(ANSWER))
    chat.save(file)
    before = file.read_text()
    chat.say("Who?")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unspool.atomic_files.os.replace", fail)
    with pytest.raises(OSError, match="No space left on device.*chat.json"):
        chat.save(file)
    assert file.read_text() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("Dear aunt,", PromptError, "holds no conversation"),
        ('{"messages": 3}', PromptError, "holds no conversation: a conversation must be a list"),
        ('{"messages": [], "options": 3}', PromptError, "its options must be an object"),
        ('{"messages": [], "options": {"top_p": 7}}', OptionError, "`top_p` in .*chat.json must be in"),
        ("[1]", PromptError, "message 0 must be a dict"),
    ],
)
def test_errors_about_a_file_name_it(tmp_path: Path, content: str, error: type[Exception], message: str) -> None:
    file = tmp_path / "chat.json"
    file.write_text(content)
    with pytest.raises(error, match=message) as found:
        Chat.load(file, speaker(ANSWER))
    assert str(file) in str(found.value)
    if error is PromptError:
        with pytest.raises(PromptError, match="it is left as it is"):
            Chat(speaker(ANSWER)).save(file)
        assert file.read_text() == content


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/chat.json"):
        Chat(speaker(ANSWER)).save(tmp_path / "nowhere" / "chat.json")
    with pytest.raises(FileNotFoundError, match="nowhere/chat.json"):
        Chat.load(tmp_path / "nowhere" / "chat.json", speaker(ANSWER))


def test_a_message_that_is_no_json_is_told(tmp_path: Path) -> None:
    chat = Chat(speaker(ANSWER), messages=[{"role": "user", "content": "Who?", "image": object()}])
    with pytest.raises(PromptError, match="a message is not JSON"):
        chat.save(tmp_path / "chat.json")
    assert list(tmp_path.iterdir()) == []

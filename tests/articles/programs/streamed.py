"""Streaming: words are shown as they are written."""

import io
from contextlib import redirect_stdout

from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

import unspool
from unspool.loading.load import EMBEDDED

tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype="float32")
inputs = tokenizer(["The king had a daughter"], return_tensors="pt")


def shown(generate):
    """Return what is printed while it streams."""
    with redirect_stdout(io.StringIO()) as screen:
        generate(**inputs, streamer=TextStreamer(tokenizer), max_new_tokens=25)
    return screen.getvalue()


def ours(**arguments):
    return unspool.generate(model, **arguments)


print(shown(ours))

assert shown(ours) == shown(model.generate)

"""A real server on a free port, in a thread, and OpenAI's client for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import uvicorn

import unspool
from unspool.serving.app import create_app
from unspool.serving.run import Server
from unspool.serving.settings import Settings

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@contextmanager
def serving(
    lm: unspool.LanguageModel,
    *,
    assistants: Any = None,
    extend: Callable[[Any], None] = lambda app: None,
    **settings: Any,
) -> Iterator[tuple[str, Any]]:
    """Yield the address of a running server, and its service. extend: adds routes to the application."""
    app = create_app(lm, Settings(**{"port": 0, **settings}), assistants=assistants)
    extend(app)
    ready = threading.Event()
    ports: list[int] = []

    def note(port: int) -> None:
        ports.append(port)
        ready.set()

    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False, lifespan="on")
    server = Server(config, app.state.service, note)
    thread = threading.Thread(target=server.run)
    thread.start()
    assert ready.wait(30), "the server did not start"
    try:
        yield f"http://127.0.0.1:{ports[0]}", app.state.service
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


Serve = Callable[..., AbstractContextManager[tuple[str, Any]]]


@pytest.fixture(scope="session")
def tale() -> unspool.LanguageModel:
    """The embedded model with a chat template."""
    lm = unspool.load()
    lm.tokenizer.chat_template = TEMPLATE
    return lm


@pytest.fixture(scope="session")
def reference() -> Any:
    """The embedded model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    folder = Path(unspool.__file__).parent / "tale"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def server(tale: unspool.LanguageModel) -> Iterator[tuple[str, Any]]:
    """A server of the embedded model, with itself as a draft model."""
    with serving(tale, served_model_name=("tale",), assistants={"draft": tale}) as found:
        yield found


@pytest.fixture(scope="session")
def address(server: tuple[str, Any]) -> str:
    """The address of the shared server."""
    return server[0]


@pytest.fixture(scope="session")
def client(address: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client of the shared server, without retries."""
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made:
        yield made

"""Hosts and ports that the server cannot use: one line that names the flag, before the model is loaded."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

import unspool
from unspool.cli.serve import address_of
from unspool.errors import OptionError
from unspool.runtimes.toy import ToyRuntime
from unspool.serving.app import create_app
from unspool.serving.http.listening import bound, listening_error, port_of
from unspool.serving.run import serve
from unspool.serving.settings import Settings

ABSENT = "nowhere.invalid"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 at which another socket listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def refused(command: str, *flags: str) -> str:
    """Return the one line that a command with a model that does not exist writes before it exits."""
    line = [sys.executable, "-m", "unspool.cli.main", command, *flags, "--model", "no-such-model"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not done.stdout
    (told,) = done.stderr.splitlines()
    return told


@pytest.mark.parametrize("command", ["serve", "explore"])
def test_a_port_in_use_is_one_line_before_the_model_is_loaded(command: str, taken: int) -> None:
    assert refused(command, "--port", str(taken)) == (
        f"Error: --port must be free on 127.0.0.1, got {taken}; "
        "another program uses it: give another port, or 0 for any free one"
    )


def test_a_host_that_is_not_of_this_computer_is_named() -> None:
    assert refused("serve", "--host", ABSENT, "--port", "0").startswith(
        "Error: --host must be an address of this computer ("
    )
    told = refused("serve", "--host", "192.0.2.1", "--port", "0")  # an address for documentation
    assert told.startswith('Error: --host must be an address of this computer, got "192.0.2.1"; use 127.0.0.1')


def test_a_port_that_does_not_exist_is_refused() -> None:
    assert "--port must be at most 65535, got 70000" in refused("serve", "--port", "70000")


@pytest.mark.skipif(sys.platform != "linux", reason="reads which ports need the rights of an administrator on Linux")
def test_a_port_of_the_administrator_is_refused() -> None:
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
        first = int(file.read())
    if first <= 1:
        pytest.skip("this system lets every user open every port")
    code = f"""
import encodings.idna, os  # the first look-up of a host imports this codec, which another user cannot read
from unspool.serving.http.listening import bound
if os.getuid() == 0:
    os.setuid(65534)
with bound("127.0.0.1", {first - 1}):
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"`port` must be open to this user on 127.0.0.1, got {first - 1}" in done.stderr
    assert "ports below 1024 can need an administrator" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse the second socket earlier")
def test_a_port_that_is_taken_while_the_model_loads_is_told_too() -> None:
    lm = unspool.LanguageModel(ToyRuntime(lambda tokens: [1.0, 1.0], 2))
    with bound("127.0.0.1", 0) as sockets:
        port = port_of(sockets)
        with socket.create_server(("127.0.0.1", port)), pytest.raises(OptionError, match="must be free on 127.0.0.1"):
            serve(create_app(lm, Settings(port=port)), sockets)


def test_other_faults_name_their_reason() -> None:
    error = listening_error(OSError(errno.EMFILE, ""), "127.0.0.1", 8000)
    assert os.strerror(errno.EMFILE) in str(error) and error.option == "host"


def test_a_port_is_reserved_for_each_address_of_the_host_and_given_back() -> None:
    with bound("localhost", 0) as sockets:
        assert {made.getsockname()[1] for made in sockets} == {port_of(sockets)}
        assert len({made.getsockname()[0] for made in sockets}) == len(sockets) > 0
        sockets[0].listen()
        with pytest.raises(OptionError, match="must be free on localhost"), bound("localhost", port_of(sockets)):
            pass
    with bound("localhost", port_of_closed := socket_port()) as again:
        assert port_of(again) == port_of_closed


def socket_port() -> int:
    with bound("127.0.0.1", 0) as sockets:
        return port_of(sockets)


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("my.host", "my.host")],
)
def test_the_printed_address_can_be_opened(host: str, shown: str) -> None:
    assert address_of(Settings(host=host), 8000) == f"http://{shown}:8000"

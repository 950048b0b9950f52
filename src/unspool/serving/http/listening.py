"""The sockets of the server. They are bound before the model is loaded, so that a port in use is told at once."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from unspool.errors import OptionError

_OTHER_PORT: Final = "give another port, or 0 for any free one"
_HOSTS: Final = "use 127.0.0.1 for this computer only, or 0.0.0.0 for all networks"


@contextmanager
def bound(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Bind a socket to each address of a host, and close them at the end. They do not listen yet.

    Args:
        host: a name or an address of this computer.
        port: 0 for any free port, which is the same for all addresses.

    Raises:
        OptionError: if the host is not of this computer, or if the port is in use or not allowed.
    """
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        for family, address in _addresses(host, port):
            made = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            _prepare(made)
            try:
                made.bind((address[0], port, *address[2:]))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL and sockets:
                    continue  # a name with an address of a protocol that is turned off
                raise listening_error(error, host, port) from None
            sockets.append(made)
            port = port_of(sockets)
        yield sockets


def port_of(sockets: Sequence[socket.socket]) -> int:
    """Return the port of bound sockets."""
    port: int = sockets[0].getsockname()[1]
    return port


def url_host(host: str) -> str:
    """Return a host as it is written in addresses: an IPv6 address is in brackets."""
    return f"[{host}]" if ":" in host else host


def listening_error(error: OSError, host: str, port: int) -> OptionError:
    """Return the error of a socket that cannot listen, with the setting to change."""
    if error.errno == errno.EADDRINUSE:
        return OptionError("port", port, f"must be free on {host}", f"another program uses it: {_OTHER_PORT}")
    if error.errno in (errno.EACCES, errno.EPERM):
        allowed = f"must be open to this user on {host}"
        return OptionError("port", port, allowed, f"ports below 1024 can need an administrator: {_OTHER_PORT}")
    if error.errno == errno.EADDRNOTAVAIL:
        return OptionError("host", host, "must be an address of this computer", _HOSTS)
    return OptionError("host", host, f"cannot be listened on at port {port} ({os.strerror(error.errno or 0)})", _HOSTS)


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """Return the protocol and the address of each interface of a host."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a name"
        raise OptionError("host", host, f"must be an address of this computer ({reason})", _HOSTS) from None
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _prepare(made: socket.socket) -> None:
    if os.name == "posix" and sys.platform != "cygwin":
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server can start again at once
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own

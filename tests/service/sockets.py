"""Clients of bytes, for tests of what happens on a connection; and what makes those of httpx quick."""

import contextlib
import socket
import ssl
from collections.abc import Iterator

import httpx

# httpx reads all trusted authorities for every client, 30 ms each, although http:// asks none: `verify=PLAIN` does not.
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@contextlib.contextmanager
def connected(client: httpx.Client, *, buffer_bytes: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as connection:
        if buffer_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        connection.settimeout(20)
        connection.connect((client.base_url.host, client.base_url.port or 80))
        yield connection


def rest(connection: socket.socket) -> bytes:
    """Everything until the server hangs up."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(1 << 16):
            received += chunk
    return received

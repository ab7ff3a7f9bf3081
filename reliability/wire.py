"""A client of bytes: any request, right or wrong, and the answer to it, over a connection of its own."""

import asyncio
import contextlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def request(method: str, path: str, body: bytes, *headers: str) -> bytes:
    """A request in bytes. A header of one's own replaces the usual one of its name."""
    own = {header.partition(":")[0].lower() for header in headers}
    usual = ("Host: localhost", f"Content-Length: {len(body)}")
    lines = [f"{method} {path} HTTP/1.1", *headers]
    lines += [header for header in usual if header.partition(":")[0].lower() not in own]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def ask(host: str, port: int, wire: bytes, *, patience_s: float = 10) -> Answer | None:
    """The first answer to these bytes, or None: the server hung up without one, or gave none in patience_s.

    Raises OSError if there is no connection to be had.
    """
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    try:
        writer.write(wire)  # not drained: it may be refused before it is read
        async with asyncio.timeout(patience_s):
            return await read_answer(reader)
    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        return None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """The next answer with a length. Raises asyncio.IncompleteReadError if the connection ends before it does."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(status.split()[1]), headers, body)

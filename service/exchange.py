"""One request that is answered below the framework, and its answer.

It stands where uvicorn's protocol keeps its own cycle of request and response, and has of it what the protocol looks
at. uvicorn makes a scope, an event, a task and messages of every request, half of what an empty answer costs; here the
parser's callbacks lead to the route, and the end of what the route waits for leads to the answer.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.requests import MAX_BODY_BYTES, too_large

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Call(Protocol):
    """What a route makes of an exchange."""

    def open(self) -> None:
        """Look at the head: refuse it or, now or later, let the exchange be `opened`."""

    def take(self, body: bytes) -> None:
        """Answer the whole, now or later."""

    def refuse(self, error: Exception) -> None:
        """Answer with a problem."""


class Line(Protocol):
    """The connection that a request came on."""

    transport: asyncio.Transport
    flow: FlowControl
    tasks: set[asyncio.Task[None]]

    @property
    def gone(self) -> bool:
        """Whether the client has left: nobody reads an answer any more."""

    def common_headers(self) -> tuple[bytes, bool]:
        """The headers of every answer, as sent, and whether this answer is the connection's last."""

    def on_response_complete(self) -> None:
        """An answer was sent: the next request of the connection may be answered."""


Route = Callable[["Exchange"], Call]


class Exchange:
    """A request, from when its head is complete.

    url as it was sent; headers with names in lower case; line: the connection; scope: what the connection knows the
    request by.
    """

    message_event = asyncio.Event()  # uvicorn wakes its task by it; there is none

    def __init__(
        self,
        route: Route,
        line: Line,
        url: bytes,
        headers: list[tuple[bytes, bytes]],
        *,
        scope: object,
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        self.line = line
        self.url = url
        self.headers = headers
        self.scope = scope
        self.keep_alive = keep_alive
        self.body: bytes | bytearray = b""
        self.more_body = True
        self.disconnected = self.response_started = self.response_complete = False
        self._route = route
        self._call: Call | None = None
        self._expects_continue = expects_continue

    def begin(self) -> None:
        """Let the route look at the head: what came before is answered."""
        if not (self.disconnected or self.line.transport.is_closing()):
            self._route(self).open()

    def opened(self, call: Call) -> None:
        """The head will do. The call gets the body when that is complete."""
        if self.disconnected or self.line.transport.is_closing():
            return
        self._call = call
        if len(self.body) > MAX_BODY_BYTES:
            call.refuse(too_large("longer"))
        elif not self.more_body:
            self._take(call)
        elif self._expects_continue:
            self.line.transport.write(_CONTINUE)

    def feed(self, piece: bytes) -> None:
        """A piece of the body; nothing is kept of one that is too large, or answered already."""
        if self.response_started or len(self.body) > MAX_BODY_BYTES:
            return
        if not self.body:
            self.body = piece
        else:
            if isinstance(self.body, bytes):  # a sum of many small pieces would copy all of them each time
                self.body = bytearray(self.body)
            self.body += piece
        if self._call is not None and len(self.body) > MAX_BODY_BYTES:
            self._call.refuse(too_large("longer"))

    def complete(self) -> None:
        """That was all of the body."""
        self.more_body = False
        if self._call is not None and not self.response_started:
            self._take(self._call)

    def _take(self, call: Call) -> None:
        body, self.body = bytes(self.body), b""
        call.take(body)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what has to wait for something on the way to the answer."""
        task = asyncio.create_task(work)
        self.line.tasks.add(task)  # the server waits for these when it stops
        task.add_done_callback(self.line.tasks.discard)

    def answer(self, status: int, head: bytes, content: bytes, more: Mapping[str, str]) -> None:
        """Send all of the answer in one write, once; nothing if the client has left.

        head: lines of headers as sent, beside those of every answer and the length of the content; more: others.
        """
        if self.disconnected:
            return
        common, last = self.line.common_headers()
        if last:
            self.keep_alive = False
        lines = b"".join([b"%b: %b\r\n" % (name.lower().encode(), value.encode()) for name, value in more.items()])
        if not self.keep_alive:
            lines += b"connection: close\r\n"
        self.response_started = True
        self.body, self._call = b"", None  # the connection may keep this for long
        data = b"%b%bcontent-length: %d\r\n%b%b\r\n%b" % (
            STATUS_LINE[status],
            common,
            len(content),
            head,
            lines,
            content,
        )
        if self.line.flow.write_paused:
            self.run(self._send_when_read(data))
        else:
            self._send(data)

    async def _send_when_read(self, data: bytes) -> None:
        """The client has not read its answers of before: this one waits, and the next request for this one."""
        await self.line.flow.drain()
        if not self.disconnected:
            self._send(data)

    def _send(self, data: bytes) -> None:
        self.response_complete = True
        self.line.transport.write(data)
        if not self.keep_alive:
            self.line.transport.close()
        self.line.on_response_complete()

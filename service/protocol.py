"""One connection of the HTTP server: what comes too slowly, is too large or is not HTTP gets a problem and a farewell.

uvicorn's own protocol waits forever for the rest of a request, keeps a head of any size, and answers what it cannot
parse in words of its own. Requests pay next to nothing for this: no timer is set for any, the server looks at all
connections twice a second instead.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.errors import Problem, problem_body
from service.exchange import Exchange, Route
from service.requests import CONNECTION, MAX_BODY_BYTES

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 65_536  # of the URL and the headers; the limits of other servers are 8 to 64 KiB
_MAX_UNANSWERED = 100  # requests of one connection: a read of 256 KiB can bring 14,000
_MAX_REQUEST_BYTES = 8 * MAX_BODY_BYTES  # a body sent in chunks of a byte takes six times as much, and trailers more

_NO_HEADERS: Any = deque(maxlen=0)  # keeps nothing: where trailers go, which must not pass for headers

_NOT_HTTP = Problem("malformed_http", "the bytes of the request are not HTTP/1.1; the connection is closed")
_HEAD_TOO_LARGE = Problem(
    "head_too_large", f"the URL and the headers are more than {MAX_HEAD_BYTES} bytes; send fewer or shorter ones"
)
_BODY_TOO_LARGE = Problem("body_too_large", f"at most {MAX_BODY_BYTES} bytes of a body are read; send less at once")
# Read as another protocol, a body could pass for the next request.
_UPGRADE_WITH_BODY = Problem("malformed_http", "the header Upgrade stands beside a body; leave it out")


class Connection(HttpToolsProtocol):
    """A client's connection, which a request to the framework finds in its scope.

    hot: by path, the routes whose POST is answered below the framework; on_refused: told the status of each answer that
    it gives itself.
    """

    gone = False  # the client has left: nobody reads an answer any more

    def __init__(
        self, hot: Mapping[bytes, Route], on_refused: Callable[[int], None], *arguments: Any, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._hot = hot
        self._on_refused = on_refused
        self._received = 0  # bytes of a request that is not complete
        self._refusal = _NOT_HTTP
        # Not the last request, and perhaps not answered yet, in order.
        self._earlier: deque[RequestResponseCycle | Exchange] = deque()
        self._always: tuple[list[tuple[bytes, bytes]] | None, bytes] = None, b""  # headers of all answers, as sent
        self._farewell = False  # whether the server lets its clients go
        self._begun = False  # a request in what is being read was begun at once, so that others wait

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, CONNECTION: self}
        self._stay_a_while()  # a client that says nothing at all is idle, and not slow

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._unset_keepalive_if_required()
        for cycle in self._earlier:  # uvicorn tells the last one alone, and the others would write to what is closed
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        # While the server lets its clients go, none is answered before it is known whether more stand behind it.
        self._begun = (b"connection", b"close") in self.server_state.default_headers
        super().data_received(data)
        if self.in_head:
            if self._received > 2 * MAX_HEAD_BYTES:  # the exact limit is that of a head that is complete
                self.refuse(_HEAD_TOO_LARGE)
        elif self.in_body:
            if self._received > _MAX_REQUEST_BYTES:
                self.refuse(_BODY_TOO_LARGE)
        elif self.cycle is None or self.cycle.response_complete:  # an empty line, or what was left of a body
            self._received = 0
            self._stay_a_while()

    def on_message_begin(self) -> None:
        self._unset_keepalive_if_required()  # what came before it in this read may have been answered
        # uvicorn fills a scope here, which only requests to the framework need.
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self.scope = {}  # type: ignore[typeddict-item]

    def on_headers_complete(self) -> None:
        if self._head_bytes() > MAX_HEAD_BYTES:
            self._stop(_HEAD_TOO_LARGE)
        offers_upgrade = self.parser.should_upgrade()
        if offers_upgrade and any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers):
            self._stop(_UPGRADE_WITH_BODY)
        while self._earlier and self._earlier[0].response_complete:
            self._earlier.popleft()
        last = self.cycle
        waiting = last is not None and not last.response_complete
        if waiting and len(self._earlier) + 1 >= _MAX_UNANSWERED:
            raise httptools.HttpParserError  # no problem is sent: the last answer says that it is the last
        hot = self._hot_route()
        if hot is None:
            self._begin_framed()
        else:
            keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
            self._begin(hot, keep_alive=keep_alive and not offers_upgrade, waits=waiting)
        self.headers = _NO_HEADERS  # the request has its own
        if waiting:
            self._earlier.append(last)
        if offers_upgrade:  # the offer is passed over, and the parser loses what follows it
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if isinstance(self.cycle, Exchange):
            self.cycle.feed(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._received = 0
        if isinstance(self.cycle, Exchange):
            self.cycle.complete()
        else:
            super().on_message_complete()
            self.cycle.more_body = False  # uvicorn forgets this where the answer came first

    def _hot_route(self) -> Route | None:
        """The route below the framework that the head asks for."""
        if self.parser.get_method() != b"POST":
            return None
        found = self._hot.get(self.url)
        if found is None:  # perhaps spelled otherwise
            found = self._hot.get(unquote_to_bytes(httptools.parse_url(self.url).path or b""))
        return found

    def _begin(self, route: Route, *, keep_alive: bool, waits: bool) -> None:
        """Begin a request below the framework, or let it wait for what came before it."""
        self.scope["method"] = "POST"
        exchange = Exchange(
            route,
            self,
            self.url,
            self.headers,
            scope=self.scope,
            keep_alive=keep_alive,
            expects_continue=self.expect_100_continue,
        )
        self.cycle = exchange  # type: ignore[assignment]
        if waits:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]
        elif self._begun:  # one read can bring thousands that are refused at once, and others wait meanwhile
            self._start_asgi_task(exchange, self.app)
        else:
            self._begun = True
            exchange.begin()

    def _begin_framed(self) -> None:
        """Begin a request to the framework, as uvicorn does."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle | Exchange, app: Any) -> None:
        """Begin a request of the framework's, or one that waited for what came before it."""
        if isinstance(cycle, Exchange):
            self.loop.call_soon(cycle.begin)  # one that is answered at once begins the next, and that the next
        elif not self.transport.is_closing():  # what was answered in this read may have been the last
            super()._start_asgi_task(cycle, app)

    def common_headers(self) -> tuple[bytes, bool]:
        """The headers of every answer, as sent, and whether this answer is the connection's last."""
        always = self.server_state.default_headers
        if self._always[0] is not always:  # the server makes new ones every second
            kept = [field for field in always if field[0] != b"connection"]
            self._always = always, b"".join([b"%b: %b\r\n" % field for field in kept])
            self._farewell = len(kept) < len(always)
        return self._always[1], self._farewell and not self.pipeline

    def _stay_a_while(self) -> None:
        """Wait for a request as long as after an answer."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _head_bytes(self) -> int:
        """Size of a head that is complete, with the colon and the line end of each header."""
        size = len(self.url) + 3 * len(self.headers)
        for name, value in self.headers:  # a sum of a generator takes twice as long
            size += len(name) + len(value)
        return size

    @property
    def in_head(self) -> bool:
        """Whether a request has begun whose head is not complete."""
        return self.scope is not None and "method" not in self.scope

    @property
    def in_body(self) -> bool:
        """Whether a request's head is complete and its body is not."""
        return self.cycle is not None and self.cycle.more_body and self.cycle.scope is self.scope

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser gives up."""
        self.refuse(self._refusal)

    def _stop(self, problem: Problem) -> NoReturn:
        """Make the parser give up."""
        self._refusal = problem
        raise httptools.HttpParserError

    def refuse(self, problem: Problem) -> None:
        """Answer what is coming in with a problem and hang up. An answer that is under way goes before or instead."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if self.in_body:
            unanswered = not (cycle.response_started or self.pipeline)
        elif cycle is None or cycle.response_complete:
            unanswered = True
        else:  # what came before it is being answered, and would take this for its answer
            cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if unanswered:
            self._on_refused(problem.status)
            request_id = f"{random.getrandbits(64):016x}"
            body = problem_body(problem, request_id)
            head = (
                f"HTTP/1.1 {problem.status} {problem.title}\r\ncontent-type: application/problem+json\r\n"
                f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Who offers another protocol is answered in this one, as HTTP allows; no reason to warn anybody."""


class Reaper:
    """Ends connections whose clients keep them waiting: a head, a body and the reading of an answer may take limit_s.

    `look` at all connections now and then.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._patience_s = 0.85 * limit_s  # looks are half a second apart, at the beginning of a wait and at its end
        self._waiting: dict[Connection, tuple[str, object, float]] = {}  # for what, of which request, since when

    def look(self, connections: Iterable[Any]) -> None:
        now = time.monotonic()
        waiting: dict[Connection, tuple[str, object, float]] = {}
        for connection in list(connections):
            what, mark = _wanted(connection)
            if not what:
                continue
            before, earlier, since = self._waiting.get(connection, ("", None, now))
            # The mark of a request is its scope, and two may be equal.
            if before != what or not (earlier is mark or (what == "answer" and earlier == mark)):
                since = now
            if now - since < self._patience_s:
                waiting[connection] = what, mark, since
            elif what == "answer":
                logger.debug("a client does not read its answer; the connection is given up")
                connection.transport.abort()
            else:
                detail = f"the {what} of the request was not complete after {self._limit_s:g} s; send it faster"
                connection.refuse(Problem("too_slow", detail))
        self._waiting = waiting


def _wanted(connection: Connection) -> tuple[str, object]:
    """What is awaited of a client, and of which request; "" if it is the client who waits."""
    unread = connection.transport.get_write_buffer_size()
    if unread:
        return "answer", unread
    if connection.flow.read_paused:  # we keep the rest from coming
        return "", None
    if connection.in_head:
        return "head", connection.scope
    return ("body", connection.scope) if connection.in_body else ("", None)

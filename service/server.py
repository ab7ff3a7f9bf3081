"""The HTTP server of one process: it listens, answers, and drains when told to stop."""

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys
from collections.abc import Callable, Generator
from functools import partial
from itertools import starmap

import uvicorn

from service.app import Application
from service.metrics import Metrics
from service.protocol import Connection, Reaper
from service.settings import Settings

_LOOK_TICKS = 5  # of 0.1 s, between looks for slow clients
_LINGER_S = 1.0  # for kept connections to bring the request that is on its way when told to stop
_LOOK_S = 0.02
_SETTLE_S = 0.05  # for who was about to be connected
_SO_ATTACH_FILTER = 26  # of Linux, as linux/filter.h has it; Python has no name for it
_INSTRUCTION = struct.Struct("HBBI")  # code, steps if true, steps if false, value
_NO_SYN = (
    (0x30, 0, 0, 13),  # load a byte: the flags of a TCP header
    (0x45, 0, 1, 0x02),  # is SYN set, as in the first packet of a connection and no later one to a listener?
    (0x06, 0, 0, 0),  # then drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # else let all of it through
)


class CannotListen(Exception):  # noqa: N818 - the message is the whole of it
    """The port is taken after all; the message says which and what to do."""


class Server(uvicorn.Server):
    """Serves `app` on a bound socket until `stop`; `on_started` is called when it listens. `status`: to exit with."""

    def __init__(
        self, app: Application, settings: Settings, metrics: Metrics, on_started: Callable[[], None] = lambda: None
    ) -> None:
        refused = partial(metrics.answered, "unparsed", seconds=0.0)
        config = uvicorn.Config(
            app.framed,
            loop="none",
            http=partial(Connection, app.hot, refused),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody asks for the client's address
            timeout_keep_alive=75,  # longer than the idle timeout of the usual proxies, so that they close first
            timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        )
        super().__init__(config)
        self.status = 0
        self._on_started = on_started
        self._reaper = Reaper(settings.receive_s)

    @property
    def stopping(self) -> bool:
        return self.should_exit

    def stop(self, status: int = 0) -> None:
        """Drain and end; asked twice, do not wait for requests under way."""
        self.force_exit = self.should_exit
        self.status = self.status or status
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises CannotListen: two may bind a port, and the first that listens has it."""
        try:
            await super().startup(sockets)
        except OSError as error:
            host, port = sockets[0].getsockname()[:2] if sockets else ("", "")
            raise CannotListen(
                f"cannot listen on {host} port {port} ({error.strerror}); choose another with --port"
            ) from error
        self._on_started()

    async def on_tick(self, counter: int) -> bool:
        if counter % _LOOK_TICKS == 0:
            self._reaper.look(self.server_state.connections)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain: what is under way is answered, and on kept connections what is just being sent.

        uvicorn alone closes idle connections at once, and a request that was on its way then is lost; so is that of a
        client to whom the kernel has given a connection that the loop has not taken yet.
        """
        farewell = [*self.server_state.default_headers, (b"connection", b"close")]  # so that clients let go
        self.server_state.default_headers = farewell
        loop = asyncio.get_running_loop()
        for listener in sockets or []:
            _admit_no_more(listener)
        await asyncio.sleep(_SETTLE_S)
        arrived = [connection for listener in sockets or [] for connection in _last_of(listener)]
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in arrived:
            with contextlib.suppress(OSError):  # its client has left
                await loop.connect_accepted_socket(self._protocol, connection)
        until = loop.time() + min(_LINGER_S, float(self.config.timeout_graceful_shutdown or 0))
        while self.server_state.connections and loop.time() < until and not self.force_exit:  # noqa: ASYNC110 - no event
            await asyncio.sleep(_LOOK_S)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(config=self.config, server_state=self.server_state, app_state={})  # type: ignore[call-arg]

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves signals to us: its own way ends the process by the signal instead of with status 0."""
        yield


def _admit_no_more(listener: socket.socket) -> None:
    """Let the kernel drop whoever wants to connect from now on, where it can: else, between the last look at who waits
    and the end of the listener, one might get a connection and lose it with its request. On Linux alone."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        filters = ctypes.create_string_buffer(b"".join(starmap(_INSTRUCTION.pack, _NO_SYN)))
        listener.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_NO_SYN), ctypes.addressof(filters))
        )


def _last_of(listener: socket.socket) -> list[socket.socket]:
    """The connections that wait to be taken: a listener that is closed resets them."""
    listener.setblocking(False)
    arrived = []
    with contextlib.suppress(OSError):  # no more, or no file for one
        while True:
            arrived.append(listener.accept()[0])
    return arrived

"""The HTTP server of one process: it listens, answers, and drains when told to stop."""

import contextlib
import socket
from collections.abc import Callable, Generator
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from service.metrics import Metrics
from service.protocol import Connection, Reaper
from service.settings import Settings

_LOOK_TICKS = 5  # of 0.1 s, between looks for slow clients


class CannotListen(Exception):  # noqa: N818 - the message is the whole of it
    """The port is taken after all; the message says which and what to do."""


class Server(uvicorn.Server):
    """Serves `app` on a bound socket until `stop`; `on_started` is called when it listens. `status`: to exit with."""

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, on_started: Callable[[], None] = lambda: None
    ) -> None:
        config = uvicorn.Config(
            app,
            loop="none",
            http=partial(Connection, partial(metrics.answered, "unparsed", seconds=0.0)),  # type: ignore[arg-type]
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

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves signals to us: its own way ends the process by the signal instead of with status 0."""
        yield

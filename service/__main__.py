"""`python -m service`: serve recommendations, archive the event log, and manage the keys of those who may ask.

Whatever stops it from starting is one sentence on stderr and exit status 2; a store of its own that ends by itself
stops it with status 1, for whoever supervises it to start both again. Told to stop, it ends with 0, and with 1 if it
had to leave a ranking behind that does not end.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from models.archive import ArchiveError
from models.device import DeviceError, check_installation
from models.eventlog import EventLogError
from models.manifest import BundleError
from service import key_commands, logs
from service.keyfile import KeyFileError
from service.settings import BadSettings, Settings, load

if TYPE_CHECKING:
    from service.embedded import EmbeddedStore
    from service.server import Server
    from service.supervisor import Supervisor

logger = logging.getLogger(__name__)

_EPILOG = """examples:
  python -m service serve --embedded                       with a store of its own under artifacts/store
  python -m service serve --redis redis://127.0.0.1:6379
  python -m service archive --redis redis://127.0.0.1:6379 --to artifacts/archive
  python -m service keys create shop --scope recommend --scope events        a key, for listening beyond this machine

every option is also a variable, RECSERVE_PORT=9000 for example; the option wins
every other setting is a variable alone; docs/settings.md has them all"""


class StartError(Exception):
    """The service cannot start; the message says what to do."""


_SENTENCES = (
    ArchiveError,
    BadSettings,
    BundleError,
    DeviceError,
    EventLogError,
    KeyFileError,
    StartError,
    OSError,
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="The HTTP service: events in, recommendations out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve",
        help="answer requests until told to stop",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument("--host", help="address to listen on (127.0.0.1); beyond this machine it needs keys")
    serve.add_argument("--port", help="port to listen on (8000); 0 takes any free one")
    serve.add_argument("--workers", help="processes that answer on the port (1); one for each core, less the store's")
    serve.add_argument("--artifacts", type=Path, help="folder of bundles (artifacts)")
    store = serve.add_mutually_exclusive_group()
    forms = "redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://; see docs/settings.md"
    store.add_argument("--redis", metavar="URL", help=f"sequence store to use: {forms}")
    store.add_argument("--embedded", action="store_true", default=None, help="start a sequence store of its own")
    serve.add_argument(
        "--data", type=Path, metavar="DIR", help="where the embedded store keeps its files (store, in the artifacts)"
    )
    serve.add_argument("--keys", type=Path, metavar="DIR", help="where API keys are kept (keys, in the artifacts)")
    serve.add_argument("--device", help="auto, cpu or cuda (auto)")
    serve.add_argument(
        "--threads", help="CPU threads of one ranking (1 if that is quick, else the CPU quota / workers)"
    )
    serve.add_argument("--log-level", help="debug, info, warning or error (info)")
    archive = commands.add_parser("archive", help="move the event log to Parquet files, every few minutes or once")
    archive.add_argument("--redis", metavar="URL", help="store whose log it is (RECSERVE_REDIS)")
    archive.add_argument(
        "--to", type=Path, metavar="DIR", help="folder, one for each store (archive, in the artifacts)"
    )
    archive.add_argument("--every", type=float, default=300, metavar="S", help="seconds between two moves (300)")
    archive.add_argument("--once", action="store_true", help="move what is there, and end")
    archive.add_argument("--compact", action="store_true", help="with --once: drop repeats and erased users as well")
    key_commands.add_to(commands)
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    try:
        if command == "keys":
            return key_commands.run(options)
        if command == "archive":
            return _archive(**options)
        settings = load(options)
        check_installation()
        return _serve(settings)
    except _SENTENCES as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # told to stop before it had started
        return 0


def _archive(*, redis: str | None, to: Path | None, every: float, once: bool, compact: bool) -> int:
    from service.archive import archive  # noqa: PLC0415 - needs an extra package

    settings = load({"redis": redis})
    if settings.redis is None:
        raise StartError("the archiver needs the URL of the store; the log of 'serve --embedded' names it at its start")
    if compact and not once:
        raise StartError("--compact goes with --once; without it every day is compacted anyway")
    if not every > 0:
        raise StartError(f"--every is {every:g}; give seconds above 0")
    logs.configure(settings.log_level)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    archive(settings.redis, to or settings.artifacts / "archive", once=once, compacting=compact, every_s=every)
    return 0


def _serve(settings: Settings) -> int:
    import uvloop  # noqa: PLC0415 - `keys` and `--help` should not wait for a web framework

    from service.auth import check_start  # noqa: PLC0415
    from service.scoring import ScoringStuck  # noqa: PLC0415
    from service.slot import LOADING  # noqa: PLC0415

    check_start(settings)  # before anything is started
    logs.configure(settings.log_level)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the server is up and drains instead
    try:
        with (
            _bound(settings.host, settings.port, shared=settings.workers > 1) as listener,
            _embedded(settings) as embedded,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            status = runner.run(_run(settings, embedded, listener))
    except ScoringStuck as error:
        logger.error("%s; the process ends without it", error)
        os._exit(1)  # the usual way takes onnxruntime down below a thread that is in it, which aborts
    except KeyboardInterrupt:  # told to stop before it had started
        status = 0
    if any(thread.name == LOADING for thread in threading.enumerate()):
        os._exit(status)  # for the same reason
    return status


async def _run(settings: Settings, embedded: "EmbeddedStore | None", listener: socket.socket) -> int:
    """Serve until told to stop, and give the exit status: 1 if it was the end of the embedded store that did."""
    store_url = embedded.url if embedded else settings.redis or ""
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if settings.workers > 1:
        from service.supervisor import Supervisor, WorkersCannotStart  # noqa: PLC0415

        supervisor = Supervisor(
            settings, store_url, listener, lambda: logger.info("serving on %s with %d workers", url, settings.workers)
        )
        _stop_in_time(supervisor, embedded)
        try:
            await supervisor.run()
        except WorkersCannotStart as error:
            raise StartError(str(error)) from error
        logger.info("stopped")
        return supervisor.status
    from service.app import running  # noqa: PLC0415
    from service.metrics import Metrics  # noqa: PLC0415
    from service.server import CannotListen, Server  # noqa: PLC0415

    metrics = Metrics()
    async with running(settings, store_url, metrics) as app:
        server = Server(app, settings, metrics, lambda: logger.info("serving on %s", url))
        _stop_in_time(server, embedded)
        try:
            await server.serve(sockets=[listener])
        except CannotListen as error:
            raise StartError(str(error)) from error
        logger.info("stopped")
        return server.status


def _stop_in_time(served: "Server | Supervisor", embedded: "EmbeddedStore | None") -> None:
    """Stop it when told to, and with status 1 when its store ends by itself."""
    loop = asyncio.get_running_loop()

    def store_ended(reason: str) -> None:
        if not served.stopping:  # a supervisor that stops everything at once has told us too
            logger.error("%s; the service stops: nothing could be stored any more", reason)
            served.stop(1)

    def on_end(reason: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the service has just stopped by itself
            loop.call_soon_threadsafe(store_ended, reason)

    if embedded is not None:
        embedded.watch(on_end)
        logger.info("the embedded store listens at %s", embedded.url)  # for `retrain --events-from`
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, served.stop)


@contextlib.contextmanager
def _bound(host: str, port: int, *, shared: bool) -> Iterator[socket.socket]:
    """A socket that holds the port, so that a port in use is found before anything is loaded.

    shared: workers may listen there too. Allowed only after binding, or a second service could take part unnoticed.
    """
    if shared and sys.platform != "linux":
        raise StartError("several workers on one port need Linux; leave out --workers")
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise StartError(
            f"cannot listen on {host} port {port} ({error.strerror}); choose another with --port"
        ) from error
    with listener:
        yield listener


@contextlib.contextmanager
def _embedded(settings: Settings) -> Iterator["EmbeddedStore | None"]:
    """The sequence store of our own, running while entered; None where the settings name another."""
    if settings.redis is not None:
        yield None
        return
    from service.embedded import EmbeddedStore, EmbeddedStoreError  # noqa: PLC0415 - needs an extra package

    embedded = EmbeddedStore(settings.store_folder, sync_every_write=settings.durability != "fast")
    try:
        embedded.__enter__()
    except EmbeddedStoreError as error:
        raise StartError(str(error)) from error
    with contextlib.closing(embedded):
        yield embedded


if __name__ == "__main__":
    sys.exit(main())

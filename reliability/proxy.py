"""A proxy of TCP connections that can lose, delay and cut what it should pass on: the network's part in a fault."""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Literal, Self

Fate = Literal["passed", "cut", "silent"]


class Proxy:
    """Listens on a loopback port of its own and passes on to `target` while entered.

    fate: what happens to each piece of an answer: passed on, lost with its connection cut, or lost with all that would
    follow on a connection that stays open. `silent` loses everything in both directions without closing anything, for
    connections to come too; `delay_s` is added to every piece of an answer. Both may be set at any time.
    """

    def __init__(self, target: tuple[str, int], *, fate: Callable[[], Fate] = lambda: "passed") -> None:
        self.target = target
        self.silent = False
        self.delay_s = 0.0
        self.pieces = self.lost = 0  # of answers: those whose fate was asked for, and those of them that were lost
        self._fate = fate
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    @property
    def url(self) -> str:
        """As that of a store."""
        return f"redis://127.0.0.1:{self.address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._listener.close()
        self.cut()

    @property
    def lost_share(self) -> float:
        """Of the pieces of answers."""
        return self.lost / max(1, self.pieces)

    def cut(self) -> None:
        """Close every connection."""
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            _shut(connection)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self.target, timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        with self._lock:
            self._open |= {client, server}
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asking = threading.Thread(target=self._pump, args=(client, server, False), daemon=True)
        asking.start()
        self._pump(server, client, True)
        asking.join()
        for end in (client, server):
            end.close()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        """Pass on until one end closes. What is delayed is sent by a thread of its own, so that delays do not add."""
        pieces: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        sender = threading.Thread(target=_send, args=(pieces, sink), daemon=True)
        sender.start()
        lost = False
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                if answers and not lost and not self.silent:
                    fate = self._fate()
                    self.pieces += 1
                    if fate != "passed":
                        self.lost += 1
                    if fate == "cut":
                        break
                    lost = fate == "silent"
                if not (lost or self.silent):
                    pieces.put((time.monotonic() + (self.delay_s if answers else 0.0), piece))
        pieces.put((0.0, b""))
        sender.join()
        for end in (source, sink):
            _shut(end)
        with self._lock:
            self._open -= {source, sink}


def _send(pieces: "queue.SimpleQueue[tuple[float, bytes]]", sink: socket.socket) -> None:
    while True:
        due, piece = pieces.get()
        if not piece:
            return
        time.sleep(max(0.0, due - time.monotonic()))
        with contextlib.suppress(OSError):
            sink.sendall(piece)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)

"""TLS in front of a store that has none: one port that takes both, so that nodes and sentinels may go on without."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Self

import pytest

_HELLO = b"\x16"  # a handshake's first byte, which is no command's


def certificate(folder: Path) -> Path:
    """PEM file of a key and a certificate for 127.0.0.1, signed by itself; skips out loud where openssl is not."""
    openssl, path = shutil.which("openssl"), folder / "store.pem"
    if openssl is None:
        pytest.skip("there is no openssl on PATH to make a certificate with")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path, "-out", f"{path}.crt")
    names = ("-subj", "/CN=store", "-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run([openssl, "req", "-x509", "-days", "2", *key, *names], check=True, capture_output=True)
    with path.open("a") as file:
        file.write(Path(f"{path}.crt").read_text())
    return path


class Encrypted:
    """Passes on to a port of loopback while entered, whether it is spoken to by TLS or not."""

    def __init__(self, port: int, pem: Path) -> None:
        self._target = port
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(pem)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.handshakes = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(client.close)
            server = stack.enter_context(socket.create_connection(("127.0.0.1", self._target)))
            if client.recv(1, socket.MSG_PEEK) == _HELLO:
                client = stack.enter_context(self._context.wrap_socket(client, server_side=True))
                self.handshakes += 1
            back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
            back.start()
            _pass_on(client, server)
            back.join()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    """Until it ends; then the other end learns of it."""
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

"""TLS in front of a store that has none: one port that takes both, so that nodes and sentinels may go on without."""

import contextlib
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from reliability.proxy import Proxy

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


class Encrypted(Proxy):
    """Passes on to a port of loopback, whether it is spoken to by TLS or not.

    asked: the only certificate that a client by TLS may have; None: it needs none.
    """

    def __init__(self, port: int, pem: Path, asked: Path | None = None) -> None:
        super().__init__(("127.0.0.1", port))
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(pem)
        if asked is not None:
            self._context.load_verify_locations(asked)
            self._context.verify_mode = ssl.CERT_REQUIRED

    def _connect(self, client: socket.socket) -> None:
        with contextlib.closing(client), contextlib.suppress(OSError):  # of a handshake that fails
            if client.recv(1, socket.MSG_PEEK) == _HELLO:
                client = self._context.wrap_socket(client, server_side=True)
            super()._connect(client)

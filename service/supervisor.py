"""Several workers on one port: started together, replaced when they end, told to drain together, counted as one.

Workers are forks of the supervisor, so that the interpreter and its libraries, the most of what a worker needs beside
the mapped model, are in memory once for all. onnxruntime, whose sessions and threads no fork survives, each loads by
itself. The supervisor answers no request and loads no model; it holds the port, so that nobody else takes it, and the
counts of workers that have ended.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import orjson

from service.fork import Fork
from service.settings import Settings
from service.totals import Snapshot, Totals
from service.worker import LINE_BYTES, STUCK, Assignment, work

logger = logging.getLogger(__name__)

_POLL_S = 1.0  # how old the counts of a worker that is killed can be
_COLLECT_S = 1.0  # for all workers' counts; of one that is late the last known ones do
_START_S = 120.0  # or twice what the first start took: then a worker that does not serve yet is replaced
_STOP_S = 5.0  # beyond the drain, before a worker is killed
_STEADY_S = 10.0  # a worker that lasted so long is replaced at once
_PAUSES_S = (0.1, 0.5, 2.0, 10.0, 30.0)  # before the next start of one that did not, and again


class WorkersCannotStart(Exception):  # noqa: N818 - the message is the whole of it
    """A worker ended before it served for the first time; the message is what it said."""


@dataclass(eq=False)
class _Worker:
    """A process and the line to it."""

    number: int
    process: Fork
    writer: asyncio.StreamWriter
    started_at: float = field(default_factory=time.monotonic)
    ready: bool = False
    reason: str = ""  # what it said of its failure
    counts: Snapshot = field(default_factory=list)
    ready_at: float = 0.0
    asked: dict[int, asyncio.Future[None]] = field(default_factory=dict)  # questions without an answer yet
    waiting_since: float = 0.0  # for an answer, if there is such a question

    @property
    def steady(self) -> bool:
        return self.ready and time.monotonic() - self.ready_at > _STEADY_S

    @property
    def how(self) -> str:
        """How its process ended."""
        status = self.process.returncode
        return f"by signal {-status}" if status is not None and status < 0 else f"with status {status}"

    @property
    def hung_up(self) -> bool:
        """Whether it is ending: nothing more can be asked of it."""
        return self.writer.is_closing()

    def send(self, message: dict[str, object]) -> None:
        if not self.hung_up:  # or uvloop raises
            self.writer.write(orjson.dumps(message) + b"\n")

    def end(self, reason: str) -> None:
        logger.error("worker %d %s; it is replaced", self.number, reason)
        self.process.kill()


class Supervisor:
    """Keeps `settings.workers` workers answering where `listener` is bound until `stop`; then `status` is to exit with.

    `on_ready` is called when all of them serve for the first time.
    """

    def __init__(
        self, settings: Settings, store_url: str, listener: socket.socket, on_ready: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._store_url = store_url
        self._listener = listener
        self._address = listener.getsockname()
        self._on_ready = on_ready
        self._announced = False
        self._start_s = _START_S
        self._workers: dict[int, _Worker] = {}
        self._totals = Totals()
        self._number = 0  # of the last question
        self._stopping = asyncio.Event()
        self.status = 0
        self._failure = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve. Raises WorkersCannotStart, with what the first of them said."""
        keepers = [asyncio.create_task(self._keep(number)) for number in range(self._settings.workers)]
        poll = asyncio.create_task(self._poll())
        for task in (*keepers, poll):
            task.add_done_callback(self._done)
        try:
            await self._stopping.wait()
            self._listener.close()
            for worker in self._workers.values():
                worker.process.terminate()
            await asyncio.wait(keepers, timeout=self._settings.drain_s + _STOP_S)
        finally:
            self._kill()
            await asyncio.gather(*keepers, return_exceptions=True)
            poll.cancel()
        if self._failure:
            raise WorkersCannotStart(self._failure)

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def stop(self, status: int = 0) -> None:
        """Let the workers drain, and end with a status. Asked twice, do not wait for requests under way."""
        if self.stopping:
            self._kill()
        else:
            self.status = status
            self._stopping.set()

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a bug in the supervisor stops the service", exc_info=error)
            self.stop(1)

    def _kill(self) -> None:
        for worker in self._workers.values():
            worker.process.kill()  # loses nothing: what was acknowledged is in the store

    async def _keep(self, number: int) -> None:
        """One worker after the other."""
        short = 0  # lives in a row
        while not self.stopping:
            ready = steady = stuck = False
            try:
                worker = await self._live(number)
                reason, ready, steady = worker.reason, worker.ready, worker.steady
                how, stuck = reason or worker.how, worker.process.returncode == STUCK
            except OSError as error:  # no process or no file is to be had just now
                reason = how = f"a worker could not be started: {error.strerror}"
            if self.stopping:
                if stuck:
                    self.status = self.status or STUCK
                return
            if not self._announced:
                self._failure = reason or f"a worker ended {how} before it could serve"
                self.stop()
                return
            if not (ready or any(other.ready for other in self._workers.values())):
                logger.error("worker %d could not be replaced (%s) and no other serves; the service stops", number, how)
                self.stop(1)
                return
            short = 0 if steady else short + 1
            pause_s = _PAUSES_S[min(short, len(_PAUSES_S)) - 1] if short else 0.0
            logger.error("worker %d ended (%s); the next one starts in %.1f s", number, how, pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()

    async def _live(self, number: int) -> _Worker:
        """Start a worker and listen to it until it has ended. Raises OSError if none can be started."""
        assignment = Assignment(number, self._settings, self._store_url, self._listener.family, self._address)
        with _started(assignment) as (process, connection):
            try:
                reader, writer = await asyncio.open_unix_connection(sock=connection, limit=LINE_BYTES)
                worker = self._workers[number] = _Worker(number, process, writer)
                if self.stopping:  # meanwhile
                    process.terminate()
                with contextlib.suppress(OSError):
                    async for line in reader:
                        if line.endswith(b"\n"):  # or it was killed meanwhile
                            self._heard(worker, orjson.loads(line))
                writer.close()
                for answer in worker.asked.values():
                    answer.cancel()
                await _ended(process)
            finally:
                self._workers.pop(number, None)
                if process.poll() is None:  # what went wrong is ours
                    process.kill()
                    await _ended(process)
        self._totals.retire(worker.counts)
        return worker

    def _heard(self, worker: _Worker, message: dict[str, object]) -> None:
        match message:
            case {"kind": "ready"}:
                worker.ready, worker.ready_at = True, time.monotonic()
                ready = sum(other.ready for other in self._workers.values())
                if not self._announced and ready == self._settings.workers:
                    self._announced = True
                    self._start_s = max(_START_S, 2 * (worker.ready_at - worker.started_at))
                    self._on_ready()
            case {"kind": "failed", "reason": str(reason)}:
                worker.reason = reason
            case {"kind": "counted", "number": int(number), "healthy": bool(healthy), "counts": list(counts)}:
                worker.counts = counts
                worker.waiting_since = time.monotonic()
                answer = worker.asked.pop(number, None)
                if answer is not None and not answer.done():
                    answer.set_result(None)
                if not healthy and not self.stopping:
                    worker.end("has a scoring thread that is stuck or has stopped")
            case {"kind": "totals"}:
                task = asyncio.create_task(self._answer(worker))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _ask(self, worker: _Worker) -> asyncio.Future[None]:
        """Done when the worker's counts are at least as new as this call."""
        if not worker.asked:
            worker.waiting_since = time.monotonic()
        self._number += 1
        answer = worker.asked[self._number] = asyncio.get_running_loop().create_future()
        worker.send({"kind": "count", "number": self._number})
        return answer

    async def _answer(self, asking: _Worker) -> None:
        """Tell a worker the counts of all."""
        live = [worker for worker in self._workers.values() if worker.ready and not worker.hung_up]
        if live:
            await asyncio.wait([self._ask(worker) for worker in live], timeout=_COLLECT_S)
        text = self._totals.text([worker.counts for worker in self._workers.values()])
        asking.send({"kind": "totals", "text": text.decode()})

    async def _poll(self) -> None:
        """Keep the counts fresh, and replace a worker that does not answer."""
        while True:
            await asyncio.sleep(_POLL_S)
            for worker in self._workers.values():
                if worker.hung_up:
                    continue
                if not worker.ready:
                    if self._announced and time.monotonic() - worker.started_at > self._start_s:
                        worker.end(f"did not serve within {self._start_s:.0f} s of its start")
                elif worker.asked and time.monotonic() - worker.waiting_since > self._settings.stuck_s:
                    worker.end(f"has not answered for {self._settings.stuck_s:g} s")
                else:
                    self._ask(worker)


@contextlib.contextmanager
def _started(assignment: Assignment) -> Iterator[tuple[Fork, socket.socket]]:
    """A worker, and our end of the line to it. Within the block it can tell that this process lives."""
    with contextlib.ExitStack() as both:
        with contextlib.ExitStack() as its:
            ours, theirs = socket.socketpair()
            both.callback(ours.close)
            its.callback(theirs.close)
            lifeline, held = os.pipe()
            its.callback(os.close, lifeline)
            both.callback(os.close, held)
            process = Fork(lambda: work(assignment, theirs, lifeline), keep=(theirs.fileno(), lifeline))
        yield process, ours


async def _ended(process: Fork) -> None:
    """Wait for a process that has hung up, and kill it if it does not end. A thread for that may not be to be had."""
    until = time.monotonic() + _STOP_S
    while process.poll() is None:
        if time.monotonic() > until:
            process.kill()
        await asyncio.sleep(0.01)

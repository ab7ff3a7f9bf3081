"""Log lines: one JSON object each on stderr, or plain lines where a person is watching.

The id of the request a line belongs to is taken from its context, so that nobody has to pass it along. User ids and
keys are never logged: events are counted, not quoted. What others say may quote all the same, a library's exception or
a server's refusal, so that it is left out here, where every line passes.
"""

import logging
import math
import re
import sys
import time
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_SECRETS = (
    (re.compile(r"rsk_([0-9a-f]{12})_[A-Za-z0-9_-]+"), r"rsk_\1_..."),  # an API key, of which the id is public
    (re.compile(r"(recserve:\{[^}]*\}:\w+:).*"), r"\1..."),  # a name in the store, which ends with a user's id
    (re.compile(r"(with args beginning with:).*"), r"\1 ..."),  # how Redis refuses a command it does not know
)
_SAID_EVERY_S = 1.0
_OUR_PACKAGES = ("models", "service")
_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message", "taskName"}


class JsonFormatter(logging.Formatter):
    """time (RFC 3339), level, logger, message, worker, request_id, exception, and whatever `extra` added."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if self._worker is not None:
            line["worker"] = self._worker
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        if record.exc_info:
            line["exception"] = _told(record.exc_info[1])
        line.update({name: value for name, value in record.__dict__.items() if name not in _OWN})
        cleared = {name: _cleared(value) if isinstance(value, str) else value for name, value in line.items()}
        return orjson.dumps(cleared, default=str).decode()


class PlainFormatter(logging.Formatter):
    """The same for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{datetime.fromtimestamp(record.created):%H:%M:%S} {record.levelname.lower():<7} {_message(record)}"
        if (current := request_id.get()) is not None:
            line += f"  [{current}]"
        if record.exc_info:
            line += "\n" + _told(record.exc_info[1])
        return _cleared(line)


class Seldom:
    """Logs each message once a second at most: a store that is full may refuse for days, and a thousand requests a
    second.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._said: dict[str, float] = {}  # each message, and when

    def log(self, level: int, message: str, *values: object) -> None:
        now = time.monotonic()
        if now - self._said.get(message, -math.inf) >= _SAID_EVERY_S:
            self._said[message] = now
            self._logger.log(level, message, *values)


def _message(record: logging.LogRecord) -> str:
    """What a record says, and of the event loop's complaints the first line: then come callbacks with what they got."""
    message = record.getMessage()
    return re.sub("<.*>", "<...>", message.partition("\n")[0]) if record.name == "asyncio" else message


def _told(error: BaseException | None) -> str:
    """Where an exception comes from, what it is, and what it says if that is ours or the system's to say."""
    chain: list[str] = []
    while error is not None and len(chain) < 10:
        kind = type(error)
        plain = kind.__module__.partition(".")[0] in _OUR_PACKAGES or isinstance(error, OSError)
        says = str(error) if plain else "(its message may quote a request and is left out)"
        places = "".join(traceback.format_tb(error.__traceback__))
        chain.append(f"{places}{kind.__module__}.{kind.__qualname__}: {says}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nwhich became\n\n".join(reversed(chain))


def _cleared(text: str) -> str:
    """Without secrets, and without what UTF-8 cannot say: the name of a file may have any bytes."""
    text = text.encode(errors="backslashreplace").decode()
    for secret, instead in _SECRETS:
        text = secret.sub(instead, text)
    return text


def configure(level: str, stream: TextIO | None = None, *, worker: int | None = None) -> None:
    """Send every logger's lines, the server's and libraries' too, to one stream (stderr); `worker`: its number."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter() if stream.isatty() else JsonFormatter(worker))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The server's own messages about starting and draining repeat ours.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))

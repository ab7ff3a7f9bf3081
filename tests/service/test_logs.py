"""What a log line has, and what it leaves out."""

import asyncio
import gc
import io
import json
import logging
import os
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from service import logs
from service.engine import EngineError
from service.requests import RequestScope

KEY = "rsk_0123456789ab_" + "c" * 43


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What is logged, as JSON lines; the root logger is as before afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure("warning", stream)
    yield stream
    root.handlers[:], root.level = before, level


def test_what_libraries_say_of_an_exception_is_left_out_and_what_is_ours_stays(stream: io.StringIO) -> None:
    def fail(user: str) -> None:
        try:
            try:
                {}[user]  # type: ignore[index]
            except KeyError as error:
                raise EngineError("the model gave NaN") from error
        except EngineError as error:
            raise FileNotFoundError(2, "No such file", "items.npy") from error

    try:
        fail("".join(["can", "ary"]))  # a traceback quotes the source
    except OSError:
        logging.getLogger("x").exception("it failed")
    told = json.loads(stream.getvalue())["exception"]
    assert "canary" not in told
    assert "builtins.KeyError: (its message" in told
    assert "service.engine.EngineError: the model gave NaN" in told
    assert "items.npy" in told
    assert told.index("KeyError") < told.index("EngineError") < told.index("FileNotFoundError")
    assert told.count("in fail") == 3


def test_the_name_of_a_file_that_is_no_text_is_logged_all_the_same(stream: io.StringIO) -> None:
    logging.getLogger("x").warning("%s is damaged", os.fsdecode(b"/models/\xff"), extra={"folder": "\udc80"})
    line = json.loads(stream.getvalue())
    assert line["message"] == "/models/\\udcff is damaged"
    assert line["folder"] == "\\udc80"


@pytest.mark.parametrize(
    ("message", "instead"),
    [
        (f"sent {KEY}, twice {KEY}", "sent rsk_0123456789ab_..., twice rsk_0123456789ab_..."),
        (
            "ERR unknown command 'EVALSHA', with args beginning with: 'ab' '3' 'recserve:{1}:h:ann'",
            "ERR unknown command 'EVALSHA', with args beginning with: ...",
        ),
        ("WRONGTYPE of recserve:{61}:h:ann of shop", "WRONGTYPE of recserve:{61}:h:..."),
        ("recserve:{items}:version is set back", "recserve:{items}:version is set back"),
    ],
)
def test_keys_and_names_of_users_in_the_store_are_cut(stream: io.StringIO, message: str, instead: str) -> None:
    logging.getLogger("x").warning("%s", message, extra={"more": message})
    line = json.loads(stream.getvalue())
    assert (line["message"], line["more"]) == (instead, instead)


def test_of_the_event_loops_complaints_no_callback_is_quoted(stream: io.StringIO) -> None:
    async def fail(user: str) -> None:
        raise ValueError(user)

    async def forget() -> None:
        task = asyncio.create_task(fail("canary"))
        await asyncio.wait([task])
        del task  # nobody has looked at it
        gc.collect()

    asyncio.run(forget())
    line = json.loads(stream.getvalue())
    assert line["message"] == "Task exception was never retrieved"
    assert "builtins.ValueError: (its message" in line["exception"]
    assert "canary" not in stream.getvalue()


@pytest.mark.anyio
async def test_a_bug_is_logged_by_the_pattern_of_its_path(stream: io.StringIO) -> None:
    app = FastAPI()
    app.add_middleware(RequestScope)

    @app.get("/users/{user_id}/history")
    async def fail(user_id: str) -> None:
        raise ValueError(user_id)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        answer = await client.get("/users/canary/history")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    line = json.loads(stream.getvalue())
    assert line["message"] == "a bug answered GET /users/{user_id}/history"
    assert "canary" not in stream.getvalue()

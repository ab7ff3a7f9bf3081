"""POST /events: every field and limit of the contract, over HTTP, with what the store then holds."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from models.eventlog import LoggedEvent, gone, read_events

LONG = "é" * 128  # 256 bytes


@pytest.fixture
def log(store_url: str) -> Callable[[], list[LoggedEvent]]:
    """Everything in the event log."""

    def read() -> list[LoggedEvent]:
        with redis.Redis.from_url(store_url) as server:
            return list(read_events(server))

    return read


def event(**fields: Any) -> dict[str, Any]:
    return {"user_id": "ada", "item_id": "i1", **fields}


def test_seconds_that_were_sent_for_milliseconds_are_told_to_the_operator(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    for timestamp in (1_700_000_000_000, 1_700_000_000, 1_700_000_001):
        assert client.post("/events", json=event(timestamp=timestamp)).status_code == 200
    said = [line for line in caplog.messages if "send no seconds" in line]
    assert "timestamp 1700000000," in said[0]


def test_an_event_is_stored_with_everything_it_brought(
    client: httpx.Client, log: Callable[[], list[LoggedEvent]]
) -> None:
    body = event(
        timestamp=1_700_000_000_123,
        event_id="e-1",
        type="rating",
        value=4.5,
        recommendation_id="00ff00ff00ff00ff",
        properties={"page": ["home", None, 1.5]},
    )
    answer = client.post("/events", json=body)
    assert (answer.status_code, answer.json()) == (
        200,
        {"accepted": 1, "duplicates": 0, "rejected": [], "unknown_items": 0},
    )
    assert log() == [
        LoggedEvent(
            user_id="ada",
            item_id="i1",
            event_id="e-1",
            type="rating",
            timestamp_ms=1_700_000_000_123,
            value=4.5,
            recommendation_id="00ff00ff00ff00ff",
            properties=b'{"page":["home",null,1.5]}',
        )
    ]


@pytest.mark.parametrize(
    "properties",
    [
        '{"order":123456789012345678901}',
        '{"deep":[{"é":-9223372036854775809,"x":18446744073709551616},"e+20,"]}',
        f'{{"large":{10**300}}}',
        '{"largest":18446744073709551615,"float":1.5,"text":"123456789012345678901"}',
    ],
)
def test_integers_of_any_size_in_properties_are_stored_as_they_were_sent(
    client: httpx.Client, log: Callable[[], list[LoggedEvent]], properties: str
) -> None:
    bodies = [f'{{"user_id":"ada","item_id":"i1","properties":{one}}}' for one in ('{"n":1}', properties)]
    sent = f'{{"events":[{{"user_id":"ada"}},{",".join(bodies)}]}}'  # the first is rejected
    assert client.post("/events", content=sent.encode()).json()["accepted"] == 2
    assert [stored.properties for stored in log()] == [b'{"n":1}', properties.encode()]


def test_properties_are_as_large_as_they_are_stored(client: httpx.Client) -> None:
    for size, status in ((4096, 200), (4097, 422)):
        sent = [10**300] * 13 + [10 ** (size - 13 * 302 - 9)]
        body = json.dumps({"user_id": "ada", "item_id": "i1", "properties": {"x": sent}}, separators=(",", ":"))
        assert len(body) == size + len('{"user_id":"ada","item_id":"i1","properties":}')
        assert client.post("/events", content=body).status_code == status


def test_defaults_are_server_time_and_type_interaction(
    client: httpx.Client, log: Callable[[], list[LoggedEvent]]
) -> None:
    before = time.time() * 1000
    client.post("/events", json=event())
    (stored,) = log()
    assert before - 5 <= stored.timestamp_ms <= time.time() * 1000 + 1000
    assert (stored.type, stored.value, len(stored.event_id)) == ("interaction", None, 16)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-05-01T12:00:00Z", 1_777_636_800_000),
        ("2026-05-01t12:00:00.5z", 1_777_636_800_500),
        ("2026-05-01T14:00:00.001999+02:00", 1_777_636_800_001),
        ("2026-05-01T12:00:00.123456789Z", 1_777_636_800_123),
        ("2026-05-01T12:00:00." + "1239" * 30 + "+00:00", 1_777_636_800_123),
        ("2026-05-01T06:30:00-05:30", 1_777_636_800_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000),
        ("2017-01-01t00:59:60.25+01:00", 1_483_228_800_250),
    ],
)
def test_times_may_be_rfc_3339(
    client: httpx.Client, log: Callable[[], list[LoggedEvent]], text: str, milliseconds: int
) -> None:
    assert client.post("/events", json=event(timestamp=text)).status_code == 200
    assert [stored.timestamp_ms for stored in log()] == [milliseconds]


def test_a_repeated_event_counts_once(client: httpx.Client, log: Callable[[], list[LoggedEvent]]) -> None:
    body = event(timestamp=1_000)
    assert client.post("/events", json=body).json()["accepted"] == 1
    again = client.post("/events", json={"events": [body, body, event(timestamp="1970-01-01T00:00:01Z")]}).json()
    assert (again["accepted"], again["duplicates"]) == (0, 3)
    assert len(log()) == 1


def test_events_that_differ_in_one_identifying_field_are_different(client: httpx.Client) -> None:
    bodies = [
        {"user_id": "ab", "item_id": "c", "timestamp": 1},
        {"user_id": "a", "item_id": "bc", "timestamp": 1},
        {"user_id": "a", "item_id": "b", "type": "c", "timestamp": 1},
        {"user_id": "a", "item_id": "b", "timestamp": 11},
        {"user_id": "a", "item_id": "b1", "timestamp": 1},
    ]
    assert client.post("/events", json={"events": bodies}).json()["accepted"] == len(bodies)


def test_events_without_a_time_keep_the_order_they_were_sent_in(client: httpx.Client) -> None:
    order = ["i9", "i2", "i7", "i1", "i5", "i3"]
    client.post("/events", json={"events": [event(item_id=item) for item in order[:4]]})
    client.post("/events", json=event(item_id=order[4]))
    client.post("/events", json=event(item_id=order[5]))
    answer = client.post("/recommend", json={"user_id": "ada", "k": 1}).json()
    assert answer["items"][0]["item_id"] == "i4"  # the successor of the last


def test_an_event_after_a_full_request_is_the_newest(
    client: httpx.Client, log: Callable[[], list[LoggedEvent]]
) -> None:
    client.post("/events", json={"events": [event(item_id="i1") for _ in range(1000)]})
    client.post("/events", json=event(item_id="i7"))
    assert max(log(), key=lambda stored: stored.timestamp_ms).item_id == "i7"
    answer = client.post("/recommend", json={"user_id": "ada", "k": 1}).json()
    assert (answer["history_length"], answer["items"][0]["item_id"]) == (50, "i8")  # the successor of the newest


def test_requests_without_times_that_follow_one_another_keep_their_order(
    client: httpx.Client, log: Callable[[], list[LoggedEvent]]
) -> None:
    sent = [f"item-{n}" for n in range(3000)]
    for start in range(0, 3000, 1000):
        client.post("/events", json={"events": [event(user_id="cat", item_id=item) for item in sent[start:][:1000]]})
    assert [stored.item_id for stored in sorted(log(), key=lambda stored: stored.timestamp_ms)] == sent


def test_a_song_that_was_heard_a_thousand_times_in_each_of_three_requests_counts_as_often(client: httpx.Client) -> None:
    bodies = {"events": [event(user_id="dan") for _ in range(1000)]}
    assert [client.post("/events", json=bodies).json()["accepted"] for _ in range(3)] == [1000, 1000, 1000]
    assert client.post("/events", json=event(user_id="dan")).json()["accepted"] == 1


def test_each_users_events_without_a_time_end_now(client: httpx.Client, log: Callable[[], list[LoggedEvent]]) -> None:
    bodies = [event(user_id=user, item_id=f"i{n}") for n in range(1, 4) for user in ("eve", "fay")]
    bodies.insert(3, event(user_id="eve", item_id="i9", timestamp=5))
    before = int(time.time() * 1000)
    client.post("/events", json={"events": bodies})
    after = int(time.time() * 1000)
    times: dict[str, list[int]] = {"eve": [], "fay": []}
    for stored in sorted(log(), key=lambda stored: stored.item_id):
        if stored.timestamp_ms != 5:
            times[stored.user_id].append(stored.timestamp_ms)
    assert times["eve"] == times["fay"]
    newest = times["eve"][-1]
    assert times["eve"] == [newest - 2, newest - 1, newest]
    assert before <= newest <= after


def test_good_events_are_stored_although_others_are_rejected(
    client: httpx.Client, log: Callable[[], list[LoggedEvent]]
) -> None:
    bodies: list[Any] = [
        event(timestamp=1),
        event(timestamp=-1),
        "no event",
        event(item_id="i2", timestamp=2),
        event(item_id="unheard", timestamp=3),
        {"user_id": "ada"},
    ]
    answer = client.post("/events", json={"events": bodies})
    found = answer.json()
    assert answer.status_code == 200
    assert (found["accepted"], found["unknown_items"]) == (3, 1)
    assert [entry["index"] for entry in found["rejected"]] == [1, 2, 5]
    assert all(set(entry) == {"index", "code", "detail"} for entry in found["rejected"])
    assert "item_id" in found["rejected"][2]["detail"]
    assert len(log()) == 3


def test_five_minutes_ahead_is_the_limit(client: httpx.Client) -> None:
    now = int(time.time() * 1000)
    bodies = [event(timestamp=now + 5 * 60_000 - 1_000), event(timestamp=now + 5 * 60_000 + 10_000)]
    found = client.post("/events", json={"events": bodies}).json()
    assert found["accepted"] == 1
    assert [(entry["index"], entry["code"]) for entry in found["rejected"]] == [(1, "timestamp_ahead")]


@pytest.mark.parametrize(
    "fields",
    [
        {"user_id": "x" * 256},
        {"item_id": LONG},
        {"event_id": "x" * 256},
        {"type": LONG},
        {"value": -1e308},
        {"value": 3},
        {"value": None, "timestamp": None, "properties": None},
        {"properties": {}},
        {"properties": {"x": "y" * (4096 - 8)}},
        {"properties": {"not": {"a field": {"of": "ours"}}}},
        {"recommendation_id": "r" * 256},
    ],
)
def test_the_limits_themselves_are_allowed(client: httpx.Client, fields: dict[str, Any]) -> None:
    answer = client.post("/events", json=event(**fields))
    assert (answer.status_code, answer.json()["accepted"]) == (200, 1), answer.text


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"user_id": ""}, "user_id"),
        ({"user_id": "x" * 257}, "user_id"),
        ({"user_id": 1}, "user_id"),
        ({"user_id": None}, "user_id"),
        ({"item_id": LONG + "x"}, "item_id"),
        ({"event_id": ""}, "event_id"),
        ({"event_id": "x" * 257}, "event_id"),
        ({"type": ""}, "type"),
        ({"type": LONG + "x"}, "type"),
        ({"type": None}, "type"),
        ({"value": "4"}, "value"),
        ({"value": True}, "value"),
        ({"timestamp": -1}, "timestamp"),
        ({"timestamp": 1.5}, "timestamp"),
        ({"timestamp": True}, "timestamp"),
        ({"timestamp": 10**30}, "timestamp"),
        ({"timestamp": "1700000000000"}, "timestamp"),
        ({"timestamp": "2026-05-01T12:00:00"}, "timestamp"),
        ({"timestamp": "2026-05-01"}, "timestamp"),
        ({"timestamp": "2026-13-01T12:00:00Z"}, "timestamp"),
        ({"timestamp": "1969-12-31T23:59:59Z"}, "timestamp"),
        ({"timestamp": "2016-12-31T23:59:61Z"}, "timestamp"),
        ({"timestamp": "2026-05-01T12:00:00.Z"}, "timestamp"),
        ({"timestamp": "0001-01-01T00:00:00+23:59"}, "timestamp"),
        ({"properties": {"x": "y" * (4096 - 7)}}, "properties"),
        ({"properties": []}, "properties"),
        ({"recommendation_id": 5}, "recommendation_id"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_one_more_than_the_limit_and_every_wrong_type_is_refused_by_name(
    client: httpx.Client, log: Callable[[], list[LoggedEvent]], fields: dict[str, Any], field: str
) -> None:
    answer = client.post("/events", json=event(**fields))
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "no_valid_event"), answer.text
    assert problem["errors"][0]["field"].split(".")[0] == field
    assert (problem["errors"][0]["index"], log()) == (0, [])


@pytest.mark.parametrize(
    "body",
    [{"events": []}, {"events": {}}, {"events": None}, {"events": [], "user_id": "ada"}, [], [event()], "x", 1],
)
def test_a_body_that_is_no_event_and_no_list_of_events_is_refused(client: httpx.Client, body: Any) -> None:
    answer = client.post("/events", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_a_thousand_events_are_taken_at_once_and_no_more(client: httpx.Client) -> None:
    bodies = [event(user_id=f"u{n % 40}", timestamp=n) for n in range(1001)]
    assert client.post("/events", json={"events": bodies}).status_code == 422
    found = client.post("/events", json={"events": bodies[:1000]})
    assert found.json()["accepted"] == 1000


def test_impressions_are_logged_and_are_no_history(client: httpx.Client, log: Callable[[], list[LoggedEvent]]) -> None:
    client.post("/events", json=event(type="impression"))
    assert len(log()) == 1
    assert client.post("/recommend", json={"user_id": "ada"}).json()["history_length"] == 0


def test_a_shuffled_and_doubled_replay_gives_the_identical_answer(client: httpx.Client, store_url: str) -> None:
    chance = random.Random(7)
    # Few distinct times, so that ties are common, and more events than a history keeps.
    bodies = [event(user_id=f"u{n % 3}", event_id=f"e{n}") for n in range(200)]
    for body in bodies:
        body |= {"item_id": f"i{chance.randint(1, 9)}", "timestamp": 1_000 + chance.randint(0, 30)}

    def answers() -> list[Any]:
        asked = [client.post("/recommend", json={"user_id": f"u{n}", "k": 12, "exclude_seen": False}) for n in range(3)]
        return [(answer.json()["items"], answer.json()["history_length"]) for answer in asked]

    client.post("/events", json={"events": bodies})
    expected = answers()
    for _ in range(3):
        with redis.Redis.from_url(store_url) as server:
            server.flushall()
        replay = bodies * 2
        chance.shuffle(replay)
        for start in range(0, len(replay), 37):
            client.post("/events", json={"events": replay[start : start + 37]})
        assert answers() == expected


def test_which_types_are_history_is_a_setting(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    make_bundle("v1")
    client = start_service(store_url, sequence_types=("heard",))
    client.post("/events", json={"events": [event(type="heard"), event(type="view")]})
    assert client.post("/recommend", json={"user_id": "ada"}).json()["history_length"] == 1


def test_how_many_events_are_kept_is_a_setting(
    make_bundle: Callable[..., Path], start_service: Callable[..., httpx.Client], store_url: str
) -> None:
    make_bundle("v1")
    client = start_service(store_url, history_length=3)
    client.post("/events", json={"events": [event(item_id=f"i{at}", timestamp=at) for at in range(1, 6)]})
    assert client.post("/recommend", json={"user_id": "ada"}).json()["history_length"] == 3


def test_how_many_events_the_log_keeps_of_all_users_is_a_setting(
    start_service: Callable[..., httpx.Client], make_bundle: Callable[..., Path], store_url: str
) -> None:
    make_bundle("v1")
    client = start_service(store_url, log_max_events=3_200)  # 200 for each of the 16 partitions
    for start in range(0, 8_000, 1_000):
        bodies = [event(user_id=f"u{n}", timestamp=n) for n in range(start, start + 1_000)]
        client.post("/events", json={"events": bodies})
    with redis.Redis.from_url(store_url) as server:
        held = len([*read_events(server)])
        assert 3_200 <= held <= 3_200 + 16 * 100  # whole nodes of a hundred are trimmed
        assert gone(server) == 8_000 - held


def test_keeping_fewer_events_than_the_model_reads_is_said(
    make_bundle: Callable[..., Path],
    start_service: Callable[..., httpx.Client],
    store_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_bundle("v1")  # reads 4
    start_service(store_url, history_length=3)
    assert "v1 reads 4 events and 3 are kept for each user; raise RECSERVE_HISTORY_LENGTH" in caplog.text


def test_a_store_that_refuses_for_long_does_not_fill_the_log_of_the_service(
    make_bundle: Callable[..., Path],
    start_service: Callable[..., httpx.Client],
    store_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_bundle("v1")
    client = start_service(store_url, log_min_days=1, log_max_events=17_600)  # 1,100 a partition
    for numbers in (range(1000), range(1000, 1100)):
        bodies = [event(event_id=f"e{number}") for number in numbers]
        assert client.post("/events", json={"events": bodies}).status_code == 200
    began = time.monotonic()
    refused = [client.post("/events", json=event(event_id=f"f{number}")) for number in range(30)]
    assert {answer.status_code for answer in refused} == {503}
    said = [record.levelname for record in caplog.records if "LOGFULL" in record.getMessage()]
    assert 1 <= len(said) <= 1 + (time.monotonic() - began)  # once a second
    assert set(said) == {"ERROR"}
    assert refused[0].json()["title"] == "The sequence store cannot be used now"
    assert 'recserve_store_errors_total{call="write"} 30.0' in client.get("/metrics").text


def test_a_moment_before_1970_is_refused_and_not_rounded_into_it(client: httpx.Client) -> None:
    assert client.post("/events", json=event(timestamp="1969-12-31T23:59:59.5Z")).status_code == 422
    assert client.post("/events", json=event(timestamp="1970-01-01T00:00:00Z")).status_code == 200


def test_a_flood_of_events_without_a_time_runs_ahead_of_the_clock_by_less_than_a_millisecond_an_event(
    client: httpx.Client, log: Callable[[], list[LoggedEvent]]
) -> None:
    began_ms = int(time.time() * 1000)
    for _ in range(5):
        client.post("/events", json={"events": [event(user_id="gus") for _ in range(1000)]})
    assert max(stored.timestamp_ms for stored in log()) < max(time.time() * 1000, began_ms + 5000)

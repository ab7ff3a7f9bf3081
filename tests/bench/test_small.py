"""What the benchmark asks of a service."""

import json

from bench.small import traffic
from models.eventlog import SEQUENCE_TYPES
from service.schemas import EventRequest


def test_events_enter_histories_and_none_that_recommendations_are_made_from() -> None:
    asked = traffic(300, 70)
    events = [EventRequest.model_validate(json.loads(body)) for body in asked.events]
    assert {event.type for event in events} <= set(SEQUENCE_TYPES)
    assert {event.user_id for event in events} == set(asked.writers)
    assert not set(asked.writers) & set(asked.users)

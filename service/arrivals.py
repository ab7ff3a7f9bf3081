"""When events happened that came without a time.

Those of a request happened a millisecond apart, the last of them now: none lies in the future, where it would come
after the user's next event at another worker. What the user sent just before is in the way of that when it came within
as many milliseconds; then they follow it, if need be ahead of the clock. So a user's requests keep their order, and no
two events get one time, at which those that are alike would count as one.
"""

from service.batcher import Overloaded
from service.schemas import MAX_AHEAD_MS, MAX_EVENTS

_BACK_MS = MAX_EVENTS  # how far the events of one request reach back at most


class Arrivals:
    """The last time that each user's events were given, kept only while later events could meet it.

    That is of the users of the last two seconds, and of those who are ahead of the clock, who have sent an event for
    every millisecond of it.
    """

    def __init__(self) -> None:
        self._last_ms: dict[str, int] = {}
        self._swept_ms = 0

    def first_ms(self, user_id: str, events: int, now_ms: int) -> int:
        """Time of the first of so many events of a user; the others follow it a millisecond apart.

        Raises Overloaded if the last would be further ahead of the clock than an event may be.
        """
        if not 0 <= now_ms - self._swept_ms < _BACK_MS:  # below 0 where the clock was set back
            self._sweep(now_ms)
        before_ms = max(now_ms - events, self._last_ms.get(user_id, 0))
        last_ms = before_ms + events
        if last_ms > now_ms + MAX_AHEAD_MS:
            raise Overloaded("events of a user without a timestamp would be stored at times more than 5 minutes ahead")
        self._last_ms[user_id] = last_ms
        return before_ms + 1

    def _sweep(self, now_ms: int) -> None:
        """Forget what no event can meet any more, and times that only a clock which was set back makes so late."""
        earliest_ms, latest_ms = now_ms - _BACK_MS, now_ms + MAX_AHEAD_MS
        self._last_ms = {
            user_id: last_ms for user_id, last_ms in self._last_ms.items() if earliest_ms < last_ms <= latest_ms
        }
        self._swept_ms = now_ms

"""How many requests a key may make: a token bucket for each key in Redis, taken from in small lots.

A lot is at most what the limit allows in 50 ms, and one token where requests are few, so that a busy worker asks Redis
twenty times a second and not for every request. What this keeps to, for a limit of n requests in w seconds: in any t
seconds at most n + n t / w requests pass, and the lots that workers held before, of which each is at most n / w / 20.

Where Redis does not answer, each worker keeps to its share of the limit by itself, from where it last saw the bucket,
and gives account of what passed when Redis is back, which it looks for every half second: if only some workers lost it,
so much can pass twice. Several services that lose it at once keep to the limit each.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection
from pathlib import Path

from service.connection import Connection, Script, StoreUnavailable
from service.errors import Problem
from service.keyfile import Limit

logger = logging.getLogger(__name__)

LOT_S = 0.05  # a lot is what the limit allows in so long
_HELD_S = 1.0  # a lot that is older has been given up: it may not add to a later burst
ASK_S = 0.1  # for an answer of Redis; a recommendation has 150 ms in all
RETRY_S = 0.5  # between attempts while Redis does not answer
_KEY = b"recserve:{limit:%b}"


class Limits:
    """Admits requests by the limit of their key. `workers`: that share a limit while Redis does not answer within
    ask_s; clock: seconds."""

    def __init__(
        self,
        connection: Connection,
        *,
        workers: int = 1,
        ask_s: float = ASK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._workers = workers
        self._ask_s = ask_s
        self._clock = clock
        self._script = Script(Path(__file__).with_suffix(".lua").read_bytes(), keys=1, durable=False)
        self._buckets: dict[str, _Bucket] = {}
        self._alone = False  # Redis did not answer the last time

    async def admit(self, key_id: str, limit: Limit) -> dict[str, str]:
        """Count one request of a key, and give the headers that tell its client what is left.

        Raises Problem if there is nothing left; such a request costs no round trip and does not count.
        """
        while (headers := self.admit_now(key_id, limit)) is None:  # each round admits somebody, or ends in a refusal
            await self._asked(self._buckets[key_id])
        return headers

    def admit_now(self, key_id: str, limit: Limit) -> dict[str, str] | None:
        """The same, or None if Redis has to be asked first; then the request has not been counted."""
        bucket = self._buckets.get(key_id)
        if bucket is None:
            bucket = self._buckets[key_id] = _Bucket(key_id, limit, self._workers)
        if bucket.local is not None and self._clock() >= bucket.ask_at:
            self._ask_aside(bucket)
        now = self._clock()
        if bucket.take(now):
            return bucket.headers(now)
        wait_s = bucket.wait_s(now)
        if wait_s > 0:
            raise Problem(
                "rate_limited",
                f"this key may make {limit.requests} request(s) in {limit.seconds} s, evenly; come back later",
                headers={"Retry-After": str(math.ceil(wait_s)), **bucket.headers(now)},
            )
        return None

    def keep(self, ids: Collection[str]) -> None:
        """Forget all keys but these."""
        self._buckets = {key_id: bucket for key_id, bucket in self._buckets.items() if key_id in ids}

    async def _asked(self, bucket: "_Bucket") -> None:
        """Wait until Redis was asked for a lot, once for all who wait."""
        bucket.waiting += 1
        try:
            await asyncio.shield(self._ask_aside(bucket))
        finally:
            bucket.waiting -= 1

    def _ask_aside(self, bucket: "_Bucket") -> asyncio.Task[None]:
        if bucket.asking is None:
            bucket.asking = asyncio.create_task(self._ask(bucket), name="limit")
        return bucket.asking

    async def _ask(self, bucket: "_Bucket") -> None:
        await asyncio.sleep(0)  # whoever comes in this turn of the loop waits with us
        limit = bucket.limit
        spent = bucket.spent
        call = (bucket.key, limit.requests, limit.seconds * 1000, bucket.wanted(self._clock()), bucket.owed())
        try:
            async with asyncio.timeout(self._ask_s):
                reply = await self._connection.run_one(self._script, call)
            bucket.spent -= spent
            bucket.filled(reply[0], reply[1] / 1000, self._clock())
            self._alone = False
        except (StoreUnavailable, TimeoutError) as error:
            if not self._alone:  # once, and not for every key and attempt
                why = str(error) or f"no answer within {self._ask_s * 1000:.0f} ms"
                logger.warning("each worker limits requests by itself until the store answers again: %s", why)
            self._alone = True
            bucket.left_alone(self._clock())
        finally:
            bucket.asking = None


class _Bucket:
    """What a worker knows of one key's bucket, and the tokens it holds of it."""

    def __init__(self, key_id: str, limit: Limit, workers: int) -> None:
        self.limit = limit
        self.key = _KEY % key_id.encode()
        self.waiting = 0  # requests
        self.asking: asyncio.Task[None] | None = None
        self.local: float | None = None  # tokens of the worker's own bucket, while Redis does not answer
        self.ask_at = 0.0  # not before
        self.spent = 0  # what passed meanwhile
        self._policy = f'"key";q={limit.requests};w={limit.seconds}'
        self._share = max(1.0, limit.requests / workers)
        self._workers = workers
        self._held, self._held_until = 0, 0.0
        self._lot, self._most = 1, max(1, int(limit.per_s * LOT_S))
        self._left, self._at = float(limit.requests), 0.0  # tokens in Redis, and when
        self._asked_at = 0.0

    def take(self, now: float) -> bool:
        """Take a token if there is one here."""
        if self._held and now < self._held_until:
            self._held -= 1
            return True
        if self.local is not None:
            self.local = min(self._share, self.local + (now - self._at) * self._share / self.limit.seconds)
            self._at = now
            if self.local >= 1:
                self.local -= 1
                self.spent += 1
                return True
        return False

    def wait_s(self, now: float) -> float:
        """How long there will be none; 0 if Redis is to be asked."""
        if self.local is not None:
            return (1 - self.local) * self.limit.seconds / self._share
        return max(0.0, self.ask_at - now)

    def wanted(self, now: float) -> int:
        """Tokens to ask for: more when the last lot did not last, fewer when it lasted."""
        quick = now - self._asked_at < LOT_S / 2
        self._lot = min(self._most, self._lot * 2) if quick else max(1, self._lot // 2)
        self._asked_at = now
        return min(max(self._lot, self.waiting), self.limit.requests)

    def owed(self) -> float:
        """Of what passed meanwhile, what the worker's own bucket has not regained since, as Redis's has."""
        return float(self.spent) if self.local is None else min(self.spent, self._share - self.local)

    def filled(self, taken: int, left: float, now: float) -> None:
        """Redis has given so many tokens and has so many left."""
        if now >= self._held_until:
            self._held = 0
        self._held, self._held_until = self._held + taken, now + _HELD_S
        self._left, self._at, self.local = left, now, None
        # Nothing is worth asking for again until it is a whole lot.
        self.ask_at = now if taken else now + (self._most - left) / self.limit.per_s

    def left_alone(self, now: float) -> None:
        """Redis did not answer: go on from the worker's share of what was there."""
        if self.local is None:
            self.local, self._at = min(self._share, max(0.0, self._remaining(now)) / self._workers), now
        self.ask_at = now + RETRY_S

    def headers(self, now: float) -> dict[str, str]:
        """RateLimit and RateLimit-Policy of draft-ietf-httpapi-ratelimit-headers-11: what is left as far as is known
        here, and in how many seconds it will be one more."""
        limit = self.limit
        left, size = self._remaining(now) + self._held, float(limit.requests)
        if self.local is not None:
            left, size = self.local, self._share
        whole = min(limit.requests, max(0, int(left)))
        more_s = max(1, math.ceil((whole + 1 - left) * limit.seconds / size))
        return {"RateLimit-Policy": self._policy, "RateLimit": f'"key";r={whole};t={more_s}'}

    def _remaining(self, now: float) -> float:
        """Tokens in Redis, if no other worker takes any."""
        return min(self.limit.requests, self._left + (now - self._at) * self.limit.per_s)

"""Who may call what: bearer keys, known by their id and followed while the service runs.

Where there are no keys, whoever reaches the port may call; but a web page of another site, which reaches it through
the browser of somebody who may, must not.
"""

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Self

from service.errors import Problem, shorten
from service.keyfile import Key, KeyFileError, KeyFolder, Keyring, Scope
from service.settings import BadSettings, Settings
from service.tasks import ended, every

logger = logging.getLogger(__name__)

_CHALLENGE = 'Bearer realm="recserve"'
_REMEMBERED = 4096  # headers whose key has been recognised: an HMAC costs five times the SHA-256 that finds it again


def valid_keys(settings: Settings) -> Keyring | None:
    """The keys a service with these settings has; None where it needs none: none was made, and nobody else reaches it.

    Raises BadSettings if they cannot be read.
    """
    folder = KeyFolder(settings.keys_folder)
    try:
        made = folder.stamp() is not None
        ring = folder.read()
    except KeyFileError as error:
        raise BadSettings(str(error)) from error
    return ring if made or not (settings.loopback or settings.trusted_network) else None


def check_start(settings: Settings) -> None:
    """Raises BadSettings if a service must not start so: keys that cannot be read, or a port that others reach and no
    key. A worker that is replaced later does start: when the last key was revoked it answers nobody, like the others.
    """
    ring = valid_keys(settings)
    if not (ring is None or ring.keys or settings.loopback or settings.trusted_network):
        raise BadSettings(
            f"host {settings.host} is reachable from other machines and there is no key in {settings.keys_folder}; "
            "make one with 'python -m service keys create NAME --scope recommend --scope events', or set "
            "RECSERVE_TRUSTED_NETWORK=true if only machines you trust can reach this one"
        )


class Keys:
    """Answers whether a request may do what it asks for, by the keys there are now; looks for changes while entered.

    Entering raises BadSettings as valid_keys does. Once there has been a key, callers without one are refused until a
    restart, even when the last is revoked: only where none was ever made may all but other web sites call.
    `on_change` is told the ids that are valid.
    """

    def __init__(self, settings: Settings, *, on_change: Callable[[Collection[str]], None] = lambda ids: None) -> None:
        self._settings = settings
        self._folder = KeyFolder(settings.keys_folder)
        self._allowed_hosts = frozenset(name.lower() for name in settings.allowed_hosts)
        self._on_change = on_change
        self._ring: Keyring | None = None
        self._recognised: dict[bytes, Key] = {}  # by digest of the header
        self._stamp: tuple[int, ...] | None = None
        self._blind = False  # the last look could not read them
        self._doubted = False  # without a key so far, and refusing everybody until a look can tell that there is none
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        with contextlib.suppress(KeyFileError):  # which the next line tells
            self._stamp = self._folder.stamp()  # first: what changes meanwhile is read again
        self._ring = valid_keys(self._settings)
        self._watcher = asyncio.create_task(
            every(self._settings.poll_s, self._look, "looking for changed keys failed"), name="keys"
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await ended(self._watcher)

    def recognise(self, headers: Mapping[bytes, bytes]) -> Key | None:
        """The key of a request with these headers (names in lower case), None where none is needed.

        Raises Problem if it has none that is valid. What the key may do, `require` tells.
        """
        if self._ring is None:
            self._refuse_other_sites(headers)
            return None
        header = headers.get(b"authorization", b"")
        digest = hashlib.sha256(header).digest()
        key = self._recognised.get(digest)
        if key is None:
            key = _recognise(self._ring, header)
            if len(self._recognised) >= _REMEMBERED:
                self._recognised.clear()
            self._recognised[digest] = key
        return key

    async def _look(self) -> None:
        try:
            ring = await asyncio.to_thread(self._changed)
        except KeyFileError as error:
            if not self._blind:  # once, and not four times a second
                logger.error("the keys cannot be read and stay as they were: %s", error)
            self._blind = True
            if self._ring is None:  # somebody may have made one: the service is open no longer
                self._ring, self._doubted = Keyring(), True
            return
        if ring is not None:
            self._take(ring)  # not on that thread, where `require` could still remember a key of before
        elif self._doubted:
            self._ring = None  # no key was ever made after all
        self._doubted = False
        if self._blind:
            logger.info("the keys can be read again")
        self._blind = False

    def _changed(self) -> Keyring | None:
        """The keys, if they are others than before. Raises KeyFileError, and looks at them again the next time."""
        stamp = self._folder.stamp()
        if stamp == self._stamp:
            return None
        ring = self._folder.read()
        self._stamp = stamp
        return ring

    def _take(self, ring: Keyring) -> None:
        before = set() if self._ring is None else set(self._ring.keys)
        self._ring = ring
        self._recognised.clear()
        new, gone = ring.keys.keys() - before, before - ring.keys.keys()
        if new or gone:
            logger.info("keys: %d valid; new %s, revoked %s", len(ring.keys), _listed(new), _listed(gone))
        self._on_change(ring.keys.keys())

    def _refuse_other_sites(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise Problem for what a browser sends for a page of another site. Keys need no such check: no page has one.

        A browser names the page's site in Origin. A site whose name was made to mean this machine (DNS rebinding)
        has the same in Host, so that without a trusted network Host must be a name of this machine.
        """
        origin, host = headers.get(b"origin"), headers.get(b"host", b"")
        if origin is not None and origin.partition(b"://")[2].lower() != host.lower():
            raise Problem(
                "cross_origin",
                f"a page of {shorten(origin.decode('latin-1'))} may not call this service from a browser; call it from "
                "a server, with a key of 'python -m service keys create' if need be",
            )
        if not (self._settings.trusted_network or _names_this_machine(host)):
            raise Problem(
                "foreign_host",
                f"the request is addressed to {shorten(host.decode('latin-1'))}, and without keys this service answers "
                "to localhost and loopback addresses alone; make a key with 'python -m service keys create', or set "
                "RECSERVE_TRUSTED_NETWORK=true if only machines you trust can reach it",
            )
        if self._allowed_hosts and _name_of(host) not in self._allowed_hosts and not _names_this_machine(host):
            raise Problem(
                "foreign_host",
                f"the request is addressed to {shorten(host.decode('latin-1'))}, which is none of the names in "
                "RECSERVE_ALLOWED_HOSTS",
            )


def require(key: Key, scope: Scope) -> None:
    """Raises Problem unless the key has this scope."""
    if scope not in key.scopes:
        raise Problem(
            "forbidden",
            f"the key's scopes are {', '.join(sorted(key.scopes)) or 'none'}; this needs {scope}",
            headers={"WWW-Authenticate": f'{_CHALLENGE}, error="insufficient_scope", scope="{scope}"'},
        )


def _name_of(host: bytes) -> str:
    """The name in a Host header, which may have a port: [::1]:8000, localhost:8000."""
    name = host.decode("latin-1").lower()
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]


def _recognise(ring: Keyring, header: bytes) -> Key:
    kind, _, presented = header.partition(b" ")
    if kind.lower() != b"bearer" or not presented:
        raise Problem(
            "unauthorized",
            "send a key in the header 'Authorization: Bearer <key>'",
            headers={"WWW-Authenticate": _CHALLENGE},
        )
    key = ring.find(presented.strip())
    if key is None:
        raise Problem(
            "unauthorized",
            "the key is not known, or no longer",
            headers={"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_token"'},
        )
    return key


def _listed(ids: Collection[str]) -> str:
    return ", ".join(sorted(ids)) or "none"


@lru_cache(maxsize=64)
def _names_this_machine(host: bytes) -> bool:
    """Whether a Host header is a loopback name or address, or missing, which it is from no browser."""
    name = _name_of(host)
    try:
        return name in ("", "localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False

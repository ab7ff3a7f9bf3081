"""Who may call what: bearer keys, of which only hashes are configured.

A key is 256 random bits, so one round of SHA-256 protects it as well as a slow password hash would protect a
password. Every hash is compared, in constant time each, so that timing tells nothing about which key was close.

Where there are no keys, whoever reaches the port may call; but a web page of another site, which reaches it through
the browser of somebody who may, must not.
"""

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Collection, Mapping
from functools import lru_cache

from service.errors import Problem, shorten
from service.settings import Scope

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="recserve"'}


class Keys:
    """The configured keys. Without any, all but other web sites are allowed: settings has decided that this is safe.

    `trusted_network` says that the service is reached by names of its network and not as this machine alone; if there
    are `allowed_hosts`, by these.
    """

    def __init__(
        self,
        scopes_by_hash: Mapping[str, frozenset[Scope]],
        *,
        trusted_network: bool,
        allowed_hosts: Collection[str] = (),
    ) -> None:
        self._scopes = {bytes.fromhex(key_hash): scopes for key_hash, scopes in scopes_by_hash.items()}
        self._trusted_network = trusted_network
        self._allowed_hosts = frozenset(name.lower() for name in allowed_hosts)

    def require(self, headers: Mapping[bytes, bytes], scope: Scope) -> None:
        """Raise Problem unless a request with these headers (names in lower case) has a key with this scope."""
        if not self._scopes:
            self._refuse_other_sites(headers)
            return
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer" or not key:
            raise Problem("unauthorized", "send a key in the header 'Authorization: Bearer <key>'", headers=_CHALLENGE)
        presented = hashlib.sha256(key.strip()).digest()
        granted: frozenset[Scope] | None = None
        for known, scopes in self._scopes.items():
            if hmac.compare_digest(known, presented):
                granted = scopes
        if granted is None:
            raise Problem("unauthorized", "the key is not known", headers=_CHALLENGE)
        if scope not in granted:
            raise Problem(
                "forbidden", f"the key's scopes are {', '.join(sorted(granted)) or 'none'}; this needs {scope}"
            )

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
                "a server, with keys in RECSERVE_API_KEY_HASHES if need be",
            )
        if not (self._trusted_network or _names_this_machine(host)):
            raise Problem(
                "foreign_host",
                f"the request is addressed to {shorten(host.decode('latin-1'))}, and without keys this service answers "
                "to localhost and loopback addresses alone; set RECSERVE_API_KEY_HASHES, or RECSERVE_TRUSTED_NETWORK="
                "true if only machines you trust can reach it",
            )
        if self._allowed_hosts and _name_of(host) not in self._allowed_hosts and not _names_this_machine(host):
            raise Problem(
                "foreign_host",
                f"the request is addressed to {shorten(host.decode('latin-1'))}, which is none of the names in "
                "RECSERVE_ALLOWED_HOSTS",
            )


def _name_of(host: bytes) -> str:
    """The name in a Host header, which may have a port: [::1]:8000, localhost:8000."""
    name = host.decode("latin-1").lower()
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]


@lru_cache(maxsize=64)
def _names_this_machine(host: bytes) -> bool:
    """Whether a Host header is a loopback name or address, or missing, which it is from no browser."""
    name = _name_of(host)
    try:
        return name in ("", "localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def new_key() -> tuple[str, str]:
    """A new key of 256 random bits, and the hash of it that goes into RECSERVE_API_KEY_HASHES."""
    key = secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()

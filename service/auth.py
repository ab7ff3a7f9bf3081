"""Who may call what: bearer keys, of which only hashes are configured.

A key is 256 random bits, so one round of SHA-256 protects it as well as a slow password hash would protect a
password. Every hash is compared, in constant time each, so that timing tells nothing about which key was close.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping

from fastapi import Request

from service.errors import Problem
from service.settings import Scope

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="recserve"'}


class Keys:
    """The configured keys. Without any, everything is allowed: settings has decided that this is safe."""

    def __init__(self, scopes_by_hash: Mapping[str, frozenset[Scope]]) -> None:
        self._scopes = {bytes.fromhex(key_hash): scopes for key_hash, scopes in scopes_by_hash.items()}

    def require(self, request: Request, scope: Scope) -> None:
        """Raise Problem unless the request carries a key with this scope."""
        if not self._scopes:
            return
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not key:
            raise Problem("unauthorized", "send a key in the header 'Authorization: Bearer <key>'", headers=_CHALLENGE)
        presented = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
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


def new_key() -> tuple[str, str]:
    """A new key of 256 random bits, and the hash of it that goes into RECSERVE_API_KEY_HASHES."""
    key = secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()

"""API keys at rest: a folder that never holds a key, only what one is recognised by.

`keys.json` has the facts of each key, and of the key itself an HMAC-SHA-256; `secret` is what that is made with.
Keys are 256 random bits, which no copy of the folder gives away; the secret, in a file of its own, keeps somebody who
can only read or write `keys.json` (a backup, a mounted volume) from trying keys against it, from adding one, and from
giving one more than it was made for: the HMAC is of the key and its facts.

The file is replaced by rename, so that a reader sees it before or after a change and nothing between.
"""

import fcntl
import hmac
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.durable import sync

Scope = Literal["recommend", "events", "items", "admin"]
SCOPES: tuple[Scope, ...] = ("recommend", "events", "items", "admin")
FILE, SECRET, LOCK = "keys.json", "secret", "lock"
SHAPE = rb"rsk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}"  # a prefix that scanners of repositories can look for, id, 256 bits
_SECRET_BYTES = 32


class KeyFileError(Exception):
    """The folder of keys cannot be used; the message says what to do."""


class Limit(BaseModel):
    """So many requests at once, and again so many in every `seconds`, evenly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int = Field(ge=1, le=1_000_000)
    seconds: int = Field(ge=1, le=86_400)

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds


class Key(BaseModel):
    """What is known of a key: everything but the key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(pattern=r"^[^\x00-\x1f\x7f]{1,100}$")
    scopes: frozenset[Scope]
    limit: Limit | None = None
    created: str
    hmac: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]

    def digest(self, secret: bytes, presented: bytes) -> str:
        """What `hmac` is if these bytes are the key, and its facts those it was made with."""
        limit = "" if self.limit is None else f"{self.limit.requests}/{self.limit.seconds}"
        facts = "\n".join((self.id, self.name, ",".join(sorted(self.scopes)), limit, self.created))
        return hmac.digest(secret, presented + b"\n" + facts.encode(), "sha256").hex()


# What an unknown id is compared with: it must not be told by the time it takes.
_NOBODY = Key(
    id="0" * 12, name="nobody", scopes=frozenset({"admin"}), created="2026-01-01T00:00:00+00:00", hmac="0" * 64
)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal[1]
    keys: list[Key]


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys that are valid, by id."""

    keys: dict[str, Key] = field(default_factory=dict)
    secret: bytes = field(default=b"", repr=False)

    def find(self, presented: bytes) -> Key | None:
        """The key that these bytes are, or None. Known and unknown ids take the same time, and so does every guess."""
        shape = re.fullmatch(SHAPE, presented)
        known = self.keys.get(shape[1].decode(), _NOBODY) if shape else _NOBODY
        same = hmac.compare_digest(known.hmac, known.digest(self.secret, presented))
        return known if same and known is not _NOBODY else None


class KeyFolder:
    """The keys under one folder. Every method raises KeyFileError in a sentence if it cannot do its work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stamp(self) -> tuple[int, ...] | None:
        """What differs whenever the keys have changed; None where no key was ever made."""
        numbers: list[int] = []
        for name in (FILE, SECRET):
            try:
                file = (self.folder / name).stat()
            except FileNotFoundError:  # of one alone: there were keys, and nobody may call
                numbers.append(0)
            except OSError as error:
                raise _unusable(self.folder, error) from error
            else:
                numbers += [file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns]
        return tuple(numbers) if any(numbers) else None

    def read(self) -> Keyring:
        """The keys that are valid now; none where there is no file of them."""
        path = self.folder / FILE
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return Keyring()
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            found = _File.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise KeyFileError(
                f"{path} is not a file of keys ({where or 'the whole'}: {first['msg']}); put a copy of it back"
            ) from error
        return Keyring({key.id: key for key in found.keys}, self._secret())

    def create(self, name: str, scopes: Sequence[Scope], limit: Limit | None = None) -> tuple[Key, str]:
        """Make a key. Gives what is kept, and the key itself, which is kept nowhere."""
        with self._locked():
            ring = self.read()
            key_id = secrets.token_hex(6)
            key = f"rsk_{key_id}_{secrets.token_urlsafe(32)}"
            try:
                facts = Key(
                    id=key_id,
                    name=name,
                    scopes=frozenset(scopes),
                    limit=limit,
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                    hmac=_NOBODY.hmac,
                )
            except ValidationError as error:
                raise KeyFileError(f"a key's name is 1 to 100 printable characters, not {name!r}") from error
            secret = ring.secret or self._new_secret()  # not before: alone it closes a service without keys
            made = facts.model_copy(update={"hmac": facts.digest(secret, key.encode())})
            self._write([*ring.keys.values(), made])
        return made, key

    def revoke(self, key_id: str) -> Key:
        """Take a key's validity away, and give what was known of it."""
        if self.stamp() is None:
            raise KeyFileError(f"there are no keys in {self.folder}; name the folder with --keys, or RECSERVE_KEYS")
        with self._locked():
            keys = self.read().keys
            if key_id not in keys:
                known = ", ".join(keys) or "none"
                raise KeyFileError(f"there is no key with the id {key_id!r} in {self.folder} (ids there: {known})")
            self._write([key for key in keys.values() if key.id != key_id])
        return keys[key_id]

    def _secret(self) -> bytes:
        path = self.folder / SECRET
        try:
            text, mode = path.read_text(encoding="ascii"), path.stat().st_mode
        except FileNotFoundError:
            raise KeyFileError(
                f"{path} is missing, without which no key can be checked; put it back, or delete {FILE} beside it "
                "and make new keys"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise _unusable(path, error) from error
        if mode & 0o027:  # the group may read: that is how a mounted secret reaches a service that is not root
            raise KeyFileError(f"{path} is open to others (mode {mode & 0o777:o}); run 'chmod 600 {path}'")
        try:
            secret = bytes.fromhex(text)
        except ValueError:
            secret = b""
        if len(secret) != _SECRET_BYTES:
            raise KeyFileError(f"{path} is not {_SECRET_BYTES} bytes in hexadecimal; put a copy of it back")
        return secret

    def _new_secret(self) -> bytes:
        if (self.folder / SECRET).exists():  # of keys.json that was deleted; or of a creation that was cut off
            return self._secret()
        secret = secrets.token_bytes(_SECRET_BYTES)
        self._replace(SECRET, f"{secret.hex()}\n".encode())
        return secret

    def _write(self, keys: list[Key]) -> None:
        self._replace(FILE, _File(format=1, keys=keys).model_dump_json(indent=1).encode() + b"\n")

    def _replace(self, name: str, content: bytes) -> None:
        """Put a file in the place of another, owned like the folder; only with the lock, which the draft relies on."""
        draft = self.folder / f".{name}.draft"
        try:
            draft.unlink(missing_ok=True)  # of somebody who was killed
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                self._give_to_owner(descriptor)
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            draft.replace(self.folder / name)
            sync(self.folder)  # or a power cut could still undo the rename
        except OSError as error:
            raise _unusable(self.folder, error) from error

    def _give_to_owner(self, descriptor: int) -> None:
        """What root writes must be readable for the service, which is not root and owns the folder."""
        if os.geteuid() == 0:
            of = self.folder.stat()
            os.fchown(descriptor, of.st_uid, of.st_gid)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _unusable(self.folder, error) from error
        with os.fdopen(descriptor, "rb+") as lock:
            self._give_to_owner(descriptor)
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _unusable(path: Path, error: OSError | UnicodeDecodeError) -> KeyFileError:
    reason = getattr(error, "strerror", None) or str(error)
    return KeyFileError(f"{path}: {reason}; let this user read and write the folder of keys, or name another")

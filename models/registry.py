"""The versions in an artifacts folder, and which of them is the champion.

`artifacts/CURRENT` holds version names, one a line: the champion, then those it replaced, newest first. It is one
small file replaced by rename, so that a reader sees the state before or after a promotion and nothing between.
"""

import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.bundle import read_bundle
from models.durable import sync
from models.manifest import MANIFEST, VERSION_NAME, BundleError, Manifest, read_manifest

CURRENT = "CURRENT"
LOCK = ".lock"
_KEPT = 50  # promotions remembered, far more than anyone rolls back


class RegistryError(Exception):
    """A promotion or rollback that cannot be; the message says what to do instead."""


class UnknownVersionError(RegistryError):
    """There is no such version."""


class Registry:
    """Bundles under one folder."""

    def __init__(self, artifacts: Path) -> None:
        self.artifacts = artifacts

    def versions(self) -> list[str]:
        """Names of all bundles, oldest first (by the manifest's time of creation); unreadable ones come last."""
        if not self.artifacts.is_dir():
            return []
        names = [path.parent.name for path in self.artifacts.glob(f"*/{MANIFEST}")]
        named = [name for name in names if re.fullmatch(VERSION_NAME, name)]  # an editor's copy is no version
        return sorted(named, key=lambda name: (self._created(name), name))

    def manifest(self, version: str) -> Manifest:
        """Raises BundleError if it cannot be read."""
        return read_manifest(self.folder(version))

    def folder(self, version: str) -> Path:
        """Where a version lives. Raises UnknownVersionError for a name that is no version here."""
        folder = self.artifacts / version
        if re.fullmatch(VERSION_NAME, version) and folder.is_dir() and not (folder / MANIFEST).is_file():
            raise UnknownVersionError(f"{folder / MANIFEST}: is not there, or no file; so {version!r} is no version")
        if not re.fullmatch(VERSION_NAME, version) or not (folder / MANIFEST).is_file():
            known = ", ".join(self.versions()) or "none"
            raise UnknownVersionError(f"there is no version {version!r} in {self.artifacts} (versions here: {known})")
        return folder

    def current(self) -> str | None:
        """The champion's version, or None before the first promotion."""
        promoted = self._promoted()
        return promoted[0] if promoted else None

    def champion(self) -> Path:
        """Where the champion lives. Raises RegistryError if there is none."""
        return self.folder(self.current() or "")

    def promote(self, version: str, *, instead_of: tuple[str | None] | None = None) -> str | None:
        """Verify a version, make it the champion and return the one it replaced.

        instead_of: the champion with which it was compared, None if there was none; another is not replaced. Raises
        RegistryError if there is no such version or another champion, BundleError if it is damaged, OSError if the
        folder cannot be written.
        """
        read_bundle(self.folder(version))
        with self._locked():
            promoted = self._promoted()
            champion = promoted[0] if promoted else None
            if instead_of not in (None, (champion,)):
                raise RegistryError(
                    f"{champion or 'none'} has become the champion of {self.artifacts}, with which {version} was not "
                    "compared; see whether to promote it"
                )
            if promoted[:1] != [version]:
                self._write([version, *promoted])
            return next((name for name in promoted if name != version), None)

    def rollback(self, prepared: tuple[str, str] | None = None) -> str:
        """Make the champion's predecessor the champion again and return it.

        prepared: the last two for which the caller has made sure that it is right; of others nothing is changed.
        Raises RegistryError if there is none, BundleError if it is damaged, OSError if the folder cannot be written.
        """
        with self._locked():
            champion, before = self.last_two()
            if prepared not in (None, (champion, before)):
                raise RegistryError(
                    f"{champion} has become the champion of {self.artifacts}; see whether to roll back from it"
                )
            read_bundle(self.folder(before))
            self._write(self._promoted()[1:])
            return before

    def last_two(self) -> tuple[str, str]:
        """The champion and its predecessor. Raises RegistryError if there is none before it."""
        promoted = self._promoted()
        if len(promoted) < 2:
            raise RegistryError(f"there is no earlier champion in {self.artifacts} to roll back to")
        return promoted[0], promoted[1]

    def _created(self, version: str) -> str:
        try:
            return read_manifest(self.artifacts / version).created
        except (BundleError, OSError):
            return "~"  # after every date

    def _promoted(self) -> list[str]:
        try:
            return (self.artifacts / CURRENT).read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return []
        except UnicodeDecodeError as error:
            raise RegistryError(
                f"{self.artifacts / CURRENT} is not a list of versions; write their names into it, one a line: the "
                "champion first, the one before it second"
            ) from error

    def _write(self, promoted: list[str]) -> None:
        descriptor, name = tempfile.mkstemp(prefix=".current-", dir=self.artifacts)
        draft = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write("\n".join(promoted[:_KEPT]) + "\n")
                file.flush()
                os.fsync(file.fileno())
            draft.chmod(0o644)  # the service may run as another user
            draft.replace(self.artifacts / CURRENT)
        except BaseException:
            draft.unlink()
            raise
        sync(self.artifacts)  # or a power cut could still undo the rename

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self.artifacts.is_dir():
            raise RegistryError(f"there is no folder {self.artifacts}; give the one that holds the bundles")
        with os.fdopen(self._open_lock(), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _open_lock(self) -> int:
        """Descriptor of the file that is locked, whoever made it: root may promote beside a service that is not root.

        To lock a file it is enough to read it, but on NFS, which wants it open to write: there that is tried first, and
        of several users each needs the right to it (chmod 666). A link in its place is refused: root follows none.
        """
        path = self.artifacts / LOCK
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except PermissionError:
            if not path.is_file():  # the folder is what may not be written
                raise
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        file = os.fstat(descriptor)
        if file.st_uid == os.geteuid():
            os.fchmod(descriptor, stat.S_IMODE(file.st_mode) | 0o444)  # whatever the umask of who made it was
        return descriptor

"""Settings of the service: one frozen object, built once from environment and command line, and passed in.

No other module reads the environment. A setting that does not exist is an error: one that is ignored is a bug found
in production.
"""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from models.device import Device
from models.eventlog import PARTITIONS, SEQUENCE_TYPES

PREFIX = "RECSERVE_"
F = TypeVar("F", bound="Folders")
# Of each part of the log: what a request may bring of one user, and what stays of it at most when it is archived.
_LEAST_LOGGED = 1_100
Durability = Literal["fast", "durable", "replicated"]


class BadSettings(Exception):  # noqa: N818 - the message is the whole of it
    """Settings the service will not start with; the message names the setting and says what to do."""


def _free_of_files(folder: Path) -> Path:
    for path in (folder, *folder.parents):
        # os.path says no where this user may not look, and pathlib raises: what is opened later says more of that.
        if os.path.exists(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112
            raise ValueError(f"{path} is a file; name a folder")
    return folder


Folder = Annotated[Path, AfterValidator(_free_of_files)]  # it may be that it is made later


class Folders(BaseSettings):
    """Where things lie, for commands that need no more."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    artifacts: Folder = Path("artifacts")
    keys: Folder | None = None  # folder of API keys; artifacts/keys by default

    @property
    def keys_folder(self) -> Path:
        """Where API keys are kept."""
        return self.keys or self.artifacts / "keys"


class Settings(Folders):
    """Everything that can be set, each as RECSERVE_<NAME>, and some as an option of `serve` too."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    host: str = Field("127.0.0.1", min_length=1)
    port: int = Field(8000, ge=0, le=65535)  # 0: any free one
    workers: int = Field(1, ge=1, le=256)  # processes that answer on the port
    redis: str | None = Field(None, repr=False)  # a URL, which may hold a password
    embedded: bool = False  # start a store of our own
    data: Folder | None = None  # of the embedded store; artifacts/store by default
    durability: Durability = "durable"  # what an acknowledged event outlives; see docs/settings.md
    replicas: int = Field(1, ge=1, le=16)  # that must have an event before it is acknowledged, if replicated
    device: Device = "auto"
    float16: bool = False  # on a GPU, keep the items in half the memory; the answers are the same
    threads: int | None = Field(None, ge=1)  # of one ranking; default: 1 if that is quick, else CPU quota / workers
    max_batch: int = Field(64, ge=1, le=1024)
    max_waiting: int = Field(1024, ge=1)  # requests of one worker; at 1,000 rankings a second, a second's wait
    poll_s: float = Field(0.25, gt=0, le=60)  # how soon a promotion is noticed
    stuck_s: float = Field(30, gt=0)  # a batch that takes longer makes /healthz fail, and one of several workers end
    receive_s: float = Field(10, gt=0)  # a client has to send the head of a request, and again its body
    drain_s: float = Field(10, ge=0)  # for requests under way when told to stop
    cold_share: float = Field(0.1, ge=0, le=1)  # of an answer, rounded down, for items that are newer than the model
    history_length: int = Field(50, ge=1, le=1000)  # newest events kept for each user
    history_days: float = Field(90, gt=0, le=36_500)  # after the last event of a user, the history expires
    log_max_events: int = Field(1_000_000, ge=1)  # newest events kept for retraining; 100 bytes each, in the store
    log_min_days: float = Field(0, ge=0, le=36_500)  # younger entries of a full log are not dropped, events refused
    sequence_types: tuple[Annotated[str, Field(min_length=1)], ...] = SEQUENCE_TYPES  # the others are only logged
    trusted_network: bool = False  # serve other machines without keys
    allowed_hosts: tuple[str, ...] = ()  # names by which they may call it, beside those of loopback; none: any
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.redis is not None and self.embedded:
            raise ValueError("redis and embedded exclude each other; set one of them")
        if self.redis is None and not self.embedded:
            raise ValueError(
                "there is no sequence store; name one with --redis redis://HOST:PORT, or let 'serve --embedded' start "
                "one, whose URL its log names"
            )
        if self.data is not None and not self.embedded:
            raise ValueError("data is where the embedded store keeps its files; it does nothing without --embedded")
        if self.embedded and self.durability == "replicated":
            raise ValueError("durability replicated needs replicas, which the embedded store has none of; use --redis")
        if self.log_min_days > 0 and self.log_max_events < PARTITIONS * _LEAST_LOGGED:
            raise ValueError(
                f"log_max_events is {self.log_max_events} and log_min_days above 0: requests could be refused for good "
                f"that the log has no room for even when it is archived; give {PARTITIONS * _LEAST_LOGGED} or more"
            )
        if self.allowed_hosts and not self.trusted_network:
            raise ValueError("allowed_hosts are names in a trusted network; it does nothing without trusted_network")
        if self.float16 and self.device == "cpu":
            raise ValueError("float16 is how a GPU keeps the items; it does nothing with device cpu")
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name, which may resolve to anything
            return False

    @property
    def store_folder(self) -> Path:
        """Where the embedded store keeps its files."""
        return self.data or self.artifacts / "store"


def load(options: Mapping[str, Any]) -> Settings:
    """Settings from the environment, overridden by `options` (None: not given).

    Raises BadSettings in a sentence for a wrong value, an unknown RECSERVE_* variable or a contradiction.
    """
    known = {PREFIX + field.upper() for field in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise BadSettings(f"{unknown[0]} is not a setting; there are {', '.join(sorted(known))}")
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("embedded"):
        given.setdefault("redis", None)  # the command line wins over the environment
    elif "redis" in given:
        given.setdefault("embedded", False)
        given.setdefault("data", None)
    return _made(Settings, given)


def load_folders(options: Mapping[str, Any]) -> Folders:
    """As `load`, of folders alone; other variables may be there. Raises BadSettings for a folder that can be none."""
    return _made(Folders, {name: value for name, value in options.items() if value is not None})


def _made(kind: type[F], given: Mapping[str, Any]) -> F:
    try:
        return kind(**given)
    except SettingsError as error:
        raise BadSettings(f"{error}; it must be JSON") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"][:1]))
        reason = first["msg"].removeprefix("Value error, ")
        secret = where == "redis"  # a URL, which may hold a password
        given_value = first["input"]
        found = "" if secret else f" is {str(given_value) if isinstance(given_value, Path) else given_value!r}"
        raise BadSettings(f"setting {where}{found}: {reason}" if where else reason) from error

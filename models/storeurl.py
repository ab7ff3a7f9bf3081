"""URLs of the store: one server, a cluster, or the primary that sentinels name.

The first is what every Redis client takes, redis://, rediss:// or unix://; the others are ours:

    redis+cluster://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]
    redis+sentinel://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]/NAME

The hosts are some of the cluster's nodes, or the sentinels; user and password are those of the servers.
"""

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

CLUSTER, SENTINEL = "redis+cluster", "redis+sentinel"


@dataclass(frozen=True, slots=True)
class Several:
    """Several servers. name: of the primary among its sentinels; empty for a cluster."""

    addresses: tuple[tuple[str, int], ...]
    name: str
    username: str | None
    password: str | None

    @property
    def cluster(self) -> bool:
        return not self.name


def several(url: str) -> Several | None:
    """What a URL of several servers says; None if it is that of one. Raises ValueError for a malformed one."""
    scheme = url.partition("://")[0]
    if scheme not in (CLUSTER, SENTINEL):
        return None
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    name = parts.path.strip("/")
    if bool(name) != (scheme == SENTINEL) or parts.query or parts.fragment:
        wanted = "/NAME of the primary" if scheme == SENTINEL else "nothing"
        raise ValueError(f"{scheme}:// takes {wanted} behind the hosts")
    return Several(
        tuple(_address(scheme, host) for host in hosts.split(",")),
        name,
        unquote(username) or None,
        unquote(password) or None,
    )


def _address(scheme: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{scheme}:// takes HOST:PORT, several separated by commas, and not '{text}'")
    return host.strip("[]"), int(port)

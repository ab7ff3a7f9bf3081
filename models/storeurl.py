"""URLs of the store: one server, a cluster, or the primary that sentinels name.

The first is what every Redis client takes, redis://, rediss:// or unix://; the others are ours:

    redis+cluster://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]
    redis+sentinel://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]/NAME

The hosts are some of the cluster's nodes, or the sentinels; user and password are those of the servers. rediss+cluster
and rediss+sentinel are the same by TLS, to servers and sentinels alike, and take ?ssl_ca_certs=FILE and what else a
rediss:// takes of files and names. No message quotes a malformed URL, in which the password may be anywhere.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

CLUSTER, SENTINEL = "redis+cluster", "redis+sentinel"
# Of the client, which looks at them when it connects and may say what is a part of the password.
BAD_OPTIONS = (
    "redis-py takes no such option, or value of one, as stand behind its '?'; those of TLS (ssl_ca_certs ...) need "
    "rediss://, and in a password '&' is written %26"
)
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_CHECK = "ssl_check_hostname"  # false where certificates have no name or address that the nodes go by


@dataclass(frozen=True, slots=True)
class Several:
    """Several servers. name: of the primary among its sentinels; empty for a cluster.

    tls: what redis-py is told of it, by the names of its options; None without.
    """

    addresses: tuple[tuple[str, int], ...]
    name: str
    username: str | None
    password: str | None
    tls: Mapping[str, str | bool] | None = None

    @property
    def cluster(self) -> bool:
        return not self.name


def several(url: str) -> Several | None:
    """What a URL of several servers says; None if it is that of one.

    Raises ValueError for a malformed one, and where TLS cannot use the files that it names.
    """
    scheme = url.partition("://")[0]
    kind = scheme.replace("rediss", "redis", 1)
    parts = _parts(url, one=kind not in (CLUSTER, SENTINEL))
    if kind not in (CLUSTER, SENTINEL):
        if parts.scheme not in ("redis", "rediss", "unix"):
            begins = ", ".join(f"{one}://" for one in ("redis", CLUSTER, SENTINEL))
            raise ValueError(f"it begins with none of {begins}, by TLS the same with rediss, and unix://")
        _check_place(parts)
        if parts.scheme == "rediss":
            _check_files(scheme, dict(reversed(parse_qsl(parts.query))))  # the client takes the first of each
        return None
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    name, encrypted = parts.path.strip("/"), kind != scheme
    if bool(name) != (kind == SENTINEL) or (parts.query and not encrypted) or parts.fragment:
        wanted = "/NAME of the primary" if kind == SENTINEL else "nothing"
        raise ValueError(f"{scheme}:// takes {wanted} behind the hosts")
    return Several(
        tuple(_address(scheme, number, host) for number, host in enumerate(hosts.split(","), 1)),
        name,
        unquote(username) or None,
        unquote(password) or None,
        _tls(scheme, parts.query) if encrypted else None,
    )


def _check_place(parts: SplitResult) -> None:
    """Raises ValueError where the client would silently take another server or database than was meant."""
    if parts.scheme == "unix":
        if parts.netloc.rpartition("@")[2] or not parts.path.strip("/"):
            raise ValueError("unix:// takes the path of a socket, with three slashes: unix:///PATH")
    elif not parts.hostname:
        raise ValueError(f"{parts.scheme}:// names no host; write {parts.scheme}://HOST:PORT")
    elif not re.fullmatch(r"/?|/[0-9]+/?", parts.path, re.ASCII):
        raise ValueError(f"what stands behind the host of {parts.scheme}:// is the number of a database, such as /0")


def _tls(scheme: str, query: str) -> dict[str, str | bool]:
    options: dict[str, str | bool] = {"ssl": True}
    files: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in _FILES and name not in files:
            files[name] = value
        elif name == _CHECK and value in ("true", "false") and name not in options:
            options[name] = value == "true"
        else:
            takes = f"{', '.join(_FILES)} and {_CHECK}=true or false"
            raise ValueError(f"{scheme}:// takes {takes} behind the '?', each once")
    _check_files(scheme, files)
    return options | files


def _check_files(scheme: str, options: Mapping[str, str]) -> None:
    """Raises ValueError for what every connection would fail at, or ask a terminal for: the passphrase of a key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority, certificate, key = map(options.get, _FILES)
    try:
        if authority is not None:
            context.load_verify_locations(authority)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"ssl_ca_certs of {scheme}:// is not a file of certificates that can be read: {error}"
        ) from error
    if certificate is None and key is not None:
        raise ValueError(f"{scheme}:// takes an ssl_keyfile only with the ssl_certfile that it is the key of")
    try:
        if certificate is not None:
            context.load_cert_chain(certificate, key, options.get("ssl_password", ""))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"ssl_certfile and ssl_keyfile of {scheme}:// are not a certificate and its key, without a passphrase, "
            f"that can be read: {error}"
        ) from error


def _parts(url: str, *, one: bool) -> SplitResult:
    """Raises ValueError where a client would take a part of the password for a host, port or path, and show it."""
    try:
        parts = urlsplit(url)
        if one:
            _ = parts.port
    except ValueError:
        raise ValueError(
            "its host and port cannot be read; a port is a number, and in a password special characters are "
            "percent-encoded ('/' is %2F, '@' is %40)"
        ) from None
    in_place = parts.scheme == "unix" and not parts.netloc.rpartition("@")[2]  # a path to a socket may have an @
    if "@" in parts.path + parts.fragment + parts.query.partition("=")[0] and not in_place:
        raise ValueError("there is an '@' behind its hosts; in a password '/' is written %2F, '?' %3F and '#' %23")
    return parts


def _address(scheme: str, number: int, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{scheme}:// takes HOST:PORT, several separated by commas, and number {number} is none")
    return host.strip("[]"), int(port)

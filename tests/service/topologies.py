"""Stores of every shape on loopback: a server, Debian's, a cluster of three, a primary with a replica and sentinels."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from bench.servers import free_port
from reliability.processes import Process, Store, server_binary
from tests.service.tls import Encrypted, certificate

NAMES = ("server", "redis-server", "cluster", "sentinels")
_SLOTS = 16384


class Sentinel(Process):
    """One that watches a primary, which another two must agree is down; epoch: how many failovers it has heard of."""

    def __init__(self, folder: Path, name: str, primary: int, *, epoch: int = 0) -> None:
        super().__init__(folder, name)
        self._configuration = folder / f"{name}.conf"
        self._configuration.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor main 127.0.0.1 {primary} 2\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n"
            f"sentinel config-epoch main {epoch}\n"
        )

    def command(self) -> list[str]:
        return [str(server_binary()), str(self._configuration), "--sentinel"]

    def watch(self, primary: int) -> None:
        """Watch another from now on, as after a failover, of which the one before hears nothing."""
        with redis.Redis(port=self.port) as client:
            client.sentinel_remove("main")
            client.sentinel_monitor("main", "127.0.0.1", primary, 2)

    def answers(self) -> bool:
        with redis.Redis(port=self.port, socket_timeout=5) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


@contextlib.contextmanager
def store(name: str, folder: Path) -> Iterator[str]:
    """URL of a store of one of NAMES; a test is skipped out loud where there is no redis-server.

    Or of "cluster by TLS", "sentinels by TLS", with a certificate that only the URL's ssl_ca_certs vouches for.
    """
    shapes = {"server": _server, "redis-server": _debian, "cluster": _cluster, "sentinels": _sentinels}
    shape, tls, _ = name.partition(" by TLS")
    with contextlib.ExitStack() as stack:
        yield _encrypted(stack, folder, shape) if tls else shapes[shape](stack, folder)


def _server(stack: contextlib.ExitStack, folder: Path) -> str:
    return stack.enter_context(Store(folder)).url


def _debian(stack: contextlib.ExitStack, folder: Path) -> str:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("there is no redis-server on PATH")
    found = Store(folder)
    found.binary = Path(binary)
    return stack.enter_context(found).url


def _encrypted(stack: contextlib.ExitStack, folder: Path, shape: str) -> str:
    pem = certificate(folder)

    def at(port: int) -> int:
        return stack.enter_context(Encrypted(port, pem)).address[1]

    url = {"cluster": _cluster, "sentinels": _sentinels}[shape](stack, folder, at)
    return f"{url.replace('redis', 'rediss', 1)}?ssl_ca_certs={pem}.crt"


def _itself(port: int) -> int:
    return port


def cluster_node(folder: Path, name: str, bus: int) -> Store:
    """One of a cluster, before it has met another; bus: the port at which it does."""
    options = {"cluster-enabled": "yes", "cluster-port": str(bus), "cluster-node-timeout": "2000"}
    return Store(folder, name, options=options | {"enable-debug-command": "local", "repl-diskless-sync-delay": "0"})


def _cluster(stack: contextlib.ExitStack, folder: Path, at: Callable[[int], int] = _itself) -> str:
    """Its nodes are told of by the ports that `at` gives for theirs."""
    nodes = []
    for number in range(3):
        bus = free_port()
        nodes.append((stack.enter_context(cluster_node(folder, f"node-{number}", bus)), bus))
    ports = [at(node.port) for node, _ in nodes]
    for (node, _), port in zip(nodes, ports, strict=True):
        with node.client() as client:
            client.config_set("cluster-announce-port", port)
    first, _ = nodes[0]
    for number, (node, bus) in enumerate(nodes):
        begin, end = _SLOTS * number // 3, _SLOTS * (number + 1) // 3 - 1
        with node.client() as client, first.client() as introduced:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", begin, end)
            if number:
                introduced.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
    for node, _ in nodes:
        with node.client() as client:
            _until(lambda client=client: _agrees(client))  # type: ignore[misc]
    return f"redis+cluster://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}"


def _agrees(client: redis.Redis) -> bool:
    found: Any = client.execute_command("CLUSTER", "SLOTS")
    return len(found) == 3 and b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO")


def _sentinels(stack: contextlib.ExitStack, folder: Path, at: Callable[[int], int] = _itself) -> str:
    """The primary and they themselves are told of as a cluster's nodes are."""
    quickly = {"repl-diskless-sync-delay": "0"}
    primary = stack.enter_context(Store(folder, "primary", options=quickly))
    replica = stack.enter_context(Store(folder, "replica", options=quickly))
    with replica.client() as client, primary.client() as watched:
        client.replicaof("127.0.0.1", primary.port)
        _until(lambda: watched.wait(1, 100) == 1)
    told = at(primary.port)
    watchers = [stack.enter_context(Sentinel(folder, f"sentinel-{number}", told)) for number in range(3)]
    for watcher in watchers:
        with redis.Redis(port=watcher.port) as client:
            _until(lambda client=client: _knows_all(client))  # type: ignore[misc]
    return f"redis+sentinel://{','.join(f'127.0.0.1:{at(watcher.port)}' for watcher in watchers)}/main"


def _knows_all(client: redis.Redis) -> bool:
    found: Any = client.sentinel_master("main")
    return found["num-slaves"] == 1 and found["num-other-sentinels"] == 2


def _until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)

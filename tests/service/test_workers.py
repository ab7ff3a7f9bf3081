"""Several workers on one port, as processes: they share the load, are replaced, end together and count as one."""

import contextlib
import os
import re
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.machine import memory_bytes
from bench.sizing import PROCESS_BYTES, SHARED_BYTES
from service.keyfile import KeyFolder
from tests.service.endless import endless_encoder, stuck
from tests.service.processes import ROOT, Process, refused, serving
from tests.service.sockets import PLAIN

WAIT_S = 20.0


OURS = {"PYTHONPATH": str(ROOT)}  # for a program of another folder


def program(folder: Path, text: str) -> tuple[str]:
    """What the interpreter runs instead of the service."""
    path = folder / "program.py"
    path.write_text(text)
    return (str(path),)


Start = Callable[..., contextlib.AbstractContextManager[Process]]


@pytest.fixture
def start_two(make_bundle: Callable[..., Path], artifacts: Path, store_url: str) -> Start:
    """Starts a service with two workers on a bundle of 12 items, in whatever way `serving` is told."""
    make_bundle("v1")
    return partial(serving, "--workers", "2", "--artifacts", str(artifacts), "--redis", store_url)


@pytest.fixture
def two(start_two: Start) -> Iterator[Process]:
    """Such a service, started in the usual way."""
    with start_two() as service:
        yield service


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def workers_of(service: Process) -> list[int]:
    return workers_below(service.process.pid)


def workers_below(pid: int) -> list[int]:
    """Process ids of a process's children that are workers, and have not ended."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in children if is_worker(child)]


def is_worker(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just been waited for
        _, name, rest = re.split(r"[()]", Path(f"/proc/{pid}/stat").read_text(), maxsplit=2)
        return name.startswith("recserve-w") and rest.split()[0] != "Z"
    return False


def running(pid: int) -> bool:
    """Whether any thread of a process still is: a killed process, a zombie already, listens until its last one ends."""
    try:
        stats = [stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):  # one ended meanwhile: perhaps not the last
        return Path(f"/proc/{pid}").exists()
    return any(stat.rpartition(")")[2].split()[0] != "Z" for stat in stats)


def sockets(pid: int) -> int:
    links = [entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
    return sum(link.name.startswith("socket:") for link in links)


@contextlib.contextmanager
def clients(url: str, number: int) -> Iterator[list[httpx.Client]]:
    """Connections that stay open, each to one worker or the other."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(httpx.Client(base_url=url, timeout=10, verify=PLAIN)) for _ in range(number)]
        for client in opened:
            assert client.get("/readyz").status_code == 200
        yield opened


def counted(url: str, name: str = "recserve_requests_total") -> float:
    text = httpx.get(f"{url}/metrics", verify=PLAIN).text
    families = text_string_to_metric_families(text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def asked(url: str) -> int:
    return httpx.post(f"{url}/recommend", json={"history": ["i1"]}, verify=PLAIN).status_code


def replaced(service: Process) -> None:
    """Kill a worker and wait for the next one."""
    killed = workers_of(service)[0]
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: killed not in workers_of(service) and len(workers_of(service)) == 2)
    eventually(lambda: counted(service.url, "recserve_workers") == 2)


def test_both_answer_and_whichever_is_asked_gives_the_counts_of_both(two: Process) -> None:
    before = [sockets(pid) for pid in workers_of(two)]
    with clients(two.url, 32) as opened:
        assert all(sockets(pid) > count for pid, count in zip(workers_of(two), before, strict=True))
        for client in opened:
            assert client.post("/recommend", json={"history": ["i1"]}).status_code == 200
        texts = [client.get("/metrics").text for client in opened[:8]]
    for text in texts:
        assert 'recserve_requests_total{route="recommend",status="200"} 32.0' in text
        assert "recserve_batch_size_sum 32.0" in text
        assert "recserve_workers 2.0" in text
        assert "recserve_ready 1.0" in text
        assert text.count("recserve_model_info{") == 1
        assert text.count("# TYPE recserve_requests_total") == 1
    assert {line["worker"] for line in two.records() if "loaded v1" in line["message"]} == {0, 1}


def test_a_killed_worker_is_replaced_refuses_nothing_and_its_counts_stay(two: Process) -> None:
    for _ in range(20):
        asked(two.url)
    assert counted(two.url) == 20
    killed, other = workers_of(two)
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: not running(killed))
    statuses = []
    while len(workers_of(two)) < 2 or counted(two.url, "recserve_workers") < 2:
        statuses.append(asked(two.url))
        assert len(statuses) < 10_000
    statuses += [asked(two.url) for _ in range(20)]
    assert set(statuses) == {200}
    assert counted(two.url) == 20 + len(statuses)
    assert other in workers_of(two)
    eventually(lambda: any("ended (by signal 9)" in line for line in two.lines))
    assert two.stop() == 0


def test_a_worker_that_answers_no_more_is_replaced(start_two: Start) -> None:
    with start_two(environment={"RECSERVE_STUCK_S": "2"}) as service:
        stuck = workers_of(service)[0]
        os.kill(stuck, signal.SIGSTOP)
        eventually(lambda: not running(stuck) and len(workers_of(service)) == 2)
        eventually(lambda: any("has not answered for 2 s" in line for line in service.lines))


@pytest.mark.parametrize("how", ["trap '' CHLD", "exec 1>&-"])
def test_a_worker_is_replaced_whatever_the_service_was_started_by(start_two: Start, how: str) -> None:
    shell = ("/bin/sh", "-c", f'{how}; exec "$0" "$@"')
    with start_two(before=shell) as service:
        replaced(service)
        assert service.stop() == 0


def test_a_worker_is_replaced_when_nobody_reads_the_log_any_more(start_two: Start) -> None:
    with start_two(environment={"PYTHONUNBUFFERED": ""}) as service:
        assert service.process.stderr is not None
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), service.process.stderr.fileno())
        for _ in range(2):  # what is said of the first still finds the reader in its last call
            replaced(service)
        assert asked(service.url) == 200


_IMPATIENT = """
import os, signal, sys
from pathlib import Path
from service import supervisor
from service.__main__ import main

def hang():
    if (sign := Path(__file__).with_name("hang")).exists():
        sign.unlink()
        os.kill(os.getpid(), signal.SIGSTOP)

os.register_at_fork(after_in_child=hang)
supervisor._START_S = 1.0  # instead of two minutes; or twice what the first start took
sys.exit(main())
"""


def test_a_replacement_that_hangs_in_its_start_is_replaced_too(start_two: Start, tmp_path: Path) -> None:
    with start_two(program=program(tmp_path, _IMPATIENT), environment=OURS) as service:
        (tmp_path / "hang").touch()
        os.kill(workers_of(service)[0], signal.SIGKILL)
        eventually(lambda: any("did not serve within" in line for line in service.lines))
        eventually(lambda: counted(service.url, "recserve_workers") == 2)
        assert service.stop() == 0
    assert not (tmp_path / "hang").exists()


def test_what_stands_in_the_way_of_a_replacement_leaves_the_others_alone(two: Process) -> None:
    before = resource.prlimit(two.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(two.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))  # no file to be had
    os.kill(workers_of(two)[0], signal.SIGKILL)
    eventually(lambda: any("could not be started" in line for line in two.lines))
    assert len(workers_of(two)) == 1
    resource.prlimit(two.process.pid, resource.RLIMIT_NOFILE, before)
    eventually(lambda: len(workers_of(two)) == 2 and counted(two.url, "recserve_workers") == 2)
    assert asked(two.url) == 200
    assert two.stop() == 0


_CUT_OFF = """
import os, signal, sys
from service import supervisor
from service.__main__ import main

work = supervisor.work

def cut_off(assignment, connection, lifeline):
    def end(*_):
        os.write(connection.fileno(), b'{"kind":"counted","number":0,"healthy":tr')
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGUSR2, end)
    return work(assignment, connection, lifeline)

supervisor.work = cut_off
sys.exit(main())
"""


def test_a_worker_that_is_killed_in_the_middle_of_a_line_is_replaced(start_two: Start, tmp_path: Path) -> None:
    with start_two(program=program(tmp_path, _CUT_OFF), environment=OURS) as service:
        before = workers_of(service)
        os.kill(before[0], signal.SIGUSR2)
        eventually(lambda: not running(before[0]) and len(workers_of(service)) == 2)
        eventually(lambda: counted(service.url, "recserve_workers") == 2)
        eventually(lambda: any("ended (by signal 9)" in line for line in service.lines))
        assert service.stop() == 0


def test_a_promotion_at_one_worker_is_followed_by_the_other(two: Process, make_bundle: Callable[..., Path]) -> None:
    make_bundle("v2", promote=False)

    def version(client: httpx.Client) -> str:
        answer = client.post("/recommend", json={"history": ["i1"]})
        assert answer.status_code == 200
        return str(answer.json()["model_version"])

    with clients(two.url, 16) as opened:
        for path, expected in (("/models/v2/promote", "v2"), ("/models/rollback", "v1")):
            assert opened[0].post(path).status_code == 200
            assert version(opened[0]) == expected
            eventually(lambda expected=expected: {version(client) for client in opened} == {expected})  # type: ignore[misc]


def test_told_to_stop_all_workers_end(two: Process) -> None:
    pids = workers_of(two)
    with clients(two.url, 4):  # idle connections do not keep it from ending
        assert two.stop() == 0
    assert not any(map(running, pids))
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{two.url}/healthz")
    assert "Traceback" not in str(two.lines)


_LINGERING = """
import sys, time
from service import supervisor
from service.__main__ import main

work = supervisor.work

def lingering(*arguments):
    status = work(*arguments)
    time.sleep(4)
    return status

supervisor.work = lingering
sys.exit(main())
"""


def test_told_to_stop_a_worker_answers_while_another_has_hung_up_and_does_not_end(
    start_two: Start, tmp_path: Path
) -> None:
    body = b'{"history": ["i1"]}'
    with start_two(program=program(tmp_path, _LINGERING), environment=OURS) as service:
        address = urlsplit(service.url)
        with socket.create_connection((address.hostname, address.port), timeout=10) as client:
            client.sendall(b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body))
            time.sleep(0.3)  # so that the head has arrived
            service.process.send_signal(signal.SIGTERM)
            time.sleep(3.5)  # in which the supervisor asks for counts three times
            client.sendall(body)
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        assert service.process.wait(WAIT_S) == 0
    assert "a bug in the supervisor" not in str(service.lines)


def test_told_to_stop_a_worker_leaves_a_ranking_behind_that_does_not_end_and_the_service_exits_1(
    start_two: Start, make_bundle: Callable[..., Path]
) -> None:
    make_bundle("v2", encoder=endless_encoder())
    with start_two(environment={"RECSERVE_DRAIN_S": "0"}) as service, stuck(service.url):
        pids = workers_of(service)
        assert service.stop() == 1
        assert not any(map(running, pids))
    eventually(lambda: any("a ranking has not ended" in line for line in service.lines))


def test_a_signal_to_the_whole_group_of_processes_is_an_ordinary_stop(two: Process) -> None:
    for pid in (*workers_of(two), two.process.pid):
        os.kill(pid, signal.SIGTERM)
    assert two.process.wait(WAIT_S) == 0


def test_workers_and_store_do_not_outlive_a_killed_supervisor(
    make_bundle: Callable[..., Path], artifacts: Path
) -> None:
    make_bundle("v1")
    with serving("--workers", "2", "--artifacts", str(artifacts), "--embedded") as service:
        event = {"user_id": "ada", "item_id": "i3"}
        assert httpx.post(f"{service.url}/events", json=event).json()["accepted"] == 1
        pids = workers_of(service)
        os.kill(pids[1], signal.SIGSTOP)  # not even one that is stuck, once it goes on
        service.process.kill()
        eventually(lambda: not running(pids[0]))
        os.kill(pids[1], signal.SIGCONT)
        eventually(lambda: not running(pids[1]))
    with serving("--artifacts", str(artifacts), "--embedded") as service:  # the store's folder is free
        answer = httpx.post(f"{service.url}/recommend", json={"user_id": "ada"}).json()
        assert answer["history_length"] == 1


def test_a_port_that_other_workers_share_is_in_use(two: Process, artifacts: Path) -> None:
    port = two.url.rpartition(":")[2]
    options = ("serve", "--port", port, "--redis", "redis://127.0.0.1:1", "--artifacts", str(artifacts))
    for workers in ("1", "2"):
        assert f"port {port} " in refused(*options, "--workers", workers)


def test_workers_that_cannot_start_say_why_once(make_bundle: Callable[..., Path], artifacts: Path) -> None:
    make_bundle("v1")
    options = ("serve", "--port", "0", "--redis", "redis://127.0.0.1:1", "--artifacts", str(artifacts))
    assert "device is cuda" in refused(
        *options, "--workers", "2", "--device", "cuda", environment={"CUDA_VISIBLE_DEVICES": ""}
    )


def test_when_none_can_be_replaced_the_service_ends_with_status_1(two: Process, artifacts: Path) -> None:
    (artifacts / "keys").mkdir()
    (artifacts / "keys" / "keys.json").write_text("no keys")
    for pid in workers_of(two):
        os.kill(pid, signal.SIGKILL)
    assert two.process.wait(WAIT_S) == 1


def test_the_item_matrix_is_mapped_by_all_and_copied_by_none(two: Process) -> None:
    for pid in workers_of(two):
        smaps = Path(f"/proc/{pid}/smaps").read_text()
        sizes = dict(re.findall(r"^(\w+): +(\d+) kB$", smaps.partition("/items.npy\n")[2][:1000], re.MULTILINE)[:20])
        assert int(sizes["Rss"]) > 0
        assert sizes["Shared_Clean"] == sizes["Rss"]


def test_the_interpreter_and_its_libraries_are_in_memory_once(two: Process) -> None:
    with clients(two.url, 8) as opened:
        for client in opened:
            assert client.post("/recommend", json={"history": ["i1"]}).status_code == 200
    for pid in workers_of(two):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        sizes = {name: int(kilobytes) for name, kilobytes in re.findall(r"^(\w+): +(\d+) kB$", rollup, re.MULTILINE)}
        assert sizes["Shared_Dirty"] > 20_000
        assert sizes["Private_Dirty"] * 1024 == pytest.approx(PROCESS_BYTES, rel=0.3)  # what `bench size` counts with
    # Less where another process has the same libraries mapped, as this one has.
    assert memory_bytes([two.process.pid]) == pytest.approx(SHARED_BYTES + 2 * PROCESS_BYTES, rel=0.3)


def test_a_worker_that_is_replaced_after_the_last_key_was_revoked_answers_nobody(
    make_bundle: Callable[..., Path], artifacts: Path, store_url: str
) -> None:
    make_bundle("v1")
    folder = KeyFolder(artifacts / "keys")
    made, key = folder.create("only", ["recommend"])
    options = ("--workers", "2", "--artifacts", str(artifacts), "--redis", store_url, "--host", "0.0.0.0")
    with serving(*options) as service:
        url = service.url.replace("0.0.0.0", "127.0.0.1")

        def status() -> int:
            body, headers = {"history": ["i1"]}, {"Authorization": f"Bearer {key}"}
            return httpx.post(f"{url}/recommend", json=body, headers=headers, verify=PLAIN).status_code

        assert status() == 200
        folder.revoke(made.id)
        eventually(lambda: {status() for _ in range(8)} == {401})
        before = workers_of(service)
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: len(set(workers_of(service)) - set(before)) == 1)
        with contextlib.suppress(httpx.TransportError):  # connections that were waiting at the one that was killed
            assert {status() for _ in range(8)} == {401}
        eventually(lambda: counted(url, "recserve_workers") == 2)
        assert {status() for _ in range(16)} == {401}
        assert service.stop() == 0

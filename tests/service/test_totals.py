"""Counts of several processes as one."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from service.totals import Snapshot, Totals, snapshot


def worker(requests: int, waiting: int, ready: int, version: str) -> Snapshot:
    registry = CollectorRegistry()
    counter = Counter("requests", "Answered", ["status"], registry=registry)
    histogram = Histogram("seconds", "Taken", buckets=(1, 2), registry=registry)
    for _ in range(requests):
        counter.labels("200").inc()
        histogram.observe(1.5)
    Gauge("waiting", "Waiting", registry=registry).set(waiting)
    Gauge("recserve_ready", "Ready", registry=registry).set(ready)
    Info("model", "Serving", registry=registry).info({"version": version})
    return snapshot(registry)


def lines(text: bytes) -> set[str]:
    return {line for line in text.decode().splitlines() if "_created" not in line and line[0] != "#"}


def test_counts_and_queues_add_up_and_the_service_is_ready_when_all_are() -> None:
    assert lines(Totals().text([worker(3, 4, 1, "v1"), worker(2, 1, 0, "v1")])) == {
        'requests_total{status="200"} 5.0',
        'seconds_bucket{le="1.0"} 0.0',
        'seconds_bucket{le="2.0"} 5.0',
        'seconds_bucket{le="+Inf"} 5.0',
        "seconds_count 5.0",
        "seconds_sum 7.5",
        "waiting 5.0",
        "recserve_ready 0.0",
        'model_info{version="v1"} 1.0',
    }


def test_a_label_that_one_worker_lacks_counts_and_versions_that_differ_are_both_named() -> None:
    found = lines(Totals().text([worker(0, 0, 1, "v1"), worker(2, 0, 1, "v2")]))
    assert 'requests_total{status="200"} 2.0' in found
    assert {'model_info{version="v1"} 1.0', 'model_info{version="v2"} 1.0'} < found


def test_of_a_worker_that_ended_the_counts_stay_and_nothing_else() -> None:
    totals = Totals()
    totals.retire(worker(3, 4, 0, "v1"))
    totals.retire(worker(1, 0, 0, "v1"))
    found = lines(totals.text([worker(2, 1, 1, "v2")]))
    assert {'requests_total{status="200"} 6.0', "seconds_count 6.0", "waiting 1.0", "recserve_ready 1.0"} < found
    assert not any("v1" in line for line in found)

"""The data benchmark measures what it says, at a size that takes no time."""

from training.bench import bench_dataset


def test_the_data_benchmark_reports_every_step_and_the_memory() -> None:
    bench = bench_dataset(interactions=20_000, users=500, items=300)

    assert list(bench.seconds) == ["read", "build", "split leave-one-out", "split by time"]
    assert all(seconds >= 0 for seconds in bench.seconds.values())
    assert (bench.interactions, bench.users) == (20_000, 500)
    assert bench.items <= 300
    assert 20 * 2**20 < bench.peak_rss_bytes < 4 * 2**30
    assert str(bench).startswith("20,000 interactions of 500 users")

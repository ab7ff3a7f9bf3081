"""The benchmarks measure what they say, at a size that takes no time."""

import pytest

from training.bench import bench_dataset, bench_training


@pytest.mark.usefixtures("one_thread")
def test_the_data_benchmark_reports_every_step_and_the_memory() -> None:
    bench = bench_dataset(interactions=20_000, users=500, items=300)

    assert list(bench.seconds) == ["read", "build", "split leave-one-out", "split by time", "first 50 training steps"]
    assert all(seconds >= 0 for seconds in bench.seconds.values())
    assert (bench.interactions, bench.users) == (20_000, 500)
    assert bench.items <= 300
    assert 20 * 2**20 < bench.peak_rss_bytes < 4 * 2**30
    assert str(bench).startswith("20,000 interactions of 500 users")


@pytest.mark.usefixtures("one_thread")
def test_the_training_benchmark_has_a_rate_for_every_way_of_learning() -> None:
    bench = bench_training(users=40, items=60, rounds=1)
    assert list(bench.rates) == ["bce", "sampled softmax, 256 negatives", "full softmax", "S3Rec pre-training"]
    assert all(rate > 0 for rate in bench.rates.values())
    assert 0 < bench.floor_share < 1
    assert str(bench).endswith("of its arithmetic floor")

"""Counts of several workers as those of one service.

A worker's counts travel as JSON. What a worker that ended had counted stays in the sums, so that no counter goes
backwards when it is replaced.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest

Snapshot = list[dict[str, Any]]  # a registry's families, as JSON
_LASTING = ("counter", "histogram")  # types whose values outlive the process that counted them
_LEAST = ("recserve_ready",)  # gauges that are true of the service only when they are of every worker


def snapshot(registry: CollectorRegistry) -> Snapshot:
    """What a registry holds now."""
    return [
        {
            "name": family.name,
            "help": family.documentation,
            "type": family.type,
            "samples": [[sample.name, sample.labels, sample.value] for sample in family.samples],
        }
        for family in registry.collect()
    ]


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """One snapshot of several: sums, but the earliest creation, the least of some gauges, and information once."""
    families: dict[str, dict[str, Any]] = {}
    samples: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for family in (family for taken in snapshots for family in taken):
        families.setdefault(family["name"], family)
        own = samples.setdefault(family["name"], {})
        for name, labels, value in family["samples"]:
            key = name, tuple(labels.items())
            own[key] = _both(family, name, own[key], value) if key in own else value
    return [
        {**family, "samples": [[sample, dict(labels), value] for (sample, labels), value in samples[name].items()]}
        for name, family in families.items()
    ]


def _both(family: dict[str, Any], sample: str, one: float, other: float) -> float:
    if sample.endswith("_created") or family["name"] in _LEAST:
        return min(one, other)
    return max(one, other) if family["type"] == "info" else one + other


class Totals:
    """The sums over workers that run, and over those that did."""

    def __init__(self) -> None:
        self._ended: Snapshot = []

    def retire(self, taken: Snapshot) -> None:
        """Keep the counts, not the gauges, of a worker that has ended; `taken` is its last snapshot."""
        self._ended = merged([self._ended, [family for family in taken if family["type"] in _LASTING]])

    def text(self, live: Sequence[Snapshot]) -> bytes:
        """Prometheus's text format of everything counted, by workers that run and by their predecessors."""
        return generate_latest(_Families(merged([*live, self._ended])))


class _Families:
    """A snapshot as prometheus_client's own metrics."""

    def __init__(self, taken: Snapshot) -> None:
        self._taken = taken

    def collect(self) -> Iterable[Metric]:
        for family in self._taken:
            metric = Metric(family["name"], family["help"], family["type"])
            for name, labels, value in family["samples"]:
                metric.add_sample(name, labels, value)
            yield metric

"""How much memory processes take, and whether it grows."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Growth:
    """Slope of a line through samples and its standard error, both in MB an hour."""

    per_hour: float
    error: float


def allocated_mb(pids: Iterable[int]) -> float:
    """Memory that processes have allocated, in MB; of a page that several of them share a part to each. Of those that
    are there.

    Files that they map are not in it, the item matrix and libraries: how much of a page of those counts for one process
    depends on what others run beside it.
    """
    total = 0.0
    for pid in pids:
        with suppress(OSError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(rollup.partition("\nPss_Anon:")[2].split()[0]) / 1024
    return total


def growth(times_s: Sequence[float], sizes_mb: Sequence[float]) -> Growth:
    """The median of the slopes between all pairs of samples, which a few peaks do not move (Theil and Sen).

    Its error is from blocks: the same slope without each tenth of the time in turn (jackknife), since neighbouring
    samples are not independent.
    """
    times, sizes = np.array(times_s), np.array(sizes_mb)
    blocks = np.array_split(np.arange(len(times)), min(10, len(times)))
    without = np.array([_slope(np.delete(times, block), np.delete(sizes, block)) for block in blocks])
    error = np.sqrt((len(blocks) - 1) * without.var())
    return Growth(_slope(times, sizes) * _HOUR_S, float(error) * _HOUR_S)


def _slope(times: np.ndarray, sizes: np.ndarray) -> float:
    first, second = np.triu_indices(len(times), 1)
    return float(np.median((sizes[second] - sizes[first]) / (times[second] - times[first])))

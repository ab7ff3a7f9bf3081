"""Measurements taken in turns: every figure once a round, so that what drifts drifts for all of them.

A round in which a floor moved is thrown away: then the machine changed, and no ratio of that round means anything.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Figures = Mapping[str, float]

MOVED = 0.15  # of a floor's median over all rounds


@dataclass(frozen=True, slots=True)
class Rounds:
    """The rounds that count, and how many were thrown away.

    steady: whether there are as many as were asked for; if not, those that came nearest fill up.
    """

    kept: Sequence[Figures]
    thrown: int
    steady: bool

    def median(self, figure: Callable[[Figures], float]) -> float:
        """Median over rounds of something computed from one. Raises KeyError, naming it, for a figure without value."""
        return float(np.median([figure(one) for one in self.kept]))


def take_rounds(
    measure: Callable[[int], Figures], floors: Sequence[str], *, count: int, spare: int, moved: float = MOVED
) -> Rounds:
    """Measure until `count` rounds are steady, at most `spare` more. `measure` is given the round's number, from 1."""
    taken: list[Figures] = []
    while True:
        taken.append(measure(len(taken) + 1))
        movement = _movement(taken, floors)
        steady = [number for number, much in enumerate(movement) if much <= moved]
        if len(taken) >= count and (len(steady) >= count or len(taken) >= count + spare):
            break
    kept = steady if len(steady) >= count else sorted(range(len(taken)), key=movement.__getitem__)[:count]
    return Rounds([taken[number] for number in sorted(kept)], len(taken) - len(kept), len(steady) >= count)


def _movement(taken: Sequence[Figures], floors: Sequence[str]) -> list[float]:
    """How far each round's worst floor is from that floor's median, as a share of it."""
    values = np.array([[one[name] for name in floors] for one in taken])
    medians = np.median(values, axis=0)
    return [float(much) for much in np.max(np.abs(values - medians) / medians, axis=1)]

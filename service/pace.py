"""How long batches take, learned from the last of them: so long in any case, and so much longer for each call.

Told apart, because a service that has answered one call at a time knows what a batch costs and not what a call adds. To
count all of it for every call would refuse most of a burst that fits into one batch.
"""

_SMOOTHING = 0.2  # weight of the last batch in what is known
_SPREADS = 2.5  # beyond the line that a batch is expected to take at most
_OUTLIER = 4.0  # times the line that a batch counts for at most: one that was held up says little of the next
_ALIKE = 0.2  # sizes that differ by less of their mean say little of what a call adds
_FURTHER = 4.0  # times as many calls as in the largest of the last batches: so many may be tried next


class Pace:
    """A line through size and time of the last batches, the older the lighter, and how far from it they were."""

    def __init__(self) -> None:
        self._size = self._spent_s = 0.0  # means
        self._variance = self._covariance = 0.0  # of the sizes, and of size and time
        self._spread = 0.0  # from the line, as a share of it
        self._largest = 0.0  # size, which fades where there are only smaller ones

    def learn(self, size: int, spent_s: float) -> None:
        """Take in what a batch of so many calls took."""
        self._largest = max(float(size), (1 - _SMOOTHING) * self._largest)
        if not self._spent_s:
            self._size, self._spent_s = size, spent_s
            return
        line_s = self._line_s(size)
        spent_s = min(spent_s, _OUTLIER * line_s)
        self._spread += (abs(spent_s / line_s - 1) - self._spread) * _SMOOTHING
        larger, longer = size - self._size, spent_s - self._spent_s
        self._size += larger * _SMOOTHING
        self._spent_s += longer * _SMOOTHING
        self._variance = (1 - _SMOOTHING) * (self._variance + _SMOOTHING * larger * larger)
        self._covariance = (1 - _SMOOTHING) * (self._covariance + _SMOOTHING * larger * longer)

    @property
    def known(self) -> int:
        """How large a batch may be for its time to be known, about; before there was any, one call."""
        return max(1, int(_FURTHER * self._largest))

    def expected_s(self, size: int) -> float:
        """What a batch of this size takes at most, as a rule; 0 before there was any."""
        return self._line_s(size) * (1 + _SPREADS * self._spread)

    def _line_s(self, size: int) -> float:
        if not self._spent_s:
            return 0.0
        # As far as sizes were alike, what they took is taken for that of their calls: the most that one can add.
        each_s, alike = self._spent_s / self._size, (_ALIKE * self._size) ** 2
        slope = (self._covariance + alike * each_s) / (self._variance + alike)
        return self._spent_s + min(max(slope, 0.0), each_s) * (size - self._size)

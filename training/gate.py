"""Whether a challenger may replace the champion: both ranked the same held-out window, and it must not be worse."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.runtime import Runtime
from training.dataset import Sequences, Vocabulary
from training.evaluate import Evaluation, difference
from training.next_item import METRIC


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, and the sentence that explains it to an operator."""

    promote: bool
    reason: str


def compare(challenger: Evaluation, champion: Evaluation) -> Verdict:
    """The challenger wins unless its NDCG@10 is below the champion's on the same users."""
    theirs, ours = champion.metrics()[METRIC], challenger.metrics()[METRIC]
    reason = (
        f"{METRIC} {ours:.4f}, champion {theirs:.4f} on the same {len(champion.ranks):,} users "
        f"(difference {difference(challenger, champion)})"
    )
    return Verdict(promote=ours >= theirs, reason=reason)


class BundleScorer:
    """A bundle as a Scorer over another vocabulary: items are matched by external id.

    As when it serves: an item that it does not know can neither be scored nor speak for a user, and a user of whom it
    knows no item gets what is popular.
    """

    def __init__(self, runtime: Runtime, vocabulary: Vocabulary) -> None:
        self._runtime = runtime
        index_of = runtime.bundle.index_of
        self._rows = np.array([0, *(index_of.get(item, 0) for item in vocabulary.ids[1:])], np.int64)

    def __call__(self, histories: Sequences) -> NDArray[np.float32]:
        bundle = self._runtime.bundle
        known = [rows[rows > 0] for rows in (self._rows[histories[user]] for user in range(len(histories)))]
        own = self._runtime.encode(known) @ bundle.items.T  # (users, the bundle's rows)
        own[[user for user, history in enumerate(known) if not len(history)]] = bundle.popularity
        scores: NDArray[np.float32] = own[:, self._rows]
        scores[:, self._rows == 0] = -np.inf
        return scores

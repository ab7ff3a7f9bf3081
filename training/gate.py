"""Whether a challenger may replace the champion: both ranked the same held-out window, and it must not be worse."""

from dataclasses import dataclass

from training.evaluate import Evaluation, difference
from training.measures import METRIC


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

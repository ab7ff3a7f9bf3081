"""What a caller is told when a part of the service did not do what the request needed."""

from prometheus_client import Counter

from service.batcher import Closed, Expired, Overloaded
from service.connection import StillUnavailable, StoreUnavailable
from service.errors import Problem, unavailable
from service.logs import Seldom
from service.recommender import NoModel
from service.scoring import ScoringStopped

NO_MODEL = (
    "no model is promoted; train and export one with 'python -m training', then 'python -m models promote VERSION': "
    "it is picked up within a second"
)
UNANSWERED = Closed, Expired, NoModel, Overloaded, ScoringStopped


def unanswered(
    error: Closed | Expired | NoModel | Overloaded | ScoringStopped, timeout_s: float | None = None
) -> Problem:
    """Why nothing was ranked. timeout_s: what the request allowed, where it may have Expired."""
    if isinstance(error, Expired):
        return Problem("deadline_exceeded", f"{error}: X-Timeout-Ms allowed {1000 * (timeout_s or 0):.0f} ms")
    if isinstance(error, NoModel):
        return unavailable("no_model", NO_MODEL, retry_after_s=5)
    if isinstance(error, Overloaded):
        return unavailable("overloaded", f"{error}; come back later")
    return unavailable("shutting_down" if isinstance(error, Closed) else "unhealthy", str(error))


def store_failed(error: StoreUnavailable, counter: Counter, log: Seldom, said: str, advice: str) -> Problem:
    """Counts a call of the store that failed, and logs it, with the error in `said`, unless the log has said so."""
    counter.inc()
    if not isinstance(error, StillUnavailable):
        log.log(error.level, said, error)
    return unavailable("store_unavailable", advice)

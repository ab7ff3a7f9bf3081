"""Cores, memory and bytes of the store for a load: arithmetic over measured costs, nothing is run.

Bytes were measured as their comments say; tests hold those of the store to a real one.
"""

import math
from dataclasses import dataclass
from typing import Literal

from bench.curves import SCAN_FROM, Measured, Way
from models.vocabulary import MAPPED_FROM

SHARED_BYTES = 94_000_000  # interpreter and libraries of a service, once for all its workers, and their supervisor
PROCESS_BYTES = 35_000_000  # of each worker with a tiny bundle beside them
ITEM_BYTES = 235  # of a worker for each item: its id twice, as a key and in a list, and its place by popularity
MAPPED_ITEM_BYTES = 16  # the same where ids are mapped: 15.4 from 12,000 items to a million, the scores below aside
MAPPED_ID_BYTES = 30  # of what workers share for each item then, with an id of ten characters
USER_BYTES, EVENT_BYTES = 270, 45  # of the store: a user's two keys, and each event kept, with its place in the record
LOGGED_BYTES = 100  # of the store: a logged event with ids of eight characters
_GROUPS = (1 / 16) * (1 + 1 / 32)  # maxima that a scan keeps for each score
_CELLS_BYTES = 1 << 28  # of scores that one run of the ranker has at most
VERSIONS = 3  # of the model in memory while one loads: it, the one that serves and the one before


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be served. columns: the model's dim; share: of a saturated core that is planned for, in (0, 1]."""

    items: int
    users: int
    requests_per_s: float
    events_per_s: float = 0.0
    columns: int = 64
    history: int = 50  # events kept of a user, on average
    logged: int = 1_000_000  # events kept for retraining
    scoring: Literal["auto", "float32", "int8"] = "auto"
    batch: int = 64  # the setting max_batch
    share: float = 0.5
    machine_cores: int = 8


@dataclass(frozen=True, slots=True)
class Size:
    """What it takes. Seconds of a core, cores in all, bytes of memory of one replica, bytes of the store."""

    way: Way
    beyond: bool  # whether the catalogue lies outside of what was measured
    ranking_s: float
    rest_s: float
    alone_s: float  # ranking, of a request that shares its run with no other
    requests_per_core: float
    cores: float
    replicas: int
    workers: int  # of each replica
    matrix_bytes: int  # shared by its workers
    int8_bytes: int  # the same
    worker_bytes: int  # of each worker, one version in memory
    replica_bytes: int
    loading_bytes: int  # of a replica while a version loads
    histories_bytes: int
    log_bytes: int


def size(load: Load, by: Measured) -> Size:
    """What a load takes. Raises CurvesError if the measurements contradict each other."""
    way = _way(load, by)
    ranking, wider = by.rankings[way], load.columns / by.dim
    ranking_s, rest_s = ranking.together.at(load.items) * wider, by.beside_ranking_s
    busy = load.requests_per_s * (ranking_s + rest_s) + load.events_per_s * by.event_s
    cores = busy / load.share
    replicas = max(1, math.ceil(cores / load.machine_cores))
    workers = max(1, math.ceil(cores / replicas))
    matrix = 4 * load.items * load.columns
    int8 = matrix // 4 if way == "int8" else 0
    listed = load.items < MAPPED_FROM
    of_version = (ITEM_BYTES if listed else MAPPED_ITEM_BYTES) * load.items + _scores_bytes(load, way)
    ids = 0 if listed else MAPPED_ID_BYTES * load.items
    mapped = matrix + int8 + ids
    return Size(
        way=way,
        beyond=not ranking.together.covers(load.items),
        ranking_s=ranking_s,
        rest_s=rest_s,
        alone_s=ranking.alone.at(load.items) * wider,
        requests_per_core=1 / (ranking_s + rest_s),
        cores=cores,
        replicas=replicas,
        workers=workers,
        matrix_bytes=matrix,
        int8_bytes=int8,
        worker_bytes=PROCESS_BYTES + of_version,
        replica_bytes=SHARED_BYTES + workers * PROCESS_BYTES + mapped + workers * of_version,
        loading_bytes=SHARED_BYTES + workers * PROCESS_BYTES + VERSIONS * (mapped + workers * of_version),
        histories_bytes=load.users * (USER_BYTES + EVENT_BYTES * load.history),
        log_bytes=LOGGED_BYTES * load.logged,
    )


def _way(load: Load, by: Measured) -> Way:
    """How the catalogue is searched; "auto" decides as export does, by the curves where export measures."""
    if load.scoring != "auto":
        return load.scoring
    if load.items < SCAN_FROM:
        return "float32"
    return min(by.rankings, key=lambda way: by.rankings[way].together.at(load.items))


def _scores_bytes(load: Load, way: Way) -> int:
    """Scores that one worker holds at once: of a whole batch at most, or the maxima of a scan and as a rule those of no
    more than one query that is ranked over everything."""
    one = 4 * load.items
    if way == "float32" and load.items < SCAN_FROM:
        return min(one * load.batch, max(one, _CELLS_BYTES))
    return int(one * load.batch * _GROUPS) + one

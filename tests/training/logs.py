"""Logs that tests write and read."""

import gzip
from pathlib import Path

from training.interactions import Interactions

SECOND = 1_700_000_000  # an arbitrary moment, in epoch seconds


def rows(interactions: Interactions) -> list[tuple[object, ...]]:
    return interactions.frame.rows()


def written(path: Path, text: str) -> Path:
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path

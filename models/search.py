"""How the items that can be among the best are found, where the ranker does not score a whole catalogue at once."""

import numpy as np

from models.binding import BoundSession, Resident
from models.bundle import Bundle
from models.device import CPU, CUDA, Device, DeviceError, open_session
from models.manifest import BundleError
from models.scan import Scan
from models.shortlist import Shortlist

Search = Scan | Shortlist  # both give candidates, each of them `group` neighbouring items


def open_search(
    bundle: Bundle, device: Device, provider: str, *, threads: int, on_device: bool, float16: bool
) -> Search | None:
    """A bundle's scan on the CPU, its shortlist where float16 is asked for; None where the ranker does without.

    provider: where the encoder runs; on_device: whether what it reads is put there once. Raises BundleError if the
    bundle does not have what it takes, DeviceError for float16 without a device.
    """
    scan = bundle.scan if provider == CPU and not float16 else None
    if scan is None and not float16:
        return None
    if bundle.neighbours is not None and bundle.neighbours.affinities.min(initial=0) < 0:
        raise BundleError(f"{bundle.folder}: neighbours that lower a score need a bundle without a scan or float16")
    if scan is None:
        if not on_device:
            raise DeviceError(f"float16 is for a GPU and onnxruntime runs on {provider}; unset float16")
        return _shortlist(bundle, device, "cuda" if provider == CUDA else "cpu", threads)
    session = open_session(scan, "cpu", threads)
    try:
        return Scan(session, bundle.quantised or bundle.items, threads=threads)
    except Exception as error:  # onnxruntime's own errors share no other base class
        raise BundleError(f"{scan}: cannot search the bundle's items: {error}") from error


def _shortlist(bundle: Bundle, device: Device, where: str, threads: int) -> Shortlist:
    if bundle.shortlist is None:
        raise BundleError(f"{bundle.folder}: has no graph for float16; export the model again, or unset float16")
    session = open_session(bundle.shortlist, device, threads)
    with np.errstate(over="ignore"):  # which a shortlist refuses
        items = bundle.items.astype(np.float16)
    return Shortlist(BoundSession(session, Resident(where, [items])), items, bundle.items)

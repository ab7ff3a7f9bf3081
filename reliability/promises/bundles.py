"""Damaged and forged bundles, offered to a service that serves another: refused with a reason, and it serves on."""

import shutil
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from models.registry import Registry
from reliability.bundle import promoted_bundle, whole_bundle
from reliability.damage import Named, accidents
from reliability.forgery import forgeries
from reliability.promise import Finding
from reliability.serving import Answer, Service

TITLE = "A damaged or forged bundle is refused with a reason, and the live version serves on"
_FULL, _QUICK = 500, 80
_REFUSED = {404, 409}  # no such version, as where its manifest is missing; damaged
_SHOWN = 5  # of those that were not refused as they should be
_PEAK_MB = 100.0  # above what serving takes; a vocabulary read and refused is part of that


def check(full: bool, folder: Path) -> list[Finding]:
    artifacts, canary = folder / "artifacts", folder / "canary"
    promoted_bundle(artifacts, version="v1")
    original = whole_bundle(folder / "kept", "v2")
    names = sorted(path.name for path in original.iterdir())
    random = np.random.default_rng(5)
    chosen = _chosen(accidents(names), forgeries(canary), _FULL if full else _QUICK, random)
    refused = named = untouched = 0
    unheeded: list[str] = []
    with Service(folder) as service:
        before = _serves(service)
        peak_mb = _peak_mb(service)
        for damage in chosen:
            wanted = _offered(original, artifacts / "v2", damage, random)
            answer = service.ask("POST", "/models/v2/promote")
            is_refused, is_named = answer.status in _REFUSED, _names(answer, wanted)
            is_untouched = _serves(service) == before and Registry(artifacts).current() == "v1"
            refused, named, untouched = refused + is_refused, named + is_named, untouched + is_untouched
            if not (is_refused and is_named and is_untouched):
                unheeded.append(f"{damage.name} ({answer.status}: {str(answer.body)[:300]})")
            if answer.status == 200:  # or nothing after it would be tried on what served before
                service.ask("POST", "/models/v1/promote")
            _removed(artifacts / "v2")
        grown_mb = _peak_mb(service) - peak_mb
        shutil.copytree(original, artifacts / "v2")
        accepted = service.ask("POST", "/models/v2/promote").status == 200
        alive = service.alive
    but = f", but {'; '.join(unheeded[:_SHOWN])}" if unheeded else ""
    return [
        Finding(f"mutations tried{but}", len(chosen)),
        Finding("of them refused", refused, least=len(chosen)),
        Finding("refused with a reason that names the file", named, least=len(chosen)),
        Finding("after which the live version answered as before", untouched, least=len(chosen)),
        Finding("payloads that were run", int(canary.exists()), most=0),
        Finding("memory that refusing took at its peak", grown_mb, most=_PEAK_MB, unit="MB"),
        Finding("the same bundle whole: accepted", int(accepted and alive), least=1),
    ]


def _chosen(of_files: list[Named], forged: list[Named], count: int, random: np.random.Generator) -> list[Named]:
    """So many, a half of each if there are enough; all of them once before one comes twice, with other chances."""
    many = [of_files[place] for place in random.permutation(len(of_files))]
    more = [forged[place] for place in random.permutation(len(forged))]
    share = max(count // 2, count - len(more)) if count < len(many) + len(more) else len(many)
    found = many[:share] + more[: count - share]
    return found + list(islice(cycle(many), count - len(found)))


def _offered(original: Path, folder: Path, damage: Named, random: np.random.Generator) -> Sequence[str]:
    shutil.copytree(original, folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    return damage.harm(folder, random)


def _removed(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)
    for path in folder.parent.glob("outside-*"):
        path.unlink()


def _names(answer: Answer, wanted: Sequence[str]) -> bool:
    reason = answer.body.get("detail", "") if isinstance(answer.body, dict) else ""
    return any(name in reason for name in wanted)


def _serves(service: Service) -> tuple[object, ...]:
    answer = service.ask("POST", "/recommend", {"history": ["item-3"], "k": 5})
    body = answer.body if isinstance(answer.body, dict) else {}
    return answer.status, body.get("model_version"), str(body.get("items"))


def _peak_mb(service: Service) -> float:
    """The most memory that the service has had, in MB; infinite if it has ended."""
    _, found, rest = Path(f"/proc/{service.pid}/status").read_text().partition("VmHWM:")
    return int(rest.split()[0]) / 1024 if found else float("inf")

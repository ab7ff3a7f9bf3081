"""The versions of the model: listed, promoted and rolled back. For keys with the scope `admin`."""

import asyncio
import contextlib
import re
from collections.abc import Awaitable
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from models.device import DeviceError
from models.manifest import VERSION_NAME, BundleError, DataWindow
from models.registry import CURRENT, Registry, RegistryError, UnknownVersionError
from service.engine import EngineError
from service.errors import Problem, unavailable
from service.routes import BODILESS, KEYED, Services, admitted, json_response, problems
from service.slot import Promoted, Refused

router = APIRouter(prefix="/models", tags=["models"])


class LoadedVersion(BaseModel):
    """The version that serves in the process that answered."""

    version: str
    provider: str = Field(description="of onnxruntime")


class RefusedVersion(BaseModel):
    """A champion that may not serve, and why."""

    version: str = Field(description="or CURRENT, where the champion cannot be told")
    reason: str


class Version(BaseModel):
    """A bundle in the artifacts folder, as its manifest describes it."""

    version: str
    champion: bool
    created: int | None = Field(description="epoch milliseconds")
    model: str
    items: int
    dim: int
    length: int = Field(description="longest history that it reads")
    metrics: dict[str, Any]
    data: DataWindow


class DamagedVersion(BaseModel):
    """A bundle whose manifest cannot be read."""

    version: str
    champion: bool
    damaged: str = Field(description="what is wrong with it")


class ModelsResponse(BaseModel):
    """Every version there is, which of them is the champion, and which serves."""

    champion: str | None
    loaded: LoadedVersion | None
    refused: RefusedVersion | None = Field(description="a champion that does not serve")
    versions: list[Version | DamagedVersion]


class PromotedResponse(BaseModel):
    """The champion now, and the one it replaced."""

    champion: str
    before: str | None


@router.get("", responses={200: {"model": ModelsResponse}, **problems(*BODILESS)}, openapi_extra=KEYED)
async def models(request: Request) -> Response:
    """All versions with their metrics, the champion, and what is loaded."""
    services: Services = request.app.state.services
    with services.metrics.observed("models"):
        await admitted(request, "admin")
        slot = services.slot
        champion, unreadable = await asyncio.to_thread(_champion, slot.registry)
        versions: list[dict[str, Any]] = []
        try:
            versions = await asyncio.to_thread(_versions, slot.registry, champion)
        except OSError as error:  # as where the folder may not be looked into
            unreadable = unreadable or Refused(CURRENT, str(error))
        refused = unreadable or slot.refused
        loaded = slot.engine and {"version": slot.engine.version, "provider": slot.engine.provider}
        return json_response({"champion": champion, "loaded": loaded, "refused": refused, "versions": versions})


@router.post(
    "/{version}/promote",
    responses={200: {"model": PromotedResponse}, **problems(*BODILESS, 404, 409, 503)},
    openapi_extra=KEYED,
)
async def promote(version: str, request: Request) -> Response:
    """Test a version and serve it. When this answers, it serves here; other workers notice within a second."""
    services: Services = request.app.state.services
    with services.metrics.observed("promote"):
        await admitted(request, "admin")
        if not re.fullmatch(VERSION_NAME, version):
            raise Problem("version_not_found", "a version is 1 to 100 letters, digits, dots, dashes and underscores")
        return await _promoted(services.slot.promote(version), unknown="version_not_found")


@router.post(
    "/rollback",
    responses={200: {"model": PromotedResponse}, **problems(*BODILESS, 409, 503)},
    openapi_extra=KEYED,
)
async def rollback(request: Request) -> Response:
    """Serve the champion before this one again; other workers notice within a second."""
    services: Services = request.app.state.services
    with services.metrics.observed("rollback"):
        await admitted(request, "admin")
        return await _promoted(services.slot.rollback(), unknown="conflict")


async def _promoted(change: Awaitable[Promoted], *, unknown: str) -> Response:
    """What came of a promotion or rollback. unknown: code of the problem if there is no such version."""
    try:
        return json_response(await change)
    except RegistryError as error:
        raise Problem(unknown if isinstance(error, UnknownVersionError) else "conflict", str(error)) from error
    except (BundleError, EngineError, DeviceError) as error:
        raise Problem("version_damaged", str(error)) from error
    except OSError as error:
        detail = f"the artifacts folder cannot be changed: {error}; free space there, or let the service write to it"
        raise unavailable("artifacts_unavailable", detail, retry_after_s=30) from error


def _champion(registry: Registry) -> tuple[str | None, Refused | None]:
    """The champion, or why it cannot be told."""
    try:
        return registry.current(), None
    except (RegistryError, OSError) as error:
        return None, Refused(CURRENT, str(error))


def _versions(registry: Registry, champion: str | None) -> list[dict[str, Any]]:
    versions = []
    for version in registry.versions():
        entry: dict[str, Any] = {"version": version, "champion": version == champion}
        try:
            manifest = registry.manifest(version)
        except (BundleError, RegistryError, OSError) as error:  # it may have gone meanwhile
            entry["damaged"] = str(error)
        else:
            entry |= manifest.model_dump(include={"model", "items", "dim", "length", "metrics", "data"})
            entry["created"] = _milliseconds(manifest.created)
        versions.append(entry)
    return versions


def _milliseconds(time: str) -> int | None:
    """Epoch milliseconds of a manifest's time; None if whoever wrote it wrote none."""
    with contextlib.suppress(ValueError):
        return int(datetime.fromisoformat(time).timestamp() * 1000)
    return None

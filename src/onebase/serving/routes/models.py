"""GET /v1/models: the valid values of a request's `model`."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from onebase.adapters.full import FULL
from onebase.adapters.store import StoredAdapter
from onebase.engine.pool import BASE_TASK
from onebase.language import say
from onebase.serving.catalog import Offer
from onebase.serving.errors import unknown_model
from onebase.serving.service import Service

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The base, all tasks and all of their versions; unavailable ones have a reason."""
    return {"object": "list", "data": await models_of(request.app.state.service)}


@router.get("/v1/models/{model}")
async def retrieve_model(model: str, request: Request) -> dict[str, Any]:
    """One model of GET /v1/models."""
    by_id = {item["id"]: item for item in await models_of(request.app.state.service)}
    if model not in by_id:
        raise unknown_model(model, list(by_id)[:50])
    return by_id[model]


async def models_of(service: Service) -> list[dict[str, Any]]:
    """All models with their properties."""
    await asyncio.to_thread(service.catalog.refresh)
    base = service.engine.base
    models = [
        {
            **_entry(BASE_TASK, service.created),
            "base": _last(base.name),
            "precision": base.precision.text,
            "context": base.context,
        }
    ]
    for offer in service.catalog.offers():
        described = described_offer(service, offer)
        adapter = offer.adapter
        if adapter.current:
            models.append({**_entry(adapter.task, service.created), **described})
        models.append({**_entry(adapter.name, service.created), **described})
    for name in service.catalog.damaged():
        reason = say("its record is damaged", "其记录已损坏")
        models.append({**_entry(name, service.created), "available": False, "reason": reason})
    return models


def described_offer(service: Service, offer: Offer) -> dict[str, Any]:
    """The properties of a stored version in /v1/models and /v1/adapters."""
    adapter = offer.adapter
    return {
        "task": adapter.task,
        "version": adapter.version,
        "current": adapter.current,
        "method": adapter.method,
        "base": _last(adapter.base),
        "stored": adapter.created,
        "metrics": adapter.metrics,
        "loaded": offer.name in service.adapter_cache,
        "available": offer.reason is None,
        "reason": offer.reason,
        "trained_precision": adapter.record.get("precision"),
        "warning": _warning(service, adapter),
    }


def _warning(service: Service, adapter: StoredAdapter) -> str | None:
    """A warning if a task was trained on a base in another precision than the server's. A task of full
    fine-tuning has its own base and its own precision.
    """
    if adapter.method == FULL:
        return None
    trained, served = adapter.record.get("precision"), service.engine.base.precision.text
    if not trained or trained == served:
        return None
    return say(
        f"trained on a base in {trained}, served on one in {served}",
        f"训练时的基座精度为 {trained}，当前服务的基座精度为 {served}",
    )


def _entry(name: str, created: int) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "onebase",
        "available": True,
    }


def _last(name: str) -> str:
    """A base's name; of a path only the last part, so that responses reveal no paths."""
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name

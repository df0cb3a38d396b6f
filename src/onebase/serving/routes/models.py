"""GET /v1/models: what a request's `model` may name."""

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
    """The base, every task and every version of it; those that do not answer here say why."""
    return {"object": "list", "data": await models_of(request.app.state.service)}


@router.get("/v1/models/{model}")
async def retrieve_model(model: str, request: Request) -> dict[str, Any]:
    """One of them."""
    known = {item["id"]: item for item in await models_of(request.app.state.service)}
    if model not in known:
        raise unknown_model(model, list(known)[:50])
    return known[model]


async def models_of(service: Service) -> list[dict[str, Any]]:
    """Every name with what is known of it."""
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
    """A stored version as /v1/models and /v1/adapters show it."""
    adapter = offer.adapter
    return {
        "task": adapter.task,
        "version": adapter.version,
        "current": adapter.current,
        "method": adapter.method,
        "base": _last(adapter.base),
        "stored": adapter.created,
        "metrics": adapter.metrics,
        "loaded": offer.name in service.residency,
        "available": offer.reason is None,
        "reason": offer.reason,
        "trained_precision": adapter.record.get("precision"),
        "warning": _warning(service, adapter),
    }


def _warning(service: Service, adapter: StoredAdapter) -> str | None:
    """Where a task was trained over a base in another precision than the server's. Full fine-tuning
    made it a base of its own, which is not held in the server's.
    """
    if adapter.method == FULL:
        return None
    trained, served = adapter.record.get("precision"), service.engine.base.precision.text
    if not trained or trained == served:
        return None
    return say(
        f"trained over a base in {trained}, answered by one in {served}",
        f"训练时基座精度为 {trained}，此处为 {served}",
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
    """A base's name, of a path the last part: no answer shows where things are."""
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name

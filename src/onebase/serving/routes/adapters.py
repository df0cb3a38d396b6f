"""/v1/adapters: offers and withdraws stored tasks, and changes their current version."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.errors import OnebaseError, UsageError
from onebase.language import say
from onebase.serving.errors import ApiError, bad_field, broken_adapter, unknown_model
from onebase.serving.json_body import JsonRoute
from onebase.serving.routes.models import described_offer
from onebase.serving.service import Service
from onebase.serving.text_field import Text

router = APIRouter(route_class=JsonRoute)


class TaskName(BaseModel):
    """The name of a stored task."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task: Text = Field(max_length=256, description="A stored task.")


class Version(BaseModel):
    """A version of a task."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int = Field(ge=1, description="A stored version of the task.")


@router.get("/v1/adapters")
async def list_adapters(request: Request) -> dict[str, Any]:
    """Every version of every task."""
    service: Service = request.app.state.service
    await asyncio.to_thread(service.catalog.refresh)
    return {"adapters": [described_offer(service, offer) for offer in service.catalog.offers()]}


@router.post("/v1/adapters")
async def offer_task(body: TaskName, request: Request) -> dict[str, Any]:
    """Offer a task of the workspace, with all of its versions."""
    service: Service = request.app.state.service
    offers = service.catalog.offer(body.task)
    return {"adapters": [described_offer(service, offer) for offer in offers]}


@router.delete("/v1/adapters")
async def withdraw_named_task(
    request: Request,
    task: Annotated[str | None, Query()] = None,
    body: Annotated[TaskName | None, Body()] = None,
) -> dict[str, Any]:
    """As DELETE /v1/adapters/{task}, with the task in the body or the query."""
    name = body.task if body else task
    if name is None:
        raise bad_field(
            "task",
            say("No task is named.", "没有指定任务。"),
            say("Use DELETE /v1/adapters/TASK.", "请使用 DELETE /v1/adapters/任务名。"),
        )
    return await withdraw_task(name, request)


@router.delete("/v1/adapters/{task}")
async def withdraw_task(task: str, request: Request) -> dict[str, Any]:
    """Stop serving a task until it is offered again. Nothing changes on disk."""
    service: Service = request.app.state.service
    service.catalog.withdraw(task)
    service.adapter_cache.remove(task)
    return {"task": task, "available": False}


@router.post("/v1/adapters/{task}/promote")
async def promote(task: str, body: Version, request: Request) -> dict[str, Any]:
    """Make a version the current one, which the bare task name refers to."""
    name = f"{task}@{body.version}"
    return await _change(request, task, lambda store: store.promote(name))


@router.post("/v1/adapters/{task}/rollback")
async def rollback(task: str, request: Request) -> dict[str, Any]:
    """Make the previously current version current again."""
    return await _change(request, task, lambda store: store.rollback(task))


async def _change(
    request: Request, task: str, change: Callable[[AdapterStore], StoredAdapter]
) -> dict[str, Any]:
    """Change the store; returns the version that is current afterwards. Raises ApiError."""
    service: Service = request.app.state.service
    if not service.catalog.has(task):
        raise unknown_model(task, sorted({o.adapter.task for o in service.catalog.offers()}))
    try:
        adapter = await asyncio.to_thread(change, service.catalog.store)
    except UsageError as error:
        raise ApiError(400, "invalid_value", error.message, error.remedy) from error
    except OnebaseError as error:
        raise broken_adapter(task) from error
    service.catalog.refresh()
    return {"task": task, "version": adapter.version, "model": adapter.name}

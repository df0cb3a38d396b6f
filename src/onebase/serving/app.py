"""The HTTP application of a running engine."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.cors import CORSMiddleware

from onebase.adapters.store import AdapterStore
from onebase.engine.engine import Engine
from onebase.serving.access import AccessMiddleware
from onebase.serving.body_limit import BodyLimitMiddleware
from onebase.serving.catalog import Catalog
from onebase.serving.errors import install_error_handlers
from onebase.serving.fields import IGNORED_HEADER
from onebase.serving.keys import KeyStore
from onebase.serving.request_log import RequestLogMiddleware
from onebase.serving.routes import adapters, chat, classify, completions, docs, health, models
from onebase.serving.routes import responses as responses_route
from onebase.serving.service import Service
from onebase.serving.settings import ServerSettings

# Requests are counted and logged locally; no telemetry is sent.
_NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "auto_configure": False,
}
_API = (
    chat.router,
    completions.router,
    responses_route.router,
    models.router,
    classify.router,
    adapters.router,
)


def create_app(
    engine: Engine,
    store: AdapterStore,
    settings: ServerSettings,
    keys: KeyStore,
    *,
    on_ready: Callable[[Service], None] = lambda _: None,
) -> FastAPI:
    """The application, which owns `engine` from start to shutdown. `on_ready` is called when the first
    answer is possible. Raises UsageError for a task of the settings that is not available.
    """

    catalog = Catalog(store, engine.base, allow_full=settings.allow_full, tasks=settings.tasks)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = Service(engine, catalog, settings)
        app.state.service = service
        watcher = asyncio.create_task(service.watch_workspace())
        start = asyncio.create_task(_start(service, on_ready))
        start.add_done_callback(service.record_start)
        try:
            yield
        finally:
            for task in (watcher, start):
                task.cancel()
            await asyncio.gather(watcher, start, return_exceptions=True)
            service.admission.close()
            service.dispatcher.truncate_all()
            await asyncio.to_thread(service.thread.stop, 0.0)

    app = FastAPI(
        title="onebase",
        summary="One base model, many tasks, with OpenAI's API.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    install_error_handlers(app)
    # The last one added is the outermost.
    app.add_middleware(BodyLimitMiddleware, limit=settings.limits.body_bytes)
    app.add_middleware(AccessMiddleware, settings=settings, keys=keys)
    if settings.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allow_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=[IGNORED_HEADER, "x-request-id", "Retry-After"],
        )
    app.add_middleware(RequestLogMiddleware)
    bearer = Depends(HTTPBearer(auto_error=False, description="An API key, if the server has any."))
    for router in _API:
        app.include_router(router, dependencies=[bearer])
    app.include_router(health.router)
    app.include_router(docs.router)
    return app


async def _start(service: Service, on_ready: Callable[[Service], None]) -> None:
    """Warm up, and report that the service is ready."""
    await service.warm_up()
    service.ready = True
    on_ready(service)

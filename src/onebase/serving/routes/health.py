"""/healthz, /readyz and /metrics."""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from onebase.serving.service import Service

router = APIRouter()


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Liveness: the process responds."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Readiness: 503 until the first answer is possible, and during shutdown."""
    service: Service = request.app.state.service
    if service.admission.closed:
        return JSONResponse({"status": "shutting down"}, 503)
    if not service.ready:
        return JSONResponse({"status": "starting"}, 503)
    return JSONResponse({"status": "ready"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """All metrics, in Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

"""/docs: the OpenAPI document in Swagger UI, whose files are part of this package.

They are stored and served compressed, which every browser accepts.
"""

from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

router = APIRouter(include_in_schema=False)
_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_EMPTY_ICON = "data:,"


@router.get("/")
async def home() -> Response:
    """Redirect to the documentation."""
    return RedirectResponse("/docs")


@router.get("/docs")
async def docs() -> Response:
    """The Swagger UI page."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="onebase",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url=_EMPTY_ICON,
    )


@router.get("/docs/{name}")
async def asset(name: str) -> Response:
    """One of Swagger UI's files."""
    if name not in _ASSETS:
        raise HTTPException(404)
    headers = {"Content-Encoding": "gzip", "Cache-Control": "max-age=86400"}
    return Response(_asset(name), media_type=_ASSETS[name], headers=headers)


@cache
def _asset(name: str) -> bytes:
    return (files("onebase.serving") / "assets" / f"{name}.gz").read_bytes()

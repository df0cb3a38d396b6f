"""/docs, the OpenAPI document and /metrics."""

import gzip
import hashlib
import re
from importlib.resources import files
from typing import Any

import pytest


def test_the_page_needs_nothing_from_elsewhere(server: Any) -> None:
    page = server.http.get("/docs")
    assert page.status_code == 200
    links = ["/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"]
    found = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sorted(found) == [*links, "data:,"]
    for link in links:
        assert server.http.get(link).status_code == 200
    assert "http" not in page.text.replace("http-equiv", "")
    assert server.http.get("/").headers["location"] == "/docs"


@pytest.mark.parametrize("name", ["swagger-ui-bundle.js", "swagger-ui.css"])
def test_assets_are_what_their_note_says(name: str, server: Any) -> None:
    folder = files("onebase.serving") / "assets"
    note = (folder / "README.md").read_text(encoding="utf-8")
    kept = gzip.decompress((folder / f"{name}.gz").read_bytes())
    assert f"`{name}` | `{hashlib.sha256(kept).hexdigest()}`" in note
    assert server.http.get(f"/docs/{name}").content == kept


def test_the_openapi_document(server: Any) -> None:
    document = server.http.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/classify",
        "/v1/adapters",
        "/v1/adapters/{task}",
        "/v1/adapters/{task}/promote",
        "/v1/adapters/{task}/rollback",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


def test_metrics_by_task(own_server: Any) -> None:
    usage = own_server.chat("support").json()["usage"]
    own_server.chat("nothing")
    own_server.chat("tone", temperature=9)
    text = own_server.http.get("/metrics").text
    completion_tokens = usage["completion_tokens"]
    for line in (
        'onebase_requests_total{api="/v1/chat/completions",status="200",task="support"} 1.0',
        f'onebase_generated_tokens_total{{task="support"}} {completion_tokens}.0',
        f'onebase_prompt_tokens_total{{task="support"}} {usage["prompt_tokens"]}.0',
        'onebase_time_to_first_token_seconds_count{task="support"} 1.0',
        f'onebase_time_per_output_token_seconds_count{{task="support"}} {completion_tokens - 1}.0',
        'onebase_request_seconds_count{task="support"} 1.0',
        "onebase_adapters_loaded 1.0",
        "onebase_requests_in_flight 0.0",
        "onebase_requests_running 0.0",
        "onebase_requests_waiting 0.0",
        'onebase_adapter_loads_total{task="support"} 1.0',
        "onebase_adapter_evictions_total 0.0",
    ):
        assert line in text.splitlines(), line
    assert "nothing" not in text
    sizes = {
        "adapter_bytes": own_server.service.adapter_cache.bytes,
        "cache_capacity": own_server.service.engine.stats()["cache_capacity"],
        # Every step of an answer is one observation; the warm-up had two.
        "batch_size_count": 2 + completion_tokens,
    }
    values = dict(line.rsplit(" ", 1) for line in text.splitlines())
    assert {name: float(values[f"onebase_{name}"]) for name in sizes} == sizes
    assert sizes["adapter_bytes"] > 0

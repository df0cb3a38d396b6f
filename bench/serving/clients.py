"""A small HTTP client on asyncio, which takes little time from the cores that are measured."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Reply:
    """An answer: its status, text and usage, and the arrival `times` of its parts, in seconds after `began` (the
    perf_counter time of the request). `left` is true if the client disconnected before the end.
    """

    status: int = 0
    began: float = 0.0
    times: list[float] = field(default_factory=list)
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    left: bool = False
    body: dict[str, Any] = field(default_factory=dict)


async def get(address: str, path: str, seconds: float = 30) -> tuple[int, bytes]:
    """Status and body of a GET."""
    async with asyncio.timeout(seconds):
        reader, writer = await _send(address, "GET", path, b"")
        status, chunks = await _response(reader)
        body = b"".join([chunk async for chunk in chunks])
        writer.close()
        return status, body


async def post(
    address: str, path: str, body: dict[str, Any], *, method: str = "POST", seconds: float = 600
) -> Reply:
    """Send a request and return the complete JSON answer."""
    began = time.perf_counter()
    async with asyncio.timeout(seconds):
        reader, writer = await _send(address, method, path, json.dumps(body).encode())
        status, chunks = await _response(reader)
        raw = b"".join([chunk async for chunk in chunks])
        writer.close()
    answer = json.loads(raw) if raw else {}
    reply = Reply(status, body=answer, seconds=time.perf_counter() - began)
    if status == 200 and "choices" in answer:
        reply.text = answer["choices"][0].get("text", "")
        reply.tokens = answer["usage"]["completion_tokens"]
    return reply


async def stream(
    address: str,
    path: str,
    body: dict[str, Any],
    *,
    leave_after: int | None = None,
    seconds: float = 600,
    into: Reply | None = None,
) -> Reply:
    """Stream an answer to `body`, to which `stream` and `stream_options` are added. If `leave_after` is given, the
    client disconnects after so many parts; 0 is right after the request. `into` is a reply object that the
    caller can watch meanwhile.
    """
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    reply = into or Reply()
    reply.began = began = time.perf_counter()
    async with asyncio.timeout(seconds):
        reader, writer = await _send(address, "POST", path, json.dumps(asked).encode())
        try:
            if leave_after != 0:
                reply.status, chunks = await _response(reader)
                if reply.status != 200:
                    reply.body = json.loads(b"".join([chunk async for chunk in chunks]) or b"{}")
                else:
                    await _follow(chunks, reply, began, leave_after)
        finally:
            writer.close()
    reply.left = leave_after is not None
    reply.seconds = time.perf_counter() - began
    return reply


async def _follow(
    chunks: AsyncIterator[bytes], reply: Reply, began: float, leave_after: int | None
) -> None:
    """Add the parts of an event stream to `reply`."""
    rest = b""
    async for chunk in chunks:
        now = time.perf_counter() - began
        *events, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            data = event.removeprefix(b"data:").strip()
            if not event.startswith(b"data:") or data == b"[DONE]":
                continue
            part = json.loads(data)
            if part.get("usage"):
                reply.tokens = part["usage"]["completion_tokens"]
            if "error" in part:
                reply.body = part
            for choice in part.get("choices", []):
                text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                if text:
                    reply.times.append(now)
                    reply.text += text
        if leave_after is not None and len(reply.times) >= leave_after:
            return


async def _send(
    address: str, method: str, path: str, body: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    place = urlsplit(address)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1 << 24)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer


async def _response(reader: asyncio.StreamReader) -> tuple[int, AsyncIterator[bytes]]:
    """The status, and the body in chunks as they arrive."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = {
        name.lower(): value.strip()
        for name, _, value in (line.partition(":") for line in head[1:] if line)
    }
    return int(head[0].split(" ")[1]), _body(reader, fields)


async def _body(reader: asyncio.StreamReader, fields: dict[str, str]) -> AsyncIterator[bytes]:
    if fields.get("transfer-encoding", "").lower() == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield (await reader.readexactly(size + 2))[:-2]
    elif "content-length" in fields:
        yield await reader.readexactly(int(fields["content-length"]))
    else:
        while piece := await reader.read(1 << 16):
            yield piece


def together(
    address: str, path: str, bodies: Sequence[dict[str, Any]]
) -> tuple[list[Reply], float]:
    """Stream all of `bodies` concurrently; returns the replies and the seconds until the last is complete."""

    async def all_of_them() -> list[Reply]:
        return await asyncio.gather(*(stream(address, path, body) for body in bodies))

    began = time.perf_counter()
    replies = asyncio.run(all_of_them())
    return replies, time.perf_counter() - began

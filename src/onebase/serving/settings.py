"""The settings of a server."""

import ipaddress

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """The limits on one request, and on all requests together."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    body_bytes: int = Field(4 << 20, ge=1, description="the size of a request body")
    prompt_tokens: int | None = Field(
        None,
        ge=1,
        description="the length of a prompt, besides the limit of the base's context",
    )
    concurrent: int = Field(64, ge=1, description="sequences that run at once")
    queue: int = Field(
        256, ge=0, description="sequences that wait; beyond that, requests are refused with 429"
    )
    choices: int = Field(128, ge=1, description="sequences of one request (`n` times its prompts)")
    seconds: float = Field(600.0, gt=0, description="the duration of a request")
    default_tokens: int = Field(
        1024, ge=1, description="the length of a chat answer, if the request sets no limit"
    )


class ServerSettings(BaseModel):
    """A server's address, access rules and tasks."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = Field("127.0.0.1", description="the address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="the port to listen on; 0 picks a free one")
    tasks: tuple[str, ...] = Field(
        default=(), description="the tasks to serve, loaded at start; empty serves all tasks"
    )
    allow_full: bool = Field(
        default=False,
        description="also serve tasks of full fine-tuning, each of which loads its own base",
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="names that are accepted in a Host header besides the loopback's"
    )
    allow_origins: tuple[str, ...] = Field(
        default=(), description="origins of web pages that may call this server"
    )
    adapter_bytes: int = Field(1 << 30, ge=0, description="the memory for adapters")
    drain_seconds: float = Field(
        30.0, ge=0, description="how long running answers may continue after Ctrl-C or SIGTERM"
    )
    log_prompts: bool = Field(default=False, description="write prompts and answers to the log")
    limits: Limits = Limits()

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback address. A name other than localhost is not."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

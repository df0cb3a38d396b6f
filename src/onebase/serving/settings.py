"""What a server is told when it starts."""

import ipaddress

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """What one request, and all of them together, may take.

    `body_bytes`: the longest request body. `prompt_tokens`: the longest prompt, beside the base's
    own context. `concurrent`: sequences that are answered at once; `queue`: those that may wait
    beside them, before a request is refused with 429. `choices`: sequences of one request (`n`
    times its prompts). `seconds`: how long a request may take. `default_tokens`: the longest
    answer in a chat where the request names no limit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    body_bytes: int = Field(4 << 20, ge=1)
    prompt_tokens: int | None = Field(None, ge=1)
    concurrent: int = Field(64, ge=1)
    queue: int = Field(256, ge=0)
    choices: int = Field(128, ge=1)
    seconds: float = Field(600.0, gt=0)
    default_tokens: int = Field(1024, ge=1)


class ServerSettings(BaseModel):
    """Where a server listens, whom it lets in, and what it offers.

    `tasks`: the tasks to offer and to load at the start; empty offers all of them. `allow_full`:
    tasks of full fine-tuning too, each of which brings a base into memory. `allowed_hosts`: names
    that a Host header may hold beside the loopback's. `allow_origins`: origins of web pages that
    may call this server. `adapter_bytes`: what adapters may take in memory. `drain_seconds`: how
    long running answers may go on after Ctrl-C or SIGTERM. `log_prompts`: whether prompts and
    answers stand in the log.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    tasks: tuple[str, ...] = ()
    allow_full: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    adapter_bytes: int = Field(1 << 30, ge=0)
    drain_seconds: float = Field(30.0, ge=0)
    log_prompts: bool = False
    limits: Limits = Limits()

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine alone. An unknown name does not."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

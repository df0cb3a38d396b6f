"""How many tokens a request took."""

from typing import Any

from onebase.serving.exchange import Exchange


def usage_of(exchange: Exchange, prompts: int) -> dict[str, Any]:
    """OpenAI's `usage`. The sequences are the answers to `prompts` prompts, each counted once."""
    requests = exchange.requests
    choices = max(1, len(requests) // prompts)
    read = sum(len(request.prompt) for request in requests[::choices])
    said = sum(len(request.tokens) for request in requests)
    return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}

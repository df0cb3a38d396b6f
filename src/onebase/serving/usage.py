"""The token usage of a request."""

from typing import Any

from onebase.serving.sequence_group import SequenceGroup


def usage_of(group: SequenceGroup, prompt_count: int) -> dict[str, Any]:
    """OpenAI's `usage` of the answers to `prompt_count` prompts, each of which is counted once."""
    requests = group.requests
    choices = max(1, len(requests) // prompt_count)
    prompt = sum(len(request.prompt) for request in requests[::choices])
    completion = sum(len(request.tokens) for request in requests)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }

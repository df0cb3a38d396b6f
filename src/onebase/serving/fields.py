"""Fields of OpenAI's and vLLM's requests that this server does not know how to honour.

One that would change the answer is refused by name, unless its value asks for nothing. Any other
that is not known here is ignored, and named in the response header `x-onebase-ignored`.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

from onebase.serving.errors import unsupported

IGNORED_HEADER = "x-onebase-ignored"
_NAMED = 32  # as many ignored fields are named at most

# The values, beside null, that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    # OpenAI
    "audio": (),
    "background": (False,),
    "conversation": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include": ([],),
    "max_tool_calls": (),
    "modalities": ([], ["text"]),
    "previous_response_id": ("",),
    "prompt_template": (),
    "reasoning": ({}, {"effort": "none"}),
    "reasoning_effort": ("none",),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncation": ("disabled",),
    "verbosity": ("medium",),
    "web_search_options": (),
    # vLLM
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "guided_choice": ([],),
    "guided_grammar": ("",),
    "guided_json": (),
    "guided_regex": ("",),
    "guided_whitespace_pattern": (),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "prompt_embeds": ([],),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "structured_outputs": ({},),
    "thinking_token_budget": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}


def check_fields(
    body: BaseModel, neutral: Mapping[str, tuple[Any, ...]] | None = None
) -> list[str]:
    """The fields of `body` that are ignored. `neutral` adds to the fields that may be refused.

    Raises ApiError for a field that asks for what is not supported.
    """
    known = {**_NEUTRAL, **(neutral or {})}
    ignored = []
    for name, value in (body.model_extra or {}).items():
        if name not in known:
            ignored.append(name)
        elif value is not None and not any(_equal(value, item) for item in known[name]):
            raise unsupported(name)
    for name in type(body).model_fields:
        ignored += _inside(getattr(body, name), name)
    return ignored


def _inside(value: Any, name: str) -> Iterator[str]:
    """The unknown fields inside a field, by their paths (`messages.0.name`)."""
    if isinstance(value, list):
        for place, item in enumerate(value):
            yield from _inside(item, f"{name}.{place}")
    elif isinstance(value, BaseModel):
        yield from (f"{name}.{key}" for key in value.model_extra or {})
        for key in type(value).model_fields:
            yield from _inside(getattr(value, key), f"{name}.{key}")


def ignored_header(names: list[str]) -> dict[str, str]:
    """The header that names what was ignored; none where nothing was."""
    if not names:
        return {}
    return {IGNORED_HEADER: ", ".join(_written(name) for name in names[:_NAMED])}


def _written(name: str) -> str:
    """A field's name as a header may hold it: an empty one as `""`, as a header's value neither
    begins nor ends with a blank."""
    return quote(name, safe="", errors="replace")[:64] or '""'


def _equal(value: Any, neutral: Any) -> bool:
    """Whether they are equal; 0 and false are not. Null members of an object ask for nothing."""
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if item is not None}
    return type(value) is type(neutral) and bool(value == neutral)

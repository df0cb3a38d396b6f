"""Fields of OpenAI's and vLLM's requests that this server does not support.

A field that would change the answer is refused by name, unless its value has no effect. All other
unknown fields are ignored, and listed in the response header `x-onebase-ignored`.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

from onebase.serving.errors import unsupported

IGNORED_HEADER = "x-onebase-ignored"
_MAX_NAMED = 32  # ignored fields in the header

# The values, besides null, that have no effect.
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
    """The ignored fields of `body`. `neutral` adds unsupported fields, with the values that have no
    effect.

    Raises ApiError for an unsupported field with any other value.
    """
    unsupported_fields = {**_NEUTRAL, **(neutral or {})}
    ignored = []
    for name, value in (body.model_extra or {}).items():
        if name not in unsupported_fields:
            ignored.append(name)
        elif value is not None and not any(_equal(value, n) for n in unsupported_fields[name]):
            raise unsupported(name)
    for name in type(body).model_fields:
        ignored += _unknown_inside(getattr(body, name), name)
    return ignored


def _unknown_inside(value: Any, path: str) -> Iterator[str]:
    """The paths of the unknown fields inside the field at `path` (`messages.0.name`)."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_inside(item, f"{path}.{index}")
    elif isinstance(value, BaseModel):
        yield from (f"{path}.{key}" for key in value.model_extra or {})
        for key in type(value).model_fields:
            yield from _unknown_inside(getattr(value, key), f"{path}.{key}")


def ignored_header(names: list[str]) -> dict[str, str]:
    """The header that lists ignored fields; no header if there are none."""
    if not names:
        return {}
    return {IGNORED_HEADER: ", ".join(_header_name(name) for name in names[:_MAX_NAMED])}


def _header_name(name: str) -> str:
    """A field's name in the header. An empty name is `""`, since a header's value neither begins nor
    ends with a blank.
    """
    return quote(name, safe="", errors="replace")[:64] or '""'


def _equal(value: Any, neutral: Any) -> bool:
    """Whether both are equal; 0 and false are not. Null members of an object are left out."""
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if item is not None}
    return type(value) is type(neutral) and bool(value == neutral)

"""Which fields pass, which are refused by name, which are ignored and named."""

from typing import Any

import pytest

from onebase.serving import chat_schema, completion_schema, responses_schema
from onebase.serving.errors import ApiError
from onebase.serving.fields import check_fields, ignored_header
from onebase.serving.sampling_fields import SamplingFields

NEUTRAL = {
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "auto",
    "modalities": ["text"],
    "audio": None,
    "reasoning_effort": None,
    "verbosity": "medium",
    "ignore_eos": False,
    "skip_special_tokens": True,
    "stop_token_ids": [],
    "length_penalty": 1.0,
    "use_beam_search": False,
    "prompt_logprobs": None,
    "chat_template_kwargs": {},
}
REFUSED = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "modalities": ["audio"],
    "reasoning_effort": "high",
    "verbosity": "low",
    "ignore_eos": True,
    "skip_special_tokens": False,
    "stop_token_ids": [2],
    "length_penalty": 0.5,
    "use_beam_search": True,
    "prompt_logprobs": 0,
    "guided_json": {},
    "chat_template": "{{ x }}",
    "bad_words": ["no"],
    "previous_response_id": "resp_1",
    "truncation": "auto",
    "include": ["message.output_text.logprobs"],
}


def fields(**values: Any) -> SamplingFields:
    return SamplingFields.model_validate({"model": "base", **values})


def test_neutral_values_pass() -> None:
    neutral = fields(**NEUTRAL)
    assert neutral.model_extra == NEUTRAL
    assert check_fields(neutral) == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_the_answer_is_refused_by_name(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_fields(fields(**{name: REFUSED[name]}))
    assert (caught.value.status, caught.value.param) == (400, name)
    assert name in str(caught.value)
    assert caught.value.body()["error"]["code"] == "unsupported_parameter"


def test_zero_is_not_false() -> None:
    with pytest.raises(ApiError, match="ignore_eos"):
        check_fields(fields(ignore_eos=0))


def test_unknown_fields_are_named_in_a_header() -> None:
    names = check_fields(fields(colour="red", **{"é\r\nx": 1}))
    assert ignored_header(names) == {"x-onebase-ignored": "colour, %C3%A9%0D%0Ax"}
    assert ignored_header([]) == {}
    many = [f"{n:03}" + "x" * 1000 for n in range(10_000)]
    shown = ", ".join(f"{n:03}" + "x" * 61 for n in range(32))
    assert ignored_header(many) == {"x-onebase-ignored": shown}


@pytest.mark.parametrize(
    ("neutral", "name", "value"),
    [
        (chat_schema.OTHER_FIELDS, "echo", True),
        (chat_schema.OTHER_FIELDS, "prompt", "x"),
        (completion_schema.other_fields(fields(n=2)), "best_of", 3),
        (completion_schema.other_fields(fields()), "response_format", {"type": "json_object"}),
        (responses_schema.OTHER_FIELDS, "prompt", {"id": "p"}),
    ],
)
def test_fields_of_one_api(neutral: Any, name: str, value: Any) -> None:
    with pytest.raises(ApiError, match=name):
        check_fields(fields(**{name: value}), neutral)


def test_best_of_as_many_as_n() -> None:
    body = fields(n=3, best_of=3)
    assert check_fields(body, completion_schema.other_fields(body)) == []

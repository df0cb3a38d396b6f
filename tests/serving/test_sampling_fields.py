"""What a request's fields mean for the draw."""

import pytest
from pydantic import ValidationError

from onebase.engine.sampling import Sampling
from onebase.serving.errors import ApiError
from onebase.serving.sampling_fields import SamplingFields, sampling_of_choice


def sampling(**values: object) -> Sampling:
    return SamplingFields.model_validate({"model": "m", **values}).sampling(9, None)


def test_defaults_are_openais() -> None:
    assert sampling() == Sampling(max_tokens=9, temperature=1.0)
    nulls = dict.fromkeys(SamplingFields.model_fields, None)
    assert sampling(**{**nulls, "model": "m"}) == sampling()


def test_every_field_arrives() -> None:
    body = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": -0.4,
        "seed": 7,
        "min_tokens": 2,
    }
    made = sampling(**body, logit_bias={"12": -100}, stop="end")
    assert made == Sampling(max_tokens=9, logit_bias={12: -100.0}, stop=("end",), **body)
    assert sampling(stop=["a", "b"]).stop == ("a", "b")


def test_values_at_the_edge() -> None:
    assert sampling(top_k=-1).top_k == 0
    assert (sampling(top_p=0).top_k, sampling(top_p=0).top_p) == (1, 1.0)
    assert sampling(seed=-1).seed == (1 << 63) - 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 2.1},
        {"temperature": "1"},
        {"top_p": 1.1},
        {"stop": ""},
        {"stop": [str(n) for n in range(17)]},
        {"n": 0},
        {"seed": 1 << 63},
        {"seed": 1.5},
        {"repetition_penalty": 0},
        {"logit_bias": {"1": 101}},
        {"frequency_penalty": float("inf")},
        {"stream": "yes"},
    ],
)
def test_values_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        sampling(**wrong)
    assert {error["loc"][0] for error in caught.value.errors()} == set(wrong)


@pytest.mark.parametrize("key", ["x", "-1", "1.5", "", "９", "9" * 20])
def test_a_bias_for_no_token(key: str) -> None:
    with pytest.raises(ApiError, match="is not a token id") as caught:
        sampling(logit_bias={key: 1})
    assert caught.value.param == "logit_bias"


def test_each_choice_has_draws_of_its_own() -> None:
    first = sampling(seed=(1 << 63) - 1)
    assert sampling_of_choice(first, 0).seed == (1 << 63) - 1
    assert sampling_of_choice(first, 1).seed == 0
    assert sampling_of_choice(sampling(), 3).seed is None

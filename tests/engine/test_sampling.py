"""What a request may choose, and what is refused."""

from typing import Any

import pytest

from onebase.adapters.methods import parse_options
from onebase.engine.constraint import Constraint
from onebase.engine.sampling import Sampling
from onebase.errors import UsageError


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("max_tokens", 0, 1),
        ("temperature", -0.1, 0.0),
        ("temperature", float("nan"), 100.0),
        ("top_p", 0.0, 1.0),
        ("top_k", -1, 0),
        ("min_p", 1.01, 1.0),
        ("min_p", -0.01, 0.0),
        ("repetition_penalty", 0.0, 0.01),
        ("frequency_penalty", 2.1, 2.0),
        ("frequency_penalty", float("inf"), -2.0),
        ("presence_penalty", -2.1, -2.0),
        ("logit_bias", {-1: 1.0}, {0: 100.0}),
        ("logit_bias", {1: 101.0}, {"1": -100}),  # JSON's keys are texts
        ("logit_bias", {"one": 1.0}, {}),
        ("logprobs", 21, 20),
        ("logprobs", -1, 0),
        ("stop", ("",), (" ",)),
        ("seed", -1, (1 << 63) - 1),
        ("constraint", {"kind": "xml"}, {"kind": "json_object"}),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_it(name: str, wrong: Any, right: Any) -> None:
    parse_options(Sampling, {name: right})
    with pytest.raises(UsageError, match=rf"{name}=.* is not valid"):
        parse_options(Sampling, {name: wrong})


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'repetition_penalty'"):
        parse_options(Sampling, {"repitition_penalty": 1.1})


def test_what_is_chosen_stays() -> None:
    sampling = Sampling(logit_bias={3: 1}, constraint=Constraint("json_schema", '{"type": "null"}'))
    assert Sampling.model_validate(sampling.model_dump()) == sampling
    assert sampling.constraint == Constraint("json_schema", '{"type": "null"}')
    assert not sampling.penalized
    assert Sampling(presence_penalty=0.1).penalized

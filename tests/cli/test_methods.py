"""`onebase methods`: the methods as their code describes them."""

import re

import pytest

from onebase.adapters.methods import METHODS
from onebase.training.options import TrainOptions

CHINESE = re.compile(r"[一-鿿]")


def test_all_methods_are_listed(onebase) -> None:
    result = onebase("methods")
    assert result.code == 0
    for name, method in METHODS.items():
        assert re.search(rf"^{name} +{re.escape(method.summary[0])}$", result.out, re.MULTILINE)
    assert "prefix-tuning is another name of p-tuning-v2." in result.out
    listed = onebase("methods", "--json").json
    assert [item["method"] for item in listed["methods"]] == list(METHODS)
    assert listed["aliases"] == {"prefix-tuning": "p-tuning-v2"}


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_described(onebase, name: str, language: str) -> None:
    result = onebase("methods", name, "--lang", language)
    assert result.code == 0
    index = 1 if language == "zh" else 0
    method = METHODS[name]
    for text in (method.summary, method.paper, method.not_for):
        assert text[index] in result.out
    for option, field in method.options.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        described = field.description if language == "en" else str(extra["zh"])
        assert f"      {described}" in result.out.splitlines()
        assert bool(CHINESE.search(str(described))) is (language == "zh")
        assert re.search(rf"^  {option}(=|: no default|：无默认值)", result.out, re.MULTILINE)
    for option in TrainOptions.model_fields:
        assert re.search(rf"^  {option}[=:：]", result.out, re.MULTILINE)


def test_defaults_and_bounds_are_the_method_s_own(onebase) -> None:
    lora = onebase("methods", "lora").out.splitlines()
    assert "  rank=8 (whole number, at least 1, at most 512)" in lora
    assert "  dropout=0 (number, at least 0, below 1)" in lora
    assert "  use_dora=false (true or false)" in lora
    assert "  rank_pattern: no default (mapping)" in lora
    assert "  learning_rate=0.002 (number, above 0)" in lora
    tuned = onebase("methods", "prompt-tuning").out.splitlines()
    assert "  learning_rate=0.03 (number, above 0)" in tuned
    assert "  beta2=0.95 (number, at least 0, below 1)" in tuned
    assert "  init=text (one of text, vocab, random)" in tuned
    chinese = onebase("methods", "lora", "--lang", "zh").out.splitlines()
    assert "  rank=8（整数，不小于 1、不大于 512）" in chinese


def test_json_has_the_options_as_values(onebase) -> None:
    (described,) = onebase("methods", "prefix-tuning", "--json").json["methods"]
    assert described["method"] == "p-tuning-v2"
    options = {item["name"]: item for item in described["options"]}
    fields = METHODS["p-tuning-v2"].options.model_fields
    assert {name: item["default"] for name, item in options.items()} == {
        name: field.default for name, field in fields.items()
    }
    assert options["virtual_tokens"]["description"]
    training = {item["name"]: item["default"] for item in described["training_options"]}
    assert training["learning_rate"] == METHODS["p-tuning-v2"].learning_rate
    assert training.keys() == TrainOptions.model_fields.keys()


def test_a_composite_is_described_part_by_part(onebase) -> None:
    described = onebase("methods", "p-tuning+lora", "--json").json["methods"]
    assert [item["method"] for item in described] == ["lora", "p-tuning"]
    assert "--method lora+p-tuning" in onebase("methods", "p-tuning+lora").out


def test_an_unknown_method_is_refused(onebase) -> None:
    result = onebase("methods", "lorra")
    assert result.code == 2
    assert "Did you mean 'lora'?" in result.err

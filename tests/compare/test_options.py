"""What a comparison is asked for: methods by name, and which settings go to which of them."""

import pytest

from onebase.compare.options import ALL_METHODS, CompareOptions, methods_named, settings_for
from onebase.errors import UsageError


def test_all_methods() -> None:
    assert methods_named(["all"]) == ALL_METHODS
    assert methods_named(["lora", "prefix-tuning", "lora", "p-tuning+lora"]) == (
        "lora",
        "p-tuning-v2",
        "lora+p-tuning",
    )
    with pytest.raises(UsageError, match="'lara'"):
        methods_named(["lora", "lara"])


def test_a_setting_goes_to_the_methods_that_have_it() -> None:
    methods = ["lora", "ia3", "prompt-tuning"]
    given = {"rank": 4, "epochs": 2, "virtual_tokens": 8}
    assert settings_for("lora", given, methods) == {"rank": 4, "epochs": 2}
    assert settings_for("ia3", given, methods) == {"epochs": 2}
    assert settings_for("prompt-tuning", given, methods) == {"epochs": 2, "virtual_tokens": 8}


def test_a_prefix_names_one_method() -> None:
    methods = ["lora", "ia3", "lora+p-tuning"]
    given = {"epochs": 2, "lora.epochs": 5, "lora.rank": 4, "ia3.learning_rate": 1e-3}
    assert settings_for("lora", given, methods) == {"epochs": 5, "lora.rank": 4}
    assert settings_for("ia3", given, methods) == {"epochs": 2, "learning_rate": 1e-3}
    assert settings_for("lora+p-tuning", given, methods) == {"epochs": 5, "lora.rank": 4}


@pytest.mark.parametrize(
    ("key", "named"),
    [("rnak", "'rnak'"), ("ia3.rank", "'ia3.rank'"), ("qlora.rank", "'qlora.rank'")],
)
def test_a_setting_that_no_method_has(key: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        settings_for("lora", {key: 1}, ["lora", "ia3"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("seeds", 0), ("share", 0.0), ("share", 1.0), ("answer_tokens", 0), ("examples", 0)],
)
def test_values_that_are_not_valid(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{field}={value}"):
        CompareOptions(**{field: value})

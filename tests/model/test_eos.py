from collections.abc import Callable

import pytest

from onebase.data.template import Template
from onebase.model.base import Base
from onebase.model.eos import end_tokens


@pytest.mark.parametrize(
    ("named", "ends"),
    [(None, {2}), (2, {2}), (7, {2, 7}), ([7, 8], {2, 7, 8})],
)
def test_the_generation_config_adds_ends(
    make_base: Callable[..., Base], named: int | list[int] | None, ends: set[int]
) -> None:
    base = make_base()
    base.model.generation_config.eos_token_id = named
    assert end_tokens(base, Template(base.tokenizer)) == ends


def test_the_template_s_end_is_one_where_the_config_does_not_name_it(
    make_base: Callable[..., Base],
) -> None:
    base = make_base()
    base.tokenizer.eos_token = None
    base.model.generation_config.eos_token_id = None
    assert end_tokens(base, Template(base.tokenizer)) == {2}
    assert end_tokens(base, Template(base.tokenizer, kind="plain")) == set()

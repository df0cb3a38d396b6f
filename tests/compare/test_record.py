"""A comparison is kept whole in its run's folder."""

import json
import math
from dataclasses import replace

import pytest

from onebase.compare.record import FILE, from_json, load, save, to_json
from onebase.compare.result import CurvePoint
from onebase.errors import CorruptFileError, UsageError


def test_what_is_saved_is_loaded(comparison, tmp_path) -> None:
    file = save(comparison, tmp_path)
    assert file == tmp_path / FILE
    assert load(tmp_path) == comparison


def test_the_file_can_be_read_by_other_programs(comparison, tmp_path) -> None:
    save(comparison, tmp_path)
    value = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    assert value["comparison"]["arms"][2]["method"] == "full"
    assert value["comparison"]["held_out"][0]["line"] == 1


def test_numbers_that_json_does_not_have_come_back(comparison) -> None:
    diverged = replace(
        comparison.arms[-1],
        diverged=True,
        outcomes=(),
        metrics={"loss": math.inf, "accuracy": -math.inf},
        training_losses=(CurvePoint(10, math.nan), CurvePoint(20, math.inf)),
    )
    text = to_json(replace(comparison, arms=(*comparison.arms[:-1], diverged)))
    json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    back = from_json(text).arms[-1]
    assert back.metrics == {"loss": math.inf, "accuracy": -math.inf}
    assert math.isnan(back.training_losses[0].loss)
    assert back.training_losses[1].loss == math.inf


def test_every_digit_of_a_float_comes_back(comparison) -> None:
    exact = replace(comparison, seconds=0.1 + 0.2, cpu_seconds=5e-324)
    back = from_json(to_json(exact))
    assert (back.seconds, back.cpu_seconds) == (0.1 + 0.2, 5e-324)


def test_texts_come_back_as_they_are(comparison) -> None:
    text = 'a\u2028b\r\n\tc\0"\\ 深圳 \U0001f600'
    row = replace(comparison.held_out[0], input=text, reference="")
    back = from_json(to_json(replace(comparison, held_out=(row, *comparison.held_out[1:]))))
    assert back.held_out[0] == row


def test_a_folder_without_a_comparison(tmp_path) -> None:
    with pytest.raises(UsageError, match="holds no comparison"):
        load(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"version": 1}', '{"version": 1, "comparison": {"run": 3}}'],
)
def test_a_damaged_file_is_named(tmp_path, text) -> None:
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    with pytest.raises(CorruptFileError, match=FILE):
        load(tmp_path)


def test_a_damaged_field_is_named(comparison) -> None:
    value = json.loads(to_json(comparison))
    value["comparison"]["arms"][1]["adapter_bytes"] = "many"
    with pytest.raises(CorruptFileError, match=r"arms\.1\.adapter_bytes"):
        from_json(json.dumps(value))


def test_another_version_is_refused(comparison) -> None:
    value = json.loads(to_json(comparison)) | {"version": 2}
    with pytest.raises(CorruptFileError, match="has version 2"):
        from_json(json.dumps(value))

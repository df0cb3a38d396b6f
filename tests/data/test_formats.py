from collections.abc import Callable
from pathlib import Path

import pytest

from onebase.data.formats import load_dataset, require_good
from onebase.errors import DataError, UsageError

Write = Callable[[str, object], Path]
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("row", "form", "columns"),
    [
        ({"content": "q", "summary": "a"}, "adgen", {"input": "content", "output": "summary"}),
        ({"messages": TALK}, "messages", {"messages": "messages"}),
        ({"conversations": SHARED}, "sharegpt", {"conversations": "conversations"}),
        (
            {"instruction": "q", "input": "", "output": "a"},
            "alpaca",
            {"instruction": "instruction", "input": "input", "output": "output"},
        ),
        (
            {"instruction": "q", "output": "a"},
            "alpaca",
            {"instruction": "instruction", "output": "output"},
        ),
        (
            {"prompt": "q", "completion": "a"},
            "prompt-completion",
            {"input": "prompt", "output": "completion"},
        ),
        ({"input": "q", "output": "a"}, "input-output", {"input": "input", "output": "output"}),
        ({"text": "q", "label": "a"}, "classification", {"input": "text", "label": "label"}),
        ({"text": "q", "category": "a"}, "classification", {"input": "text", "label": "category"}),
        ({"text": "q", "intent": "a"}, "classification", {"input": "text", "label": "intent"}),
        (
            {"question": "q", "answer": "a"},
            "question-answer",
            {"input": "question", "output": "answer"},
        ),
    ],
)
def test_each_format_is_told_by_its_columns(
    write: Write, row: dict[str, object], form: str, columns: dict[str, str]
) -> None:
    dataset = load_dataset(write("a.jsonl", [row | {"id": 1}]))
    assert (dataset.format, dataset.columns) == (form, columns)
    (example,) = dataset.examples
    assert (example.input, example.answer) == ("q", "a")
    assert dataset.labels == (("a",) if form == "classification" else ())


def test_the_first_format_in_order_wins(write: Write) -> None:
    row = {"input": "i", "output": "o", "prompt": "p", "completion": "c"}
    assert load_dataset(write("a.jsonl", [row])).format == "prompt-completion"
    row |= {"content": "x", "summary": "y"}
    assert load_dataset(write("a.jsonl", [row])).format == "adgen"


def test_a_stray_row_does_not_decide_the_format(write: Write) -> None:
    stray = {"content": "x", "summary": "y"}
    rows = [{"text": "t", "label": label} for label in "bab"]
    dataset = load_dataset(write("a.jsonl", [stray, *rows]))
    assert dataset.format == "classification"
    assert dataset.labels == ("a", "b")
    assert [str(row) for row in dataset.bad] == ["a.jsonl:1, column 'text': missing"]


@pytest.mark.parametrize(
    ("columns", "form"),
    [
        ({"input": "mr", "output": "ref"}, "input-output"),
        ({"question": "mr", "answer": "ref"}, "input-output"),
        ({"text": "mr", "label": "ref"}, "classification"),
        ({"input": "mr", "label": "ref"}, "classification"),
        ({"instruction": "mr", "output": "ref"}, "alpaca"),
    ],
)
def test_columns_override(write: Write, columns: dict[str, str], form: str) -> None:
    path = write("a.jsonl", [{"mr": "q", "ref": "a", "content": "x", "summary": "y"}])
    dataset = load_dataset(path, columns=columns)
    assert dataset.format == form
    assert (dataset.examples[0].input, dataset.examples[0].answer) == ("q", "a")


def test_columns_may_name_only_the_odd_one(write: Write) -> None:
    row = {"instruction": "Do.", "input": "It.", "response": "Done."}
    dataset = load_dataset(write("a.jsonl", [row]), columns={"output": "response"})
    assert dataset.format == "alpaca"
    assert dataset.examples[0].input == "Do.\n\nIt."


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"inptu": "mr"}, r"Unknown column role: 'inptu'\. Did you mean 'input'\? Valid: chosen"),
        ({"input": "mrr"}, r"Unknown column: 'mrr'\. Did you mean 'mr'\? Valid: mr, ref"),
        ({"input": "mr"}, "No format has the roles input with the columns mr, ref"),
        ({"messages": "mr", "label": "ref"}, "No format has the roles messages, label"),
        ({"input": "mr", "output": "mr"}, "twice"),
        ({"input": "mr", "text": "ref"}, "twice"),
    ],
)
def test_wrong_columns_name_the_right_ones(
    write: Write, columns: dict[str, str], message: str
) -> None:
    path = write("a.jsonl", [{"mr": "q", "ref": "a"}])
    with pytest.raises(UsageError, match=message):
        load_dataset(path, columns=columns)


def test_an_unknown_format_is_offered_its_own_columns(write: Write) -> None:
    with pytest.raises(DataError) as error:
        load_dataset(write("a.jsonl", [{"mr": "q", "ref": "a"}]))
    assert "the columns mr, ref" in error.value.message
    assert "`--columns input=mr,output=ref`" in error.value.remedy
    assert "text,label|category|intent" in error.value.remedy


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        {"conversations": SHARED[:1], "chosen": SHARED[1], "rejected": SHARED[1]},
    ],
)
def test_preference_pairs_are_refused_with_their_purpose(
    write: Write, row: dict[str, object]
) -> None:
    with pytest.raises(DataError, match=r"holds preference pairs.*onebase align dpo"):
        load_dataset(write("a.jsonl", [row]))


def test_chosen_answers_can_be_learned_on_request(write: Write) -> None:
    path = write("a.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}])
    dataset = load_dataset(path, columns={"input": "prompt", "output": "chosen"})
    assert dataset.examples[0].answer == "c"


def test_bad_rows_are_listed_in_the_file_s_order(write: Write) -> None:
    good, empty = '{"input": "q", "output": "a"}', '{"input": "q", "output": ""}'
    dataset = load_dataset(write("a.jsonl", "\n".join([empty, good, "{", empty])))
    assert [row.line for row in dataset.bad] == [1, 3, 4]
    assert [example.line for example in dataset.examples] == [2]


def test_bad_rows_stop_training_unless_skipped(write: Write) -> None:
    rows = [{"input": "q", "output": "a"}] + [{"input": "q", "output": ""}] * 7
    dataset = load_dataset(write("a.jsonl", rows))
    with pytest.raises(DataError) as error:
        require_good(dataset)
    assert "a.jsonl has bad rows: 7: a.jsonl:2, column 'output': empty;" in error.value.message
    assert "a.jsonl:6" in error.value.message
    assert "a.jsonl:7" not in error.value.message
    assert "and 2 more" in error.value.message
    assert "`onebase data check a.jsonl`" in error.value.remedy
    assert "`--skip-bad`" in error.value.remedy
    require_good(dataset, skip_bad=True)


def test_a_file_of_bad_rows_alone_can_t_be_skipped(write: Write) -> None:
    dataset = load_dataset(write("a.jsonl", "{\n[\n"))
    assert dataset.format == "unknown"
    assert len(dataset.bad) == 2
    with pytest.raises(DataError, match=r"a\.jsonl has no row to train on\. Bad rows: 2"):
        require_good(dataset, skip_bad=True)


def test_good_rows_pass(write: Write) -> None:
    require_good(load_dataset(write("a.jsonl", [{"input": "q", "output": "a"}])))

import math

import pytest

from onebase.data.conversion import convert
from onebase.data.example import BadRow, Example
from onebase.data.row import Row

PAIR = {"input": "q", "output": "a"}
CLASSES = {"input": "text", "label": "label"}
MESSAGES = {"messages": "messages"}
SHAREGPT = {"conversations": "conversations"}
ALPACA = {"instruction": "instruction", "input": "input", "output": "output"}


def turns(values: dict[str, object], columns: dict[str, str]) -> list[tuple[str, str]]:
    result = convert(Row("a.jsonl", 7, values), columns)
    assert isinstance(result, Example)
    assert (result.file, result.line) == ("a.jsonl", 7)
    return [(turn.role, turn.content) for turn in result.turns]


def bad(values: dict[str, object], columns: dict[str, str]) -> tuple[str | None, str]:
    result = convert(Row("a.jsonl", 7, values), columns)
    assert isinstance(result, BadRow)
    assert (result.file, result.line) == ("a.jsonl", 7)
    return result.column, result.reason


def chat(*pairs: tuple[str, object]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def test_a_pair_is_kept_as_written() -> None:
    assert turns({"q": " Où? ", "a": "là\n"}, PAIR) == [("user", " Où? "), ("assistant", "là\n")]


@pytest.mark.parametrize(
    ("label", "text"),
    [("refund", "refund"), (" refund ", "refund"), (3, "3"), (3.0, "3"), (-0.5, "-0.5")],
)
def test_a_label_is_stripped_text_or_a_number(label: object, text: str) -> None:
    assert turns({"text": "t", "label": label}, CLASSES)[1] == ("assistant", text)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"q": "?"}, ("a", "missing")),
        ({"q": "?", "a": None}, ("a", "null")),
        ({"q": "?", "a": math.nan}, ("a", "null")),
        ({"q": "?", "a": ""}, ("a", "empty")),
        ({"q": " \n\u3000", "a": "b"}, ("q", "empty")),
        ({"q": "?", "a": 3}, ("a", "a number, expected text")),
        ({"q": "?", "a": True}, ("a", "true or false, expected text")),
        ({"q": ["?"], "a": "b"}, ("q", "a list, expected text")),
        ({"q": "?", "a": ["b"]}, ("a", "a list, expected text")),
        ({"q": "?", "a": {"x": 1}}, ("a", "an object, expected text")),
        ({"q": {"x": 1}, "a": "b"}, ("q", "an object, expected text")),
        ({"q": "?", "a": b"raw"}, ("a", "bytes, expected text")),
        ({"q": "?", "a": "x\0y"}, ("a", "contains a NUL character")),
        ({"q": "\ud83d", "a": "b"}, ("q", "half a character (a lone surrogate)")),
    ],
)
def test_an_unfit_value_names_its_column(values: dict[str, object], reason: object) -> None:
    assert bad(values, PAIR) == reason


@pytest.mark.parametrize(
    ("label", "kind"),
    [(True, "true or false"), (["a"], "a list"), ({"a": 1}, "an object")],
)
def test_a_label_of_another_type_is_bad(label: object, kind: str) -> None:
    column, reason = bad({"text": "t", "label": label}, CLASSES)
    assert column == "label"
    assert reason.startswith(f"{kind}, expected ")


def test_alpaca_joins_instruction_and_input() -> None:
    row: dict[str, object] = {"instruction": "Sum up.", "input": "A long text.", "output": "Short."}
    assert turns(row, ALPACA)[0] == ("user", "Sum up.\n\nA long text.")


@pytest.mark.parametrize("rest", [{"input": ""}, {"input": None}, {"input": " "}, {}])
def test_alpaca_needs_no_input(rest: dict[str, object]) -> None:
    row = {"instruction": "Say hi.", "output": "Hi."} | rest
    assert turns(row, ALPACA)[0] == ("user", "Say hi.")


def test_alpaca_input_must_be_text() -> None:
    row: dict[str, object] = {"instruction": "Sum.", "input": [1, 2], "output": "3"}
    assert bad(row, ALPACA) == ("input", "a list, expected text")


def test_messages_keep_every_turn() -> None:
    pairs = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b")]
    assert turns(chat(*pairs), MESSAGES) == pairs


def shared(*pairs: tuple[str, str]) -> dict[str, object]:
    return {"conversations": [{"from": who, "value": text} for who, text in pairs]}


def test_sharegpt_roles_are_translated() -> None:
    row = shared(("system", "s"), ("human", "u"), ("gpt", "a"))
    assert turns(row, SHAREGPT) == [("system", "s"), ("user", "u"), ("assistant", "a")]
    assert bad(shared(("robot", "x")), SHAREGPT) == (
        "conversations[0].from",
        "unknown role 'robot'; valid: system, human, user, gpt, assistant",
    )


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"messages": "hello"}, ("messages", "text, expected a list of turns")),
        ({"messages": []}, ("messages", "empty")),
        ({"messages": ["hello"]}, ("messages[0]", "not an object")),
        ({"messages": [{"content": "x"}]}, ("messages[0].role", "missing")),
        ({"messages": [{"role": "user"}]}, ("messages[0].content", "missing")),
        (
            chat(("robot", "x")),
            (
                "messages[0].role",
                "unknown role 'robot'; valid: system, developer, user, assistant",
            ),
        ),
        (chat(("user", "u"), ("assistant", " ")), ("messages[1].content", "empty")),
        (chat(("user", None)), ("messages[0].content", "null")),
        (chat(("user", "u")), ("messages", "does not end with an assistant turn")),
        (
            chat(("user", "u"), ("assistant", "a"), ("assistant", "b")),
            ("messages[2]", "two assistant turns in a row"),
        ),
        (chat(("assistant", "a")), ("messages[0]", "an assistant turn before any user turn")),
        (
            chat(("user", "u"), ("system", "s"), ("assistant", "a")),
            ("messages[1]", "a system turn that is not first"),
        ),
    ],
)
def test_an_unfit_conversation_names_the_turn(values: dict[str, object], reason: object) -> None:
    assert bad(values, MESSAGES) == reason


@pytest.mark.parametrize("column", ["tool_calls", "function_call"])
@pytest.mark.parametrize("value", ['[{"name": "w"}]', "w()", [{"name": "w"}], {"name": "w"}])
def test_calls_beside_an_answer_are_refused(column: str, value: object) -> None:
    named, reason = bad({"q": "x", "a": "y", column: value}, PAIR)
    assert named == column
    assert "tool calls are not supported" in reason


@pytest.mark.parametrize("nothing", ["[]", "{}", "", [], None])
def test_no_calls_are_no_reason(nothing: object) -> None:
    row = {"q": "x", "a": "y", "tool_calls": nothing}
    assert turns(row, PAIR) == [("user", "x"), ("assistant", "y")]


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]',
        "[{'content': 'q', 'role': 'user'}]",
        ' [ {"from": "gpt", "value": "a"} ]\n',
        "[{'role': 'assistant', 'content': \"it's\"}]",
    ],
)
@pytest.mark.parametrize("column", ["q", "a"])
def test_turns_that_a_table_holds_as_text_are_not_learned_as_json(column: str, text: str) -> None:
    named, reason = bad({"q": "x", "a": "y", column: text}, PAIR)
    assert named == column
    assert "a list of turns written as text" in reason


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "engineer", "content": "x"}]',
        '[{"role": "user", "name": "x"}]',
        'Write {"role": "user", "content": "q"}',
        "[1] role: user, content: x",
        '{"role": "user", "content": "q"}',
    ],
)
def test_other_json_is_learned(text: str) -> None:
    assert turns({"q": "x", "a": text}, PAIR)[-1] == ("assistant", text)

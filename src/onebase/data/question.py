"""The prompt of a row: system text, history, and the question with its details."""

from collections.abc import Mapping, Sequence

from onebase.data.cells import InvalidValue, checked, is_empty, text_of, value_of
from onebase.data.example import Turn
from onebase.data.turns import as_context, chat_of, holds_turns, turns_of
from onebase.language import say

# Optional roles of a format with their possible columns: before the question, and beneath it.
BEFORE = {"system": ("system", "system_prompt"), "history": ("history",)}
BENEATH = {"detail": ("input", "text_pair"), "context": ("context",)}


def question_of(values: Mapping[str, object], columns: Mapping[str, str]) -> tuple[Turn, ...]:
    """The question of a row: a text, with each detail after a blank line, or a list of turns that
    ends with the user's and is masked from the loss. Raises InvalidValue.
    """
    has_instruction = "instruction" in columns
    column = columns["instruction" if has_instruction else "input"]
    if holds_turns(values.get(column)):
        turns = list(as_context(chat_of(values, column, last="user")))
    else:
        turns = [Turn("user", text_of(values, column))]
    question = turns[-1].content
    for role in ("input", *BENEATH) if has_instruction else BENEATH:
        detail = values.get(columns[role]) if role in columns else None
        if not is_empty(detail):
            question += "\n\n" + checked(detail, columns[role])
    return (*turns[:-1], Turn("user", question))


def with_history(
    values: Mapping[str, object], columns: Mapping[str, str], turns: Sequence[Turn]
) -> tuple[Turn, ...]:
    """`turns` after the row's own system text and history. Raises InvalidValue if the turns begin
    with another system text.
    """
    if "prompt" in columns:
        turns = _after_prompt(values, columns["prompt"], turns)
    if "history" in columns:
        earlier = _history(values.get(columns["history"]), columns["history"])
        turns = _joined(earlier, turns, columns["history"])
    column = columns.get("system")
    if column is None or is_empty(values.get(column)):
        return tuple(turns)
    system = Turn("system", text_of(values, column))
    if turns[0].role != "system":
        return (system, *turns)
    if turns[0] != system:
        raise InvalidValue(
            column,
            say(
                "differs from the conversation's own system text; keep only one of them",
                "与对话自带的系统消息不同；请只保留其中一个",
            ),
        )
    return tuple(turns)


def contains(turns: Sequence[Turn], earlier: Sequence[Turn]) -> bool:
    """Whether a conversation begins with the `earlier` turns or, if they are a single question, contains
    it.
    """
    if tuple(turns[: len(earlier)]) == tuple(earlier):
        return True
    questions = [turn.content.strip() for turn in turns if turn.role == "user"]
    return len(earlier) == 1 and earlier[0].content.strip() in questions


def _after_prompt(
    values: Mapping[str, object], column: str, turns: Sequence[Turn]
) -> Sequence[Turn]:
    """A conversation after its prompt, unless it already contains the prompt."""
    value = values.get(column)
    if is_empty(value):
        return turns
    prompt = (
        turns_of(value, column)
        if isinstance(value, list)
        else [Turn("user", checked(value, column))]
    )
    earlier = as_context(prompt)
    if contains(as_context(turns), earlier):
        return turns
    return _joined(earlier, turns, column)


def _joined(earlier: Sequence[Turn], turns: Sequence[Turn], column: str) -> Sequence[Turn]:
    """The `earlier` turns of a column before others, with the system text first. Raises InvalidValue
    if both have different system texts.
    """
    if not earlier or turns[0].role != "system":
        return (*earlier, *turns)
    if earlier[0].role == "system":
        if earlier[0] != turns[0]:
            raise InvalidValue(column, say("two system texts", "有两个系统消息"))
        earlier = earlier[1:]
    return (turns[0], *earlier, *turns[1:])


def _history(value: object, column: str) -> tuple[Turn, ...]:
    """Earlier turns, given as [question, answer] pairs or as turns."""
    if is_empty(value) or value == "[]":
        return ()
    if isinstance(value, list) and isinstance(value[0], dict):
        return tuple(turns_of(value, column))
    if not isinstance(value, list):
        raise InvalidValue(
            column,
            say("expected a list of [question, answer] pairs", "应为 [问题, 回答] 的列表"),
        )
    turns: list[Turn] = []
    for number, pair in enumerate(value):
        place = f"{column}[{number}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InvalidValue(
                place, say("not a pair [question, answer]", "不是 [问题, 回答] 形式")
            )
        turns += [
            Turn("user", checked(value_of({place: pair[0]}, place), place)),
            Turn("assistant", checked(value_of({place: pair[1]}, place), place)),
        ]
    return tuple(turns)

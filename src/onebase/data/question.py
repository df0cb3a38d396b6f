"""What a row asks: its question with the text beneath it, behind its system text and earlier turns."""

from collections.abc import Mapping, Sequence

from onebase.data.example import Turn
from onebase.data.turns import as_context, chat_of, holds_turns, turns_of
from onebase.data.values import Unfit, checked, is_empty, text_of, value_of
from onebase.language import say

# Optional roles of a format, each with the columns that stand for it.
BEFORE = {"system": ("system", "system_prompt"), "history": ("history",)}
BENEATH = {"detail": ("input", "text_pair"), "context": ("context",)}


def asked_of(values: Mapping[str, object], columns: Mapping[str, str]) -> tuple[Turn, ...]:
    """The question of a row: a text, with what stands beneath it after a blank line, or a list of
    turns that ends with the user's, whose answers are not learned. Raises Unfit.
    """
    instructed = "instruction" in columns
    column = columns["instruction" if instructed else "input"]
    if holds_turns(values.get(column)):
        turns = list(as_context(chat_of(values, column, last="user")))
    else:
        turns = [Turn("user", text_of(values, column))]
    asked = turns[-1].content
    for role in ("input", *BENEATH) if instructed else BENEATH:
        detail = values.get(columns[role]) if role in columns else None
        if not is_empty(detail):
            asked += "\n\n" + checked(detail, columns[role])
    return (*turns[:-1], Turn("user", asked))


def preceded(
    values: Mapping[str, object], columns: Mapping[str, str], turns: Sequence[Turn]
) -> tuple[Turn, ...]:
    """`turns` behind the row's own system text and its history. Raises Unfit where the turns begin
    with another system text.
    """
    if "prompt" in columns:
        turns = _behind_prompt(values, columns["prompt"], turns)
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
        raise Unfit(
            column,
            say(
                "another system text than the conversation's own; leave one of them out",
                "与对话自带的系统消息不同；请只保留其中一个",
            ),
        )
    return tuple(turns)


def contains(turns: Sequence[Turn], earlier: Sequence[Turn]) -> bool:
    """Whether a conversation begins with the `earlier` turns, or holds them where they are only one
    question.
    """
    if tuple(turns[: len(earlier)]) == tuple(earlier):
        return True
    asked = [turn.content.strip() for turn in turns if turn.role == "user"]
    return len(earlier) == 1 and earlier[0].content.strip() in asked


def _behind_prompt(
    values: Mapping[str, object], column: str, turns: Sequence[Turn]
) -> Sequence[Turn]:
    """A conversation behind its prompt, unless the prompt stands in it already."""
    value = values.get(column)
    if is_empty(value):
        return turns
    asked = (
        turns_of(value, column)
        if isinstance(value, list)
        else [Turn("user", checked(value, column))]
    )
    earlier = as_context(asked)
    if contains(as_context(turns), earlier):
        return turns
    return _joined(earlier, turns, column)


def _joined(earlier: Sequence[Turn], turns: Sequence[Turn], column: str) -> Sequence[Turn]:
    """The `earlier` turns of a column before others, whose system text stays first. Raises Unfit where
    each has one of its own.
    """
    if not earlier or turns[0].role != "system":
        return (*earlier, *turns)
    if earlier[0].role == "system":
        if earlier[0] != turns[0]:
            raise Unfit(column, say("two system texts", "有两个系统消息"))
        earlier = earlier[1:]
    return (turns[0], *earlier, *turns[1:])


def _history(value: object, column: str) -> tuple[Turn, ...]:
    """Earlier turns: pairs of a question and its answer, or turns."""
    if is_empty(value) or value == "[]":
        return ()
    if isinstance(value, list) and isinstance(value[0], dict):
        return tuple(turns_of(value, column))
    if not isinstance(value, list):
        raise Unfit(
            column,
            say("expected a list of [question, answer] pairs", "应为 [问题, 回答] 的列表"),
        )
    turns: list[Turn] = []
    for number, pair in enumerate(value):
        place = f"{column}[{number}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Unfit(place, say("not a pair [question, answer]", "不是 [问题, 回答] 形式"))
        turns += [
            Turn("user", checked(value_of({place: pair[0]}, place), place)),
            Turn("assistant", checked(value_of({place: pair[1]}, place), place)),
        ]
    return tuple(turns)

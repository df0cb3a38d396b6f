"""The turns of a conversation, as chats (`role`, `content`) and ShareGPT (`from`, `value`) write them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onebase.data.example import Role, Turn
from onebase.data.values import (
    Unfit,
    checked,
    is_empty,
    kind_of,
    text_of,
    turns_as_text,
    value_of,
)
from onebase.language import say


@dataclass(frozen=True)
class Dialect:
    """The keys of a turn and its names of the roles."""

    role: str
    content: str
    roles: Mapping[str, Role]


CHAT = Dialect(
    "role",
    "content",
    {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"},
)
SHAREGPT = Dialect(
    "from",
    "value",
    {
        "system": "system",
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
    },
)
# Says of a turn, or of a whole row, whether it is learned: 0 or false makes it context.
MASKS = ("weight", "loss", "train")
_MASK_VALUES: dict[object, bool] = {
    **dict.fromkeys((True, "1", "1.0", "true"), True),
    **dict.fromkeys((False, "0", "0.0", "false"), False),
}
TEXT_PARTS = (None, "text", "input_text", "output_text")
_MEDIA = ("image", "audio", "video")
CALLS = ("tool_calls", "function_call")  # columns or fields, also where they are written as text
_TOOL_ROLES = ("tool", "function", "function_call", "tool_call", "observation", "ipython")


def chat_of(
    values: Mapping[str, object], column: str, *, last: Role = "assistant"
) -> tuple[Turn, ...]:
    """The conversation in a column, which ends with a turn of `last`; one that ends with the
    assistant's ends with its last answer to learn. Raises Unfit.
    """
    turns = turns_of(value_of(values, column), column)
    require_last(turns, column, last)
    return tuple(turns if last == "user" else to_learn(turns, column))


def turns_of(items: object, column: str, before: Sequence[Turn] = ()) -> list[Turn]:
    """The turns in a list, behind those `before` it. Raises Unfit for what can't be a turn, and for
    an order that no conversation has.
    """
    if isinstance(items, str):
        as_text = items.lstrip().startswith("[")
        raise Unfit(
            column,
            turns_as_text()
            if as_text
            else say("text, expected a list of turns", "是文本，应为对话列表"),
        )
    if not isinstance(items, list):
        kind = kind_of(items)
        raise Unfit(column, say(f"{kind}, expected a list of turns", f"是{kind}，应为对话列表"))
    if not items:
        raise Unfit(column, say("empty", "为空"))
    usual = SHAREGPT if column == "conversations" else CHAT
    turns = list(before)
    for number, item in enumerate(items):
        place = f"{column}[{number}]"
        turns.append(turn_of(item, place, usual))
        _check_order(turns, place)
    return turns


def turn_of(item: object, place: str, usual: Dialect = CHAT) -> Turn:
    """One turn, in either dialect. Raises Unfit."""
    if not isinstance(item, dict):
        raise Unfit(place, say("not an object", "不是对象"))
    dialect, learned = usual, True
    if len(item) != 2 or usual.content not in item or usual.role not in item:
        dialect = _dialect(item, usual)
        _require_one_dialect(item, place, dialect)
        learned = _learned(item, place)
    role = _role(item, place, dialect)
    content = item.get(dialect.content)
    where = f"{place}.{dialect.content}"
    if isinstance(content, list):
        return Turn(role, checked(_joined(content, where), where), learned)
    if not isinstance(content, str):
        value_of({where: content} if dialect.content in item else {}, where)
    return Turn(role, checked(content, where), learned)


def holds_turns(value: object) -> bool:
    """Whether a value is meant as a turn or a list of them, not as a text."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict)
    return isinstance(value, dict) and (CHAT.content in value or SHAREGPT.content in value)


def is_answer(items: object) -> bool:
    """Whether a list of turns begins with the assistant's: an answer without its question."""
    if not isinstance(items, list) or not items or not isinstance(items[0], dict):
        return False
    role = items[0].get("role", items[0].get("from"))
    return role in ("assistant", "gpt")


def require_last(turns: Sequence[Turn], column: str, last: Role) -> None:
    """Raise Unfit unless a turn of `last` ends the conversation."""
    if turns[-1].role == last:
        return
    article = "an" if last == "assistant" else "a"
    wanted = "助手的回答" if last == "assistant" else "用户的消息"
    raise Unfit(column, say(f"does not end with {article} {last} turn", f"最后一轮不是{wanted}"))


def to_learn(turns: Sequence[Turn], column: str) -> Sequence[Turn]:
    """`turns` up to the last answer that is to be learned: nothing learned depends on the others.

    Raises Unfit where every answer is marked as not to be learned.
    """
    if turns[-1].learned:
        return turns
    kept = list(turns)
    while kept and not (kept[-1].role == "assistant" and kept[-1].learned):
        kept.pop()
    if not kept:
        raise Unfit(
            column,
            say(
                "every answer is marked as not to be learned (weight 0)",
                "所有回答都标记为不学习（权重为 0）",
            ),
        )
    return kept


def as_context(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """`turns`, none of them to be learned."""
    return tuple(
        replace(turn, learned=False) if turn.role == "assistant" else turn for turn in turns
    )


def mask_of(value: object) -> bool | None:
    """What a mark says: whether to learn; None where it is neither 0 nor 1 (true nor false)."""
    if is_empty(value):
        return True
    key = value.strip().lower() if isinstance(value, str) else value
    return _MASK_VALUES.get(key) if isinstance(key, str | bool | int | float) else None


def unsupported(name: str, value: object) -> str | None:
    """Why a row with this column, or this field of a turn, would teach something wrong."""
    if is_empty(value):
        return None
    if name in CALLS:
        return None if value in ("[]", "{}") else _no_calls()
    if name.rstrip("s") in _MEDIA and isinstance(value, list | dict | bytes):
        return _no_media(name.rstrip("s"))
    return None


def _role(item: Mapping[str, object], place: str, dialect: Dialect) -> Role:
    name = item.get(dialect.role)
    role = dialect.roles.get(name) if isinstance(name, str) else None
    if role is not None:
        return role
    where = f"{place}.{dialect.role}"
    name = text_of({where: name} if dialect.role in item else {}, where)
    if name in _TOOL_ROLES:
        raise Unfit(where, f"{name!r}: {_no_calls()}")
    valid = ", ".join(dialect.roles)
    raise Unfit(
        where, say(f"unknown role {name!r}; valid: {valid}", f"未知角色 {name!r}；可用：{valid}")
    )


def _dialect(item: Mapping[str, object], usual: Dialect) -> Dialect:
    """The dialect that a turn is in: the one that it has more of, `usual` where that says nothing."""
    other = _other(usual)
    keys = [(form.role in item) + (form.content in item) for form in (usual, other)]
    return usual if keys[0] >= keys[1] else other


def _other(dialect: Dialect) -> Dialect:
    return CHAT if dialect is SHAREGPT else SHAREGPT


def _require_one_dialect(item: Mapping[str, object], place: str, dialect: Dialect) -> None:
    """Raise Unfit where a turn says its role or its content once more, and otherwise."""
    other = _other(dialect)
    roles = [form.roles.get(str(item.get(form.role))) for form in (dialect, other)]
    contents = [item.get(form.content) for form in (dialect, other)]
    for key, (own, again) in ((other.role, roles), (other.content, contents)):
        if not is_empty(item.get(key)) and own != again:
            raise Unfit(
                f"{place}.{key}",
                say("says otherwise than the turn's other fields", "与该轮的其他字段不一致"),
            )


def _learned(item: Mapping[str, object], place: str) -> bool:
    """What a turn's further fields say of it. Raises Unfit for one that can't be left out."""
    learned = True
    for key, value in item.items():
        where = f"{place}.{key}"
        if reason := unsupported(key, value):
            raise Unfit(where, reason)
        if key in MASKS:
            mark = mask_of(value)
            if mark is None:
                raise Unfit(
                    where,
                    say(
                        f"{value!r}: only 1 (learned) and 0 (context) are supported",
                        f"{value!r}：仅支持 1（学习）和 0（仅作上下文）",
                    ),
                )
            learned = learned and mark
    return learned


def _joined(parts: Sequence[object], place: str) -> str:
    """The text of content that is given in parts. Raises Unfit for a part that is no text."""
    texts = []
    for number, part in enumerate(parts):
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in TEXT_PARTS and isinstance(text, str):
            texts.append(text)
            _require_text_alone(part, f"{place}[{number}]")
            continue
        media = next((name for name in _MEDIA if name in str(kind)), None)
        if media:
            reason = _no_media(media)
        elif "tool" in str(kind) or "function" in str(kind):
            reason = _no_calls()
        else:
            found = repr(kind) if kind else kind_of(part)
            reason = say(
                f"{found}: a part of the content that is no text", f"{found}：不是文本的内容部分"
            )
        raise Unfit(f"{place}[{number}]", reason)
    return "".join(texts)


def _require_text_alone(part: object, place: str) -> None:
    """Raise Unfit for a text part with a field that can't be left out: images, tool calls."""
    if isinstance(part, dict) and len(part) > 2:
        for key, value in part.items():
            if reason := unsupported(key, value):
                raise Unfit(f"{place}.{key}", reason)


def _no_calls() -> str:
    return say(
        "tool calls can't be learned: leave the row out, or write the call into the text",
        "不支持学习工具调用：请删去该行，或把调用写进文本",
    )


def _no_media(kind: str) -> str:
    name, name_zh = {"image": ("an image", "图像"), "audio": ("audio", "音频")}.get(
        kind, ("a video", "视频")
    )
    return say(
        f"holds {name}; only text can be learned: leave the row out, or describe it in the text",
        f"含有{name_zh}；只能学习文本：请删去该行，或改用文字描述",
    )


def _check_order(turns: list[Turn], place: str) -> None:
    """Whether the last of `turns` may stand after those before it."""
    before = [turn.role for turn in turns[:-1]]
    match turns[-1].role:
        case "system" if before:
            raise Unfit(place, say("a system turn that is not first", "系统消息不在首位"))
        case "assistant" if "user" not in before:
            raise Unfit(
                place, say("an assistant turn before any user turn", "助手的回答之前没有用户消息")
            )
        case "assistant" if before[-1] == "assistant":
            raise Unfit(place, say("two assistant turns in a row", "连续两轮都是助手的回答"))

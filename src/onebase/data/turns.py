"""Reading the turns of a conversation: chat messages (`role`, `content`) and ShareGPT (`from`, `value`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onebase.data.cells import (
    InvalidValue,
    checked,
    is_empty,
    kind_of,
    text_of,
    turns_as_text,
    value_of,
)
from onebase.data.example import Role, Turn
from onebase.language import say


@dataclass(frozen=True)
class Dialect:
    """The keys of a turn, and the names of its roles."""

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
# Fields of a turn or columns of a row that mask it from the loss: 0 or false makes it context.
MASKS = ("weight", "loss", "train")
_MASK_VALUES: dict[object, bool] = {
    **dict.fromkeys((True, "1", "1.0", "true"), True),
    **dict.fromkeys((False, "0", "0.0", "false"), False),
}
TEXT_PARTS = (None, "text", "input_text", "output_text")
_MEDIA = ("image", "audio", "video")
CALLS = ("tool_calls", "function_call")  # columns or fields, also as text
_TOOL_ROLES = ("tool", "function", "function_call", "tool_call", "observation", "ipython")


def chat_of(
    values: Mapping[str, object], column: str, *, last: Role = "assistant"
) -> tuple[Turn, ...]:
    """The conversation in a column, which must end with a turn of `last`. One that ends with the
    assistant's is cut after its last answer in the loss. Raises InvalidValue.
    """
    turns = turns_of(value_of(values, column), column)
    require_last(turns, column, last)
    return tuple(turns if last == "user" else up_to_last_in_loss(turns, column))


def turns_of(items: object, column: str, before: Sequence[Turn] = ()) -> list[Turn]:
    """The turns in a list, after those in `before`. Raises InvalidValue for an item that is not a turn,
    and for an invalid order of roles.
    """
    if isinstance(items, str):
        as_text = items.lstrip().startswith("[")
        raise InvalidValue(
            column,
            turns_as_text()
            if as_text
            else say("text, expected a list of turns", "是文本，应为对话列表"),
        )
    if not isinstance(items, list):
        kind = kind_of(items)
        raise InvalidValue(
            column, say(f"{kind}, expected a list of turns", f"是{kind}，应为对话列表")
        )
    if not items:
        raise InvalidValue(column, say("empty", "为空"))
    usual = SHAREGPT if column == "conversations" else CHAT
    turns = list(before)
    for number, item in enumerate(items):
        place = f"{column}[{number}]"
        turns.append(turn_of(item, place, usual))
        _check_order(turns, place)
    return turns


def turn_of(item: object, place: str, usual: Dialect = CHAT) -> Turn:
    """One turn in either dialect. Raises InvalidValue."""
    if not isinstance(item, dict):
        raise InvalidValue(place, say("not an object", "不是对象"))
    dialect, in_loss = usual, True
    if len(item) != 2 or usual.content not in item or usual.role not in item:
        dialect = _dialect(item, usual)
        _require_one_dialect(item, place, dialect)
        in_loss = _in_loss(item, place)
    role = _role(item, place, dialect)
    content = item.get(dialect.content)
    where = f"{place}.{dialect.content}"
    if isinstance(content, list):
        return Turn(role, checked(_joined(content, where), where), in_loss)
    if not isinstance(content, str):
        value_of({where: content} if dialect.content in item else {}, where)
    return Turn(role, checked(content, where), in_loss)


def holds_turns(value: object) -> bool:
    """Whether a value is a turn or a list of turns rather than a text."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict)
    return isinstance(value, dict) and (CHAT.content in value or SHAREGPT.content in value)


def is_answer(items: object) -> bool:
    """Whether a list of turns begins with the assistant's: an answer without a question."""
    if not isinstance(items, list) or not items or not isinstance(items[0], dict):
        return False
    role = items[0].get("role", items[0].get("from"))
    return role in ("assistant", "gpt")


def require_last(turns: Sequence[Turn], column: str, last: Role) -> None:
    """Raise InvalidValue unless the last turn has the role `last`."""
    if turns[-1].role == last:
        return
    article = "an" if last == "assistant" else "a"
    expected = "助手的回答" if last == "assistant" else "用户的消息"
    raise InvalidValue(
        column, say(f"does not end with {article} {last} turn", f"最后一轮不是{expected}")
    )


def up_to_last_in_loss(turns: Sequence[Turn], column: str) -> Sequence[Turn]:
    """`turns` up to the last answer in the loss; later turns have no effect on the loss.

    Raises InvalidValue if every answer is masked from the loss.
    """
    if turns[-1].in_loss:
        return turns
    kept = list(turns)
    while kept and not (kept[-1].role == "assistant" and kept[-1].in_loss):
        kept.pop()
    if not kept:
        raise InvalidValue(
            column,
            say(
                "every answer is masked from the loss (weight 0)",
                "所有回答都不计入损失（权重为 0）",
            ),
        )
    return kept


def as_context(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """`turns`, all of them masked from the loss."""
    return tuple(
        replace(turn, in_loss=False) if turn.role == "assistant" else turn for turn in turns
    )


def mask_of(value: object) -> bool | None:
    """Whether a mask value puts an answer in the loss; None if it is neither 0 nor 1 (true nor false)."""
    if is_empty(value):
        return True
    key = value.strip().lower() if isinstance(value, str) else value
    return _MASK_VALUES.get(key) if isinstance(key, str | bool | int | float) else None


def unsupported(name: str, value: object) -> str | None:
    """Why a row with this column, or a turn with this field, can't be trained on; None if it can."""
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
        raise InvalidValue(where, f"{name!r}: {_no_calls()}")
    valid = ", ".join(dialect.roles)
    raise InvalidValue(
        where, say(f"unknown role {name!r}; valid: {valid}", f"未知角色 {name!r}；可用：{valid}")
    )


def _dialect(item: Mapping[str, object], usual: Dialect) -> Dialect:
    """The dialect that more of a turn's keys belong to; `usual` if both are equal."""
    other = _other(usual)
    keys = [(form.role in item) + (form.content in item) for form in (usual, other)]
    return usual if keys[0] >= keys[1] else other


def _other(dialect: Dialect) -> Dialect:
    return CHAT if dialect is SHAREGPT else SHAREGPT


def _require_one_dialect(item: Mapping[str, object], place: str, dialect: Dialect) -> None:
    """Raise InvalidValue if a turn has role or content in both dialects with different values."""
    other = _other(dialect)
    roles = [form.roles.get(str(item.get(form.role))) for form in (dialect, other)]
    contents = [item.get(form.content) for form in (dialect, other)]
    for key, (value, other_value) in ((other.role, roles), (other.content, contents)):
        if not is_empty(item.get(key)) and value != other_value:
            raise InvalidValue(
                f"{place}.{key}",
                say("contradicts the turn's other fields", "与该轮的其他字段不一致"),
            )


def _in_loss(item: Mapping[str, object], place: str) -> bool:
    """Whether a turn's mask fields put it in the loss. Raises InvalidValue for unsupported fields."""
    in_loss = True
    for key, value in item.items():
        where = f"{place}.{key}"
        if reason := unsupported(key, value):
            raise InvalidValue(where, reason)
        if key in MASKS:
            mark = mask_of(value)
            if mark is None:
                raise InvalidValue(
                    where,
                    say(
                        f"{value!r}: only 1 (in the loss) and 0 (context) are supported",
                        f"{value!r}：仅支持 1（计入损失）和 0（仅作上下文）",
                    ),
                )
            in_loss = in_loss and mark
    return in_loss


def _joined(parts: Sequence[object], place: str) -> str:
    """The text of content given in parts. Raises InvalidValue for a part that is not text."""
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
            shown = repr(kind) if kind else kind_of(part)
            reason = say(
                f"{shown}: a part of the content that is not text", f"{shown}：内容中有非文本部分"
            )
        raise InvalidValue(f"{place}[{number}]", reason)
    return "".join(texts)


def _require_text_alone(part: object, place: str) -> None:
    """Raise InvalidValue for a text part with a field that can't be ignored: images, tool calls."""
    if isinstance(part, dict) and len(part) > 2:
        for key, value in part.items():
            if reason := unsupported(key, value):
                raise InvalidValue(f"{place}.{key}", reason)


def _no_calls() -> str:
    return say(
        "tool calls are not supported: remove the row, or write the call into the text",
        "不支持工具调用：请删去该行，或把调用写进文本",
    )


def _no_media(kind: str) -> str:
    name, name_zh = {"image": ("an image", "图像"), "audio": ("audio", "音频")}.get(
        kind, ("a video", "视频")
    )
    return say(
        f"contains {name}, but only text is supported: remove the row, or describe it in the text",
        f"含有{name_zh}，但只支持文本：请删去该行，或改用文字描述",
    )


def _check_order(turns: list[Turn], place: str) -> None:
    """Raise InvalidValue if the last of `turns` can't follow those before it."""
    earlier = [turn.role for turn in turns[:-1]]
    match turns[-1].role:
        case "system" if earlier:
            raise InvalidValue(place, say("a system turn that is not first", "系统消息不在首位"))
        case "assistant" if "user" not in earlier:
            raise InvalidValue(
                place, say("an assistant turn before any user turn", "助手的回答之前没有用户消息")
            )
        case "assistant" if earlier[-1] == "assistant":
            raise InvalidValue(place, say("two assistant turns in a row", "连续两轮都是助手的回答"))

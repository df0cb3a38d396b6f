"""What a user must do elsewhere that onebase does by itself: ask as the task was trained."""

from onebase.adapters.store import StoredAdapter
from onebase.data.layout import PLAIN
from onebase.language import say


def prompting_notes(stored: StoredAdapter) -> list[str]:
    """How prompts for a task must look, where the chat template alone does not say it."""
    template = stored.record.get("template") or {}
    kind, instruction = template.get("kind", "chat"), template.get("instruction")
    if kind == "chat":
        if not instruction:
            return []
        return [
            say(
                f"It was trained with an instruction; give it as the system message: {instruction}",
                f"训练时带有指令，请将其作为系统消息给出：{instruction}",
            )
        ]
    layout = PLAIN if kind == "plain" else kind
    return [
        say(
            f"It was trained on prompts that are no chats, laid out as {layout!r}"
            + (f", the instruction being: {instruction}" if instruction else ""),
            f"训练所用的提示不是对话，其格式为 {layout!r}"
            + (f"，指令为：{instruction}" if instruction else ""),
        )
    ]

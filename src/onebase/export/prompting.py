"""Notes on how to write an exported task's prompts in other programs."""

from onebase.adapters.store import StoredAdapter
from onebase.data.layout import PLAIN
from onebase.language import say


def prompting_notes(stored: StoredAdapter) -> list[str]:
    """Notes on a task's prompt format, if it is not just the chat template."""
    template = stored.record.get("template") or {}
    kind, instruction = template.get("kind", "chat"), template.get("instruction")
    if kind == "chat":
        if not instruction:
            return []
        return [
            say(
                f"It was trained with an instruction. Give it as the system message: {instruction}",
                f"训练时带有指令，请将其作为系统消息给出：{instruction}",
            )
        ]
    layout = PLAIN if kind == "plain" else kind
    return [
        say(
            f"It was trained on plain prompts, not chats, in the format {layout!r}"
            + (f", with the instruction: {instruction}" if instruction else ""),
            f"训练所用的提示不是对话，格式为 {layout!r}"
            + (f"，指令为：{instruction}" if instruction else ""),
        )
    ]

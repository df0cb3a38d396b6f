"""Converts messages and texts to a task's prompt, as token ids.

An adapter was trained with its task's instruction, so the instruction is always part of the prompt. The
system messages of a request are appended to it after a blank line. If a client sends the instruction
itself, it is not repeated. (In training data, a row's own system message replaces the instruction.)
"""

import asyncio
from collections.abc import Sequence

from onebase.data.example import Turn
from onebase.data.template import Template
from onebase.data.virtual_tokens import with_placeholders, without_marks
from onebase.engine.pool import LoadedTask
from onebase.language import say
from onebase.serving.errors import bad_field

# Longer texts are tokenized in a thread, so that the event loop stays responsive.
_LONG = 4096  # characters


async def chat_prompt(task: LoadedTask, turns: Sequence[Turn], param: str) -> tuple[int, ...]:
    """The ids of a conversation that ends with a user's turn.

    Raises ApiError for an empty conversation, UsageError for one that the template does not support.
    """
    if not any(turn.content.strip() for turn in turns if turn.role == "user"):
        raise bad_field(
            param,
            say("No user message has text.", "没有包含文本的用户消息。"),
            say("End the messages with a user message.", "请以用户消息结尾。"),
        )
    turns = _with_instruction(task.template, turns, param)
    long = sum(len(turn.content) for turn in turns) > _LONG
    prompt = task.template.prompt
    return tuple(await asyncio.to_thread(prompt, turns) if long else prompt(turns))


async def text_prompt(task: LoadedTask, prompt: str | Sequence[int], param: str) -> tuple[int, ...]:
    """The ids of a text without a template, or the given ids.

    Raises ApiError for an empty text and for ids outside the vocabulary.
    """
    if isinstance(prompt, str):
        long = len(prompt) > _LONG
        ids = await asyncio.to_thread(_ids, task, prompt) if long else _ids(task, prompt)
    else:
        ids = list(prompt)
        check_ids(task, ids, param)
    if not ids:
        raise bad_field(
            param,
            say("The prompt is empty.", "提示内容为空。"),
            say("Send a text or token ids.", "请提供文本或词元编号。"),
        )
    return tuple(ids)


def _ids(task: LoadedTask, text: str) -> list[int]:
    ids: list[int] = task.base.tokenizer(text, verbose=False)["input_ids"]
    return ids


def check_ids(task: LoadedTask, ids: Sequence[int], param: str) -> None:
    """Raise ApiError for a token id outside the vocabulary."""
    vocabulary = task.base.shape.vocabulary
    invalid = next((token for token in ids if not 0 <= token < vocabulary), None)
    if invalid is not None:
        raise bad_field(
            param,
            say(f"There is no token {invalid}.", f"没有编号为 {invalid} 的词元。"),
            say(
                f"Token ids go from 0 to {vocabulary - 1}.",
                f"词元编号的范围是 0 到 {vocabulary - 1}。",
            ),
        )


def _with_instruction(template: Template, turns: Sequence[Turn], param: str) -> Sequence[Turn]:
    """`turns` with their leading system turns appended to the task's instruction."""
    count = next((index for index, turn in enumerate(turns) if turn.role != "system"), len(turns))
    system = "\n\n".join(turn.content for turn in turns[:count] if turn.content.strip())
    rest = turns[count:]
    instruction = template.instruction or ""
    if not system or system.strip() == without_marks(instruction).strip():
        return rest
    if not instruction:
        return [Turn("system", system), *rest]
    if with_placeholders(instruction) != instruction:
        raise bad_field(
            param,
            say(
                "This task has virtual tokens inside its instruction, so a system message cannot be "
                "added.",
                "该任务的指令中含有虚拟词元，不能再附加系统消息。",
            ),
            say("Leave out the system message.", "请去掉系统消息。"),
        )
    if not system.startswith(instruction):
        system = f"{instruction}\n\n{system}"
    return [Turn("system", system), *rest]

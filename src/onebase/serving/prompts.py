"""From messages and texts to the token ids that a task is asked with.

A task's instruction is what its adapter was trained under, so it stays: a request's own system
messages go behind it, after a blank line. Where a client sends the instruction itself, it is not
said twice. (In training data a row's own system message takes the instruction's place.)
"""

import asyncio
from collections.abc import Sequence

from onebase.data.example import Turn
from onebase.data.template import Template
from onebase.data.virtual_tokens import with_placeholders, without_marks
from onebase.engine.pool import LoadedTask
from onebase.language import say
from onebase.serving.errors import bad_field

# Longer texts are tokenized beside the event loop, which other clients wait for.
_LONG = 4096  # characters


async def chat_prompt(task: LoadedTask, turns: Sequence[Turn], param: str) -> tuple[int, ...]:
    """The ids for a conversation that ends with a user's turn.

    Raises ApiError for one that is empty, UsageError for one that the template refuses.
    """
    if not any(turn.content.strip() for turn in turns if turn.role == "user"):
        raise bad_field(
            param,
            say("No user message has text.", "没有包含文本的用户消息。"),
            say("End with one.", "请以用户消息结尾。"),
        )
    turns = _with_instruction(task.template, turns, param)
    long = sum(len(turn.content) for turn in turns) > _LONG
    prompt = task.template.prompt
    return tuple(await asyncio.to_thread(prompt, turns) if long else prompt(turns))


async def text_prompt(task: LoadedTask, prompt: str | Sequence[int], param: str) -> tuple[int, ...]:
    """The ids of a bare text, as its tokenizer reads it, or the ids given.

    Raises ApiError for an empty text and for ids beyond the vocabulary.
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
            say("Give a text or token ids.", "请给出文本或词元编号。"),
        )
    return tuple(ids)


def _ids(task: LoadedTask, text: str) -> list[int]:
    ids: list[int] = task.base.tokenizer(text, verbose=False)["input_ids"]
    return ids


def check_ids(task: LoadedTask, ids: Sequence[int], param: str) -> None:
    """Raise ApiError for a token id beyond the vocabulary."""
    vocabulary = task.base.shape.vocabulary
    wrong = next((number for number in ids if not 0 <= number < vocabulary), None)
    if wrong is not None:
        raise bad_field(
            param,
            say(f"There is no token {wrong}.", f"没有编号为 {wrong} 的词元。"),
            say(f"The vocabulary ends at {vocabulary - 1}.", f"词表最大编号为 {vocabulary - 1}。"),
        )


def _with_instruction(template: Template, turns: Sequence[Turn], param: str) -> Sequence[Turn]:
    """`turns` with their leading system turns joined behind the task's instruction."""
    count = next((at for at, turn in enumerate(turns) if turn.role != "system"), len(turns))
    own = "\n\n".join(turn.content for turn in turns[:count] if turn.content.strip())
    rest = turns[count:]
    instruction = template.instruction or ""
    if not own or own.strip() == without_marks(instruction).strip():
        return rest
    if not instruction:
        return [Turn("system", own), *rest]
    if with_placeholders(instruction) != instruction:
        raise bad_field(
            param,
            say(
                "This task has virtual tokens inside its instruction; no system message can stand "
                "beside it.",
                "该任务的指令中含有虚拟词元，不能再附加系统消息。",
            ),
            say("Leave the system message out.", "请去掉系统消息。"),
        )
    if own.startswith(instruction):
        return [Turn("system", own), *rest]
    return [Turn("system", f"{instruction}\n\n{own}"), *rest]

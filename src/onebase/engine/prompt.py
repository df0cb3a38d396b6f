"""From what a caller asks to a request: text to token ids, and whether it fits."""

from collections.abc import Sequence
from typing import cast

from onebase.adapters.contribution import require_combinable
from onebase.data.cells import holds_surrogate
from onebase.data.example import Turn
from onebase.engine.pool import LoadedTask
from onebase.engine.request import Request
from onebase.engine.sampling import Sampling
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.eos import end_tokens

Prompt = str | Sequence[Turn]
Ids = tuple[int, ...]


def request_for(
    tasks: tuple[LoadedTask, ...],
    prompt: Prompt | Sequence[int],
    sampling: Sampling,
    *,
    score_from: int | None = None,
    score_only: bool = False,
) -> Request:
    """A request for `tasks`, the first of which lays out the prompt.

    Raises UsageError for an empty prompt, for one that leaves no room in the base's context, and for
    tasks that can't answer together.
    """
    ids = prompt_ids(tasks, prompt)
    if score_from is not None and not 0 <= score_from < len(ids):
        raise UsageError(
            say(
                f"score_from is {score_from}; the prompt has {len(ids)} tokens.",
                f"score_from 为 {score_from}，而提示有 {len(ids)} 个词元。",
            ),
            say("Give the index of one of its tokens.", "请给出其中某个词元的下标。"),
        )
    most = sampling.max_tokens
    room = _room(tasks, len(ids), most)
    if room < (0 if score_only else 1):
        raise _too_long(tasks, len(ids))
    return Request(
        tasks,
        ids,
        sampling,
        limit=0 if score_only else min(most, room),
        ends=end_tokens(tasks[0].base, tasks[0].template),
        score_from=score_from,
    )


def prompt_ids(tasks: tuple[LoadedTask, ...], prompt: Prompt | Sequence[int]) -> Ids:
    """The token ids of a prompt. Raises UsageError where it is empty or has an id that the base does
    not know, and for tasks that can't answer together.
    """
    require_text(prompt)
    _require_together(tasks)
    if isinstance(prompt, str) or isinstance(prompt[0], Turn):
        return tuple(tasks[0].template.prompt(cast(Prompt, prompt)))
    ids = tuple(cast(Sequence[int], prompt))
    placed = next((t.contribution.placed for t in tasks if t.contribution.placed is not None), ())
    vocabulary = tasks[0].base.shape.vocabulary
    for token in ids:
        if not -len(placed) <= token < vocabulary:
            raise UsageError(
                say(f"{token} is not a token id of this base.", f"{token} 不是该基座的词元编号。"),
                say(
                    f"Token ids go from 0 to {vocabulary - 1}.",
                    f"词元编号的范围是 0 到 {vocabulary - 1}。",
                ),
            )
    return ids


def require_text(prompt: Prompt | Sequence[int]) -> None:
    """Raise UsageError for an empty prompt, and for one with half a character."""
    texts = (
        [prompt]
        if isinstance(prompt, str)
        else [turn.content for turn in prompt if isinstance(turn, Turn)]
    )
    if any(map(holds_surrogate, texts)):
        raise UsageError(
            say(
                "The prompt holds half a character (a lone surrogate).",
                "提示含有不完整的字符（孤立的代理项）。",
            ),
            say("Give whole characters, encoded as UTF-8.", "请提供完整的、UTF-8 编码的字符。"),
        )
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise UsageError(
            say("The prompt is empty.", "提示内容为空。"),
            say("Give a text to answer.", "请给出要回答的文本。"),
        )


def require_scorable(
    tasks: tuple[LoadedTask, ...], prompts: Sequence[Ids], answers: Sequence[Ids]
) -> None:
    """Raise UsageError where an answer behind a prompt does not fit into the base's context."""
    longest = max(len(prompt) for prompt in prompts) + max(len(answer) for answer in answers)
    if _room(tasks, longest, 0) < 0:
        raise _too_long(tasks, longest)


def _too_long(tasks: tuple[LoadedTask, ...], tokens: int) -> UsageError:
    context = tasks[0].base.context_text
    return UsageError(
        say(
            f"The prompt has {tokens} tokens, more than {context} leaves room for.",
            f"提示有 {tokens} 个词元，超出 {context}。",
        ),
        say("Shorten the prompt.", "请缩短提示。"),
    )


def _require_together(tasks: tuple[LoadedTask, ...]) -> None:
    """Raise UsageError for tasks that can't answer one request together."""
    if len({id(task.base) for task in tasks}) > 1:
        raise UsageError(
            say(
                f"{', '.join(task.task for task in tasks)} have different bases.",
                f"{'、'.join(task.task for task in tasks)} 的基座不同。",
            ),
            say("Name tasks of one base.", "请指定同一基座上的任务。"),
        )
    if len(tasks) > 1:
        require_combinable([task.contribution for task in tasks])


def _room(tasks: tuple[LoadedTask, ...], tokens: int, wanted: int) -> int:
    """How many tokens the base's context has room for behind a prompt; `wanted` where it names no
    context.
    """
    context = tasks[0].base.context
    if context is None:
        return wanted
    return context - sum(task.contribution.prefix_tokens for task in tasks) - tokens

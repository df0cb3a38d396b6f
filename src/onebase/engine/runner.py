"""What computes: the interface between the engine and the passes that it may run on."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from onebase.adapters.contribution import Contribution
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.pool import LoadedTask
from onebase.engine.request import Chunk, Request
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base


class Runner(Protocol):
    """One base with a KV cache. Not for two threads at once: the engine sees to that.

    `kernel` names everything that changes numbers ("transformers fp32").
    """

    base: Base
    kernel: str

    def check(self, contribution: Contribution) -> None:
        """Raise UsageError for what this pass can't apply."""

    def can_admit(self, request: Request) -> bool:
        """Whether there is room now for `request.max_length` ids. A runner that holds no request
        has room for any.
        """

    def admit(self, request: Request) -> None:
        """Give it a place in the KV cache and set `request.computed`: more than 0 where keys and
        values are reused, `request.reusable` at most.
        """

    def expect(self, chunk: Chunk) -> None:
        """Hear of a chunk of the next run. Requests admitted from here on may share the keys and values
        that it will compute.
        """

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """The logits that the chunks want, in their order, float32 [sum of `chunk.logits`,
        vocabulary]. The engine advances `request.computed` afterwards.
        """

    def release(self, request: Request) -> None:
        """Free its place, whatever it has come to. What is in it may stay for reuse."""

    def compile(self, contribution: Contribution) -> tuple[Tensor, Tensor]:
        """Keys and values of its leading virtual tokens, behind its prefix and with its deltas, each
        [layers, kv_heads, tokens, head_dim].
        """

    def forget(self, task: LoadedTask) -> None:
        """Free what is kept of a task that was unloaded and that no request uses any more."""

    def stats(self) -> dict[str, int]:
        """Numbers to watch: `cache_tokens` that requests hold, the `cache_capacity` in tokens,
        `cache_bytes` that are allocated; a runner may add others. Any thread may ask.
        """


def runner_for(base: Base, *, slots: int = 64) -> Runner:
    """The runner to use for a base: the lean pass where it applies, else the transformers modules.

    Raises UsageError for a base in w8a8 that only the modules can run.
    """
    # Imported late: it loads numba, which training has no use for.
    from onebase.engine.lean.runner import LeanRunner, supports

    if supports(base):
        return LeanRunner(base)
    if base.precision.name == "w8a8":
        kind = base.model.config.model_type
        raise UsageError(
            say(
                f"{base.name} is of type {kind}, for which there is no w8a8.",
                f"{base.name} 的类型为 {kind}，不支持 w8a8。",
            ),
            say("Use --precision fp32 or int8.", "请使用 --precision fp32 或 int8。"),
        )
    return GenericRunner(base, slots=slots)

"""The interface between the engine and its forward passes."""

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
    """Runs one base with a KV cache. Not thread-safe; the engine serializes the calls.

    `kernel` names everything that affects the numbers ("transformers fp32").
    """

    base: Base
    kernel: str

    def check(self, contribution: Contribution) -> None:
        """Raise UsageError for a contribution that this runner cannot apply."""

    def can_admit(self, request: Request) -> bool:
        """Whether the KV cache has room for `request.max_length` ids now. A runner without requests
        has room for any request.
        """

    def admit(self, request: Request) -> None:
        """Allocate KV cache for a request and set `request.computed`: the number of ids whose keys and
        values are reused, at most `request.reusable`.
        """

    def expect(self, chunk: Chunk) -> None:
        """Announce a chunk of the next run. Requests that are admitted afterwards may share the keys
        and values that it will compute.
        """

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """The requested logits of the chunks, in their order, float32 [sum of `chunk.logits`,
        vocabulary]. The caller advances `request.computed` afterwards.
        """

    def release(self, request: Request) -> None:
        """Free a request's KV cache, at any stage. Its contents may stay for reuse."""

    def compute_prompt_kv(self, contribution: Contribution) -> tuple[Tensor, Tensor]:
        """The keys and values of a contribution's leading virtual tokens, computed after its prefix and
        with its deltas, each [layers, kv_heads, tokens, head_dim].
        """

    def forget(self, task: LoadedTask) -> None:
        """Free the cached data of a task that is unloaded and that no request uses any more."""

    def stats(self) -> dict[str, int]:
        """The state of the KV cache: `cache_tokens` in use by requests, `cache_capacity` in tokens,
        `cache_bytes` allocated; a runner may add others. Thread-safe.
        """


def runner_for(base: Base, *, slots: int = 64) -> Runner:
    """The runner of a base: LeanRunner if it supports the base, else GenericRunner.

    Raises UsageError for a w8a8 base that LeanRunner does not support.
    """
    # Imported late: it loads numba, which training does not need.
    from onebase.engine.lean.runner import LeanRunner, supports

    if supports(base):
        return LeanRunner(base)
    if base.precision.name == "w8a8":
        kind = base.model.config.model_type
        raise UsageError(
            say(
                f"{base.name} is of type {kind}, which does not support w8a8.",
                f"{base.name} 的类型为 {kind}，不支持 w8a8。",
            ),
            say("Use --precision fp32 or int8.", "请使用 --precision fp32 或 int8。"),
        )
    return GenericRunner(base, slots=slots)

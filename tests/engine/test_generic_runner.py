"""The transformers pass as a runner: prompts in parts, places in the cache, what it holds on to."""

from collections.abc import Callable, Sequence

import pytest
import torch
from tests.engine.conftest import request_of, task_of
from torch import Tensor

from onebase.adapters.contribution import NOTHING
from onebase.adapters.methods import build_adapter
from onebase.engine.forward import run_pack
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.pack import Pack
from onebase.engine.pool import LoadedTask
from onebase.engine.prompt_kv import with_prompt_kv
from onebase.engine.request import Chunk, Request
from onebase.engine.sampling import Sampling
from onebase.model.base import Base

METHODS = ["lora", "prompt-tuning", "p-tuning-v2", "lora+p-tuning-v2", "lora+ia3"]
IDS = tuple(range(20, 51))
SAMPLING = Sampling(max_tokens=8)


def tasks(base: Base) -> list[LoadedTask]:
    """A task of each method and the bare base."""
    tasks = [task_of(base)]
    for seed, method in enumerate(METHODS):
        if "ia3" in method and base.model.config.model_type == "phi3":
            continue
        settings = {"layers": "top:2"} if method == "p-tuning-v2" else {}
        adapter = build_adapter(base, method, settings, init_text="hello, you", seed=seed)
        torch.manual_seed(seed)
        for parameter in adapter.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        tasks.append(task_of(base, with_prompt_kv(GenericRunner(base), adapter)))
    return tasks


def whole(task: LoadedTask, ids: Sequence[int]) -> Tensor:
    """The logits of every token, the text read in one pass."""
    pack = Pack({"it": task.contribution})
    node = pack.nodes[pack.add(None if task.contribution is NOTHING else "it", ids)]
    with torch.no_grad():
        return run_pack(task.base, pack, torch.arange(node.start, node.start + node.length))


def step(runner: GenericRunner, chunks: list[Chunk]) -> list[Tensor]:
    """The logits of each chunk; the requests are advanced, and decode what they are given."""
    logits = torch.split(runner.run(chunks), [chunk.logits for chunk in chunks])
    for chunk in chunks:
        chunk.request.computed += chunk.length
    return list(logits)


@pytest.mark.parametrize("cuts", [(1, 9, 21), (30, 1), (10, 10, 11)])
def test_a_prompt_in_parts_gives_what_it_gives_whole(
    cuts: tuple[int, ...], architecture: str, make_base: Callable[..., Base]
) -> None:
    """All logits of every part, and those of the tokens behind, beside requests that decode."""
    base = make_base(architecture)
    runner = GenericRunner(base)
    first = request_of(task_of(base), IDS[:7], SAMPLING)
    runner.admit(first)
    step(runner, [Chunk(first, 7, 1)])
    requests = [request_of(task, IDS, SAMPLING) for task in tasks(base)]
    logits_of: dict[Request, list[Tensor]] = {request: [] for request in requests}
    for request in requests:
        runner.admit(request)
    for cut in cuts:
        first.tokens.append(60 + len(first.tokens))
        chunks = [Chunk(first, 1, 1), *(Chunk(request, cut, cut) for request in requests)]
        for request, logits in zip(requests, step(runner, chunks)[1:], strict=True):
            logits_of[request].append(logits)
    for token in (70, 80):
        for request in (first, *requests):
            request.tokens.append(token)
        chunks = [Chunk(request, 1, 1) for request in (*requests, first)]
        for request, logits in zip(requests, step(runner, chunks), strict=False):
            logits_of[request].append(logits)
    for request in requests:
        expected = whole(request.tasks[0], (*IDS, 70, 80))
        torch.testing.assert_close(torch.cat(logits_of[request]), expected, atol=2e-5, rtol=0)


def test_rows_come_in_the_order_of_the_chunks(make_base: Callable[..., Base]) -> None:
    base = make_base()
    runner = GenericRunner(base)
    requests = [request_of(task_of(base), IDS[at : at + 9], SAMPLING) for at in range(4)]
    for request in requests:
        runner.admit(request)
    step(runner, [Chunk(request, 9, 1) for request in requests[:2]])
    for request in requests[:2]:
        request.tokens.append(99)
    chunks = [
        Chunk(requests[2], 9, 2),
        Chunk(requests[1], 1, 1),
        Chunk(requests[3], 4, 0),
        Chunk(requests[0], 1, 1),
    ]
    two, one, none, zero = step(runner, chunks)
    assert none.shape == (0, base.shape.vocabulary)
    torch.testing.assert_close(two, whole(task_of(base), IDS[2:11])[-2:], atol=1e-5, rtol=0)
    for logits, at in ((one, 1), (zero, 0)):
        expected = whole(task_of(base), (*IDS[at : at + 9], 99))[-1:]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_a_place_is_free_after_release_whatever_was_read(make_base: Callable[..., Base]) -> None:
    base = make_base()
    runner = GenericRunner(base, slots=3)
    requests = [request_of(task_of(base), IDS, SAMPLING) for _ in range(4)]
    for request in requests[:3]:
        assert runner.can_admit(request)
        runner.admit(request)
    assert not runner.can_admit(requests[3])
    step(runner, [Chunk(requests[0], 31, 1), Chunk(requests[1], 10, 0)])
    assert runner.stats()["cache_tokens"] == 41
    runner.release(requests[2])  # nothing read
    runner.release(requests[1])  # a part
    assert runner.can_admit(requests[3])
    assert runner.stats()["cache_tokens"] == 31
    runner.release(requests[0])
    assert set(runner.stats().values()) == {0}


def test_the_kernel_names_precision_and_device(make_base: Callable[..., Base]) -> None:
    assert GenericRunner(make_base()).kernel == "transformers fp32 cpu"

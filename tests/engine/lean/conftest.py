"""Sequences of several adapters through a LeanRunner, and the same through the generic pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import NOTHING, Contribution
from onebase.data.template import Template
from onebase.engine.forward import run_pack
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.lean.runner import LeanRunner
from onebase.engine.pack import Pack
from onebase.engine.pool import LoadedTask
from onebase.engine.prompt_kv import with_prompt_kv
from onebase.engine.request import Chunk, Request
from onebase.engine.sampling import Sampling
from onebase.model.base import Base

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Text:
    """Tokens to read, for an adapter or for the base."""

    adapter: str | None
    ids: tuple[int, ...]


def texts(adapters: Sequence[str | None], seed: int = 0, shortest: int = 5) -> list[Text]:
    """One text for each, of different lengths."""
    drawn = torch.Generator().manual_seed(seed)
    return [
        Text(
            adapter,
            tuple(torch.randint(3, 300, (shortest + 7 * at % 40,), generator=drawn).tolist()),
        )
        for at, adapter in enumerate(adapters)
    ]


class Reader:
    """Reads texts through a runner as requests do, and keeps every token's logits."""

    def __init__(self, base: Base, contributions: Mapping[str, Contribution], **settings: int):
        self.base = base
        self.runner = LeanRunner(base, cache_bytes=1 << 24, **settings)
        template = Template(base.tokenizer)
        self.tasks = {
            name: LoadedTask(name, 1, template, contribution, base, hash=name)
            for name, contribution in contributions.items()
        }
        self.bare = LoadedTask("base", 0, template, NOTHING, base)

    def request(self, text: Text) -> Request:
        """A request whose every token's logits are wanted."""
        task = self.bare if text.adapter is None else self.tasks[text.adapter]
        made = Request((task,), text.ids, Sampling(), limit=1, score_from=0)
        self.runner.admit(made)
        return made

    def read(
        self, many: Sequence[Text], sizes: Callable[[int], int] = lambda _: 1000
    ) -> list[Logits]:
        """The logits of every token of each text, in chunks of `sizes(step)` tokens, side by side."""
        requests = [self.request(text) for text in many]
        pieces: list[list[Logits]] = [[] for _ in many]
        step = 0
        while any(request.computed < len(request.prompt) for request in requests):
            running = [at for at, own in enumerate(requests) if own.computed < len(own.prompt)]
            chunks = []
            for at in running:
                left = len(requests[at].prompt) - requests[at].computed
                size = min(left, sizes(step))
                chunks.append(Chunk(requests[at], size, size))
                step += 1
            logits = self.runner.run(chunks).numpy()
            first = 0
            for at, chunk in zip(running, chunks, strict=True):
                pieces[at].append(logits[first : first + chunk.length].copy())
                first += chunk.length
                requests[at].computed += chunk.length
        for request in requests:
            self.runner.release(request)
        return [np.concatenate(own) for own in pieces]


def through_the_generic_pass(
    base: Base, contributions: Mapping[str, Contribution], many: Sequence[Text]
) -> list[Logits]:
    """The logits of every token of each text."""
    pack = Pack(contributions)
    nodes = [pack.add(text.adapter, text.ids) for text in many]
    with torch.inference_mode():
        logits = run_pack(base, pack, torch.arange(len(pack.ids))).numpy()
    return [logits[pack.nodes[node].start :][: pack.nodes[node].length] for node in nodes]


def served_by(base: Base, adapter: Adapter) -> Contribution:
    """What an adapter contributes when it answers, its virtual tokens run through the generic pass."""
    return with_prompt_kv(GenericRunner(base), adapter)


@pytest.fixture
def served(base: Base, adapters: Mapping[str, Adapter]) -> dict[str, Contribution]:
    """What every variant's adapter contributes when it answers."""
    return {name: served_by(base, adapter) for name, adapter in adapters.items()}

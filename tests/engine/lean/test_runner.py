"""The lean pass: equal to the generic pass, and bit for bit the same whatever else is computed."""

import sys
import threading
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine.conftest import Twin
from tests.engine.lean.conftest import (
    Logits,
    Reader,
    Text,
    served_by,
    texts,
    through_the_generic_pass,
)
from tests.engine.test_composite import METHODS, PLACED, shaken
from tests.engine.test_prefix_layers import VARIANTS

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import Contribution, Scaling
from onebase.adapters.methods import build_adapter
from onebase.engine.lean.runner import LeanRunner, supports
from onebase.engine.request import Chunk, Request
from onebase.engine.sampling import Sampling
from onebase.errors import UsageError
from onebase.model.base import Base
from onebase.model.precision import choose

TOLERANCE = 1e-4  # logits reach 5


def test_every_method_in_one_batch_as_the_generic_pass(
    base: Base, served: dict[str, Contribution]
) -> None:
    many = texts([*served, None, *served])
    expected = through_the_generic_pass(base, served, many)
    for ours, theirs in zip(Reader(base, served).read(many), expected, strict=True):
        assert np.abs(ours - theirs).max() < TOLERANCE


def test_every_method_as_peft(
    base: Base, adapters: Mapping[str, Adapter], served: dict[str, Contribution],
    twin_of: Callable[..., Twin],
) -> None:  # fmt: skip
    many = texts(list(served))
    for ours, text in zip(Reader(base, served).read(many), many, strict=True):
        assert text.adapter is not None
        twin = twin_of(adapters[text.adapter])
        with torch.inference_mode():
            logits = twin.model(input_ids=torch.tensor([text.ids])).logits[0, -len(text.ids) :]
        assert np.abs(ours - logits.numpy()).max() < TOLERANCE


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_a_row_is_the_same_alone_and_in_any_company(
    base: Base, served: dict[str, Contribution], precision: str
) -> None:
    base.hold_in(choose(precision, device="cpu", stored=torch.float32), "cpu")
    chance = Random(3)
    names = [chance.choice([*served, None]) for _ in range(24)]
    many = texts(names, seed=1)
    alone = [Reader(base, served, threads=1).read([text])[0] for text in many]
    for threads in (1, 2):
        for size in (1, 3, 16, 64):
            together = Reader(base, served, threads=threads).read(many, lambda _, n=size: n)
            for ours, theirs in zip(alone, together, strict=True):
                assert np.array_equal(ours, theirs), (threads, size)
        ragged = Reader(base, served, threads=threads)
        for ours, theirs in zip(
            alone, ragged.read(many, lambda _: chance.randint(1, 20)), strict=True
        ):
            assert np.array_equal(ours, theirs), threads


def test_w8a8_is_the_base_with_its_weights_in_8_bits(
    architecture: str, make_base: Callable[..., Base]
) -> None:
    quantized, plain = make_base(architecture), make_base(architecture)
    quantized.hold_in(choose("w8a8", device="cpu", stored=torch.float32), "cpu")
    with torch.no_grad():
        for name in quantized.shape.linears:
            restored = quantized.model.get_submodule(name).restored()
            plain.model.get_submodule(name).weight.copy_(restored)
        embedding = plain.model.get_input_embeddings()
        embedding.weight.copy_(restored_rows(quantized.model.get_input_embeddings()))
        head = plain.model.get_output_embeddings()
        head.weight.copy_(quantized.model.get_output_embeddings().restored())
    many = texts([None] * 4)
    for ours, theirs in zip(
        Reader(quantized, {}).read(many), through_the_generic_pass(plain, {}, many), strict=True
    ):
        assert 0 < np.abs(ours - theirs).max() < 3e-3  # what rounding activations adds


def restored_rows(embedding: Any) -> torch.Tensor:
    rows: torch.Tensor = embedding.weight.data * embedding.scale
    return rows


@pytest.mark.parametrize("method", list(METHODS))
def test_several_methods_in_one_adapter(base: Base, method: str) -> None:
    if "ia3" in method and base.model.config.model_type == "phi3":
        pytest.skip("IA3 is refused on Phi 3")
    served = {"it": served_by(base, shaken(base, method))}
    many = texts(["it", None, "it"])
    expected = through_the_generic_pass(base, served, many)
    for ours, theirs in zip(Reader(base, served).read(many), expected, strict=True):
        assert np.abs(ours - theirs).max() < TOLERANCE


def test_placed_tokens_and_prefixes_of_some_layers(base: Base) -> None:
    placed = shaken(base, "lora+p-tuning", leading=2, placed=3)
    served = {"placed": served_by(base, placed)}
    for name, (method, settings, _) in VARIANTS.items():
        served[name] = served_by(
            base, build_adapter(base, method, settings, init_text="hi", seed=2)
        )
    many = [
        Text("placed", tuple(PLACED)),
        *texts(list(VARIANTS)),
        Text("placed", tuple(PLACED[2:])),
    ]
    expected = through_the_generic_pass(base, served, many)
    for ours, theirs in zip(Reader(base, served).read(many), expected, strict=True):
        assert np.abs(ours - theirs).max() < TOLERANCE


@pytest.mark.parametrize("variant", ["prompt-tuning-text", "p-tuning-mlp"])
def test_compiled_prefix_is_that_of_the_generic_pass(
    base: Base, make_adapter: Callable[[str], Adapter], variant: str
) -> None:
    adapter = make_adapter(variant)
    with torch.no_grad():
        ours = LeanRunner(base, cache_bytes=1 << 22).compute_prompt_kv(adapter.contribution())
    expected = served_by(base, adapter).prefix
    assert expected is not None
    for part, theirs in zip(ours, expected, strict=True):
        assert part.shape == theirs.shape
        assert (part - theirs).abs().max() < 1e-5


def test_a_beginning_is_reused_bit_for_bit_and_by_its_adapter_alone(
    make_base: Callable[..., Base],
) -> None:
    base = make_base("qwen3")
    adapter = build_adapter(base, "lora", {"rank": 2}, init_text="hi", seed=2)
    served = {"one": served_by(base, adapter), "two": served_by(base, shaken(base, "lora+ia3"))}
    long = texts(["one"], seed=5, shortest=60)[0]
    whole = Reader(base, served).read([long])[0]
    reader = Reader(base, served)
    reader.read([Text("one", long.ids[:50])])
    for name, kept in (("one", 48), ("two", 0), (None, 0)):
        task = reader.bare if name is None else reader.tasks[name]
        request = Request((task,), long.ids, Sampling(), limit=1)
        reader.runner.admit(request)
        assert request.computed == kept
        if kept:
            rest = len(long.ids) - kept
            logits = reader.runner.run([Chunk(request, rest, rest)]).numpy()
            assert np.array_equal(logits, whole[kept:])
        reader.runner.release(request)


def shared_in_one_step(
    reader: Reader, many: list[Text], size: int
) -> tuple[list[Request], list[Logits]]:
    """Requests that come together, the first `size` tokens of each prompt read in one step: its logits."""
    requests, chunks = [], []
    for text in many:
        task = reader.bare if text.adapter is None else reader.tasks[text.adapter]
        request = Request((task,), text.ids, Sampling(), limit=1)
        reader.runner.admit(request)
        requests.append(request)
        length = min(size, len(text.ids)) - request.computed
        chunks.append(Chunk(request, length, length))
        reader.runner.expect(chunks[-1])
    logits = reader.runner.run(chunks)
    return requests, [part.numpy() for part in torch.split(logits, [one.length for one in chunks])]


@pytest.mark.parametrize("threads", [1, 2])
def test_requests_that_come_together_compute_their_common_beginning_once(
    make_base: Callable[..., Base], threads: int
) -> None:
    base = make_base("gemma3")
    adapters = {"one": shaken(base, "lora+ia3"), "two": shaken(base, "p-tuning-v2")}
    served = {name: served_by(base, adapter) for name, adapter in adapters.items()}
    common = texts(["one"], seed=5, shortest=300)[0].ids  # more than one group of rows
    ends = texts([None] * 4, seed=6, shortest=9)
    many = [
        Text(name, common[:cut] + ends[at].ids)
        for at, (name, cut) in enumerate([("one", 300), ("one", 300), ("two", 40), ("one", 37)])
    ]
    alone = [Reader(base, served).read([text])[0] for text in many]
    reader = Reader(base, served, threads=threads)
    requests, shared_logits = shared_in_one_step(reader, many, 1000)
    assert [request.computed for request in requests] == [0, 288, 0, 32]
    for request, expected, ours in zip(requests, alone, shared_logits, strict=True):
        assert np.array_equal(ours, expected[request.computed :])


def test_a_step_that_fails_leaves_no_keys_and_values_behind(
    make_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base()
    text = texts([None], seed=5, shortest=60)[0]
    whole = Reader(base, {}).read([text])[0]
    reader = Reader(base, {})
    with monkeypatch.context() as patch:
        patch.setattr(type(reader.runner), "_forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shared_in_one_step(reader, [text], 40)
    (failed,) = reader.runner._sequences
    reader.runner.release(failed)
    (request,), (shared_logits,) = shared_in_one_step(reader, [text], 1000)
    assert request.computed == 0
    assert np.array_equal(shared_logits, whole)


def test_inputs_scaled_for_one_of_several_readers_are_refused(
    make_base: Callable[..., Base],
) -> None:
    base = make_base()
    name = "model.layers.1.self_attn.k_proj"
    alone = Contribution(scalings={name: Scaling(torch.full((32,), 2.0), on_inputs=True)})
    with pytest.raises(UsageError, match="k_proj"):
        Reader(base, {"it": alone}).read(texts(["it"]))


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_other_precisions_keep_the_generic_pass(make_base: Callable[..., Base], kind: str) -> None:
    base = make_base()
    assert supports(base)
    base.hold_in(choose(kind, device="cpu", stored=torch.float32), "cpu")
    assert not supports(base)


def test_stats_may_be_asked_while_adapters_come_and_go(make_base: Callable[..., Base]) -> None:
    base = make_base()
    contribution = served_by(base, build_adapter(base, "lora", {"rank": 2}, init_text="x", seed=1))
    reader = Reader(base, {f"task{number}": contribution for number in range(40)})
    failures: list[RuntimeError] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            try:
                reader.runner.stats()
            except RuntimeError as error:
                failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        observer = threading.Thread(target=watch)
        observer.start()
        for _ in range(20):
            for name, task in reader.tasks.items():
                reader.runner.release(reader.request(Text(name, (5, 6, 7))))
                if name.endswith("9"):
                    reader.runner.forget(task)
        done.set()
        observer.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures

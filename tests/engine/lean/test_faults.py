"""One request, adapter or interruption that goes wrong leaves the others as they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine.lean.conftest import Reader, Text, served_by, texts
from tests.engine.test_composite import shaken

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import Contribution, LowRank
from onebase.adapters.ia3 import Ia3
from onebase.adapters.methods import build_adapter
from onebase.data.template import Template
from onebase.engine.engine import Engine
from onebase.engine.lean.base_cache import CachedModel
from onebase.engine.lean.quality import load_for_answering
from onebase.engine.lean.team import Team
from onebase.engine.request import Request
from onebase.engine.sampling import Sampling
from onebase.errors import OnebaseError, UsageError
from onebase.model.base import Base
from onebase.model.precision import choose
from onebase.model.w8a8 import folder


def in_w8a8(base: Base) -> Base:
    base.hold_in(choose("w8a8", device="cpu", stored=torch.float32), "cpu")
    return base


def drained(engine: Engine, requests: list[Request]) -> list[str | None]:
    """How each request ended."""
    while not engine.idle:
        engine.step()
    return [request.finish_reason for request in requests]


def overflowing(base: Base) -> Contribution:
    """Finite weights whose values overflow, and with them what attends to them."""
    inputs, outputs = base.shape.linears["model.layers.0.self_attn.v_proj"]
    a, b = torch.full((1, inputs), 3e38), torch.full((outputs, 1), 3e38)
    return Contribution(deltas={"model.layers.0.self_attn.v_proj": LowRank(a, b, 1.0)})


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_what_another_left_in_a_block_is_not_read(
    make_base: Callable[..., Base], precision: str
) -> None:
    base = make_base() if precision == "fp32" else in_w8a8(make_base())
    text = texts([None], seed=3, shortest=21)[0]
    whole = Reader(base, {}).read([text])[0]
    reader = Reader(base, {"bad": overflowing(base)})
    assert not np.isfinite(reader.read([Text("bad", text.ids)])[0]).all()
    reader.runner._pool.clear()  # its blocks are free, and the next to be taken
    assert np.array_equal(reader.read([text])[0], whole)


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
@pytest.mark.parametrize("scored", [False, True])
def test_logits_that_are_not_finite_end_their_own_request(
    make_base: Callable[..., Base], precision: str, scored: bool
) -> None:
    base = make_base() if precision == "fp32" else in_w8a8(make_base())
    engine = Engine(base)
    (alone,) = engine.generate([("base", "hello")], Sampling(max_tokens=6))
    adapter = build_adapter(make_base(), "lora", {"rank": 1}, init_text="", seed=0)
    for parameter in adapter.parameters():
        parameter.data.fill_(3e38)
    engine.tasks.load("bad", adapter, Template(base.tokenizer))
    requests = [engine.add_request("base", "hello", Sampling(max_tokens=6))]
    requests.append(
        engine.add_request("bad", "hello", score_from=1 if scored else None, score_only=scored)
    )
    good, bad = drained(engine, requests)
    assert (good, bad) == ("length", "error")
    assert "finite" in requests[1].error
    assert requests[0].text.strip() == alone.text


def test_a_prompt_that_is_only_read_may_be_known_already(make_base: Callable[..., Base]) -> None:
    engine = Engine(make_base())
    ids = list(range(3, 20))  # a block and one
    other = engine.add_request("base", "hello", Sampling(max_tokens=8))
    requests = [engine.add_request("base", ids, score_only=True) for _ in range(2)]
    assert drained(engine, [other, *requests]) == ["length", "length", "length"]


def test_an_adapter_that_cannot_be_applied_is_refused_when_it_is_loaded(
    make_base: Callable[..., Base],
) -> None:
    base = make_base()
    engine = Engine(base)
    adapter = Adapter("ia3", {}, ia3=Ia3({"model.layers.1.mlp.gate_proj": (32, True)}))
    with pytest.raises(UsageError, match="gate_proj"):
        engine.tasks.load("bad", adapter, Template(base.tokenizer))
    assert "bad" not in engine.tasks


def test_sampling_that_cannot_be_done_is_refused_before_anything_runs(
    make_base: Callable[..., Base],
) -> None:
    engine = Engine(make_base())
    running = engine.add_request("base", "hello", Sampling(max_tokens=8))
    with pytest.raises(UsageError, match="1000000"):
        engine.generate([("base", "a")] * 4, Sampling(logit_bias={10**6: 1.0}))
    assert engine.generate([("base", "a")], Sampling(max_tokens=2))[0].tokens == 2
    assert drained(engine, [running]) == ["length"]


def test_a_name_answers_while_its_task_is_replaced(make_base: Callable[..., Base]) -> None:
    base = make_base()
    engine = Engine(base)
    seen = []
    removed = engine.tasks._on_removed

    def look(task: Any) -> None:
        seen.append(engine.tasks["t"] is not task)
        removed(task)

    engine.tasks._on_removed = look
    for seed in range(2):
        adapter = build_adapter(base, "lora", {}, init_text="", seed=seed)
        engine.tasks.load("t", adapter, Template(base.tokenizer))
    assert seen == [True]


def test_an_ended_request_of_a_base_that_left_brings_nothing_back(
    make_base: Callable[..., Base],
) -> None:
    engine = Engine(make_base())
    own = make_base(seed=1)
    engine.tasks.load_full("full", own, Template(own.tokenizer))
    request = engine.add_request("full", "hello", Sampling(max_tokens=2))
    drained(engine, [request])
    engine.unload("full")
    assert own not in engine._batches
    engine.abort(request)
    assert own not in engine._batches


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("thread", [0, 1])
def test_a_team_whose_work_is_interrupted_goes_on(error: type[BaseException], thread: int) -> None:
    team = Team(3, 1)
    done: list[int] = []

    def broken(own: int, _: int) -> None:
        if own == thread:
            raise error
        done.append(own)

    for _ in range(3):
        done.clear()
        with pytest.raises(error):
            team.run(broken)
        assert len(done) == 2
        done.clear()
        team.run(lambda own, _: done.append(own))
        assert sorted(done) == [0, 1, 2]


def saved(base: Base, path: Path) -> str:
    base.model.save_pretrained(path)
    base.tokenizer.save_pretrained(path)
    return str(path)


def embedded(base: Base, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return base.embedding(torch.tensor(ids))


def test_bases_that_differ_in_one_row_are_not_confused(
    make_base: Callable[..., Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "cache"))
    other = make_base()
    other.embedding.weight.data[1] += 1
    names = [saved(make_base(), tmp_path / "a"), saved(other, tmp_path / "b")]
    for _ in range(2):
        first, second = (load_for_answering(name, "w8a8")[0] for name in names)
        assert not torch.equal(embedded(first, [1]), embedded(second, [1]))


def test_a_tied_base_and_its_untied_copy(
    make_base: Callable[..., Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "cache"))
    untied = make_base()
    untied.model.get_output_embeddings().weight.data.copy_(untied.embedding.weight.data)
    saved(untied, tmp_path / "untied")
    saved(untied, tmp_path / "tied")
    config = tmp_path / "tied" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**settings, "tie_word_embeddings": True}), encoding="utf-8")
    answers = []
    for _ in range(3):
        for name in ("tied", "untied"):
            base, _ = load_for_answering(str(tmp_path / name), "w8a8")
            answers.append(Engine(base).generate([("base", "hello")], Sampling(max_tokens=6))[0])
    assert len({answer.text for answer in answers}) == 1


def test_a_part_of_the_rounded_weights_is_not_enough(
    make_base: Callable[..., Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "cache"))
    name = saved(make_base(), tmp_path / "base")
    load_for_answering(name, "w8a8")
    (file,) = folder().glob("[!b]*.safetensors")
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    kept = {key: tensor for key, tensor in tensors.items() if "layers.0" not in key}
    save_file(kept, file, metadata={"form": "2"})
    base, _ = load_for_answering(name, "w8a8")
    assert not isinstance(base.model, CachedModel)
    base, _ = load_for_answering(name, "w8a8")
    assert isinstance(base.model, CachedModel)


def test_files_that_change_while_they_are_read_are_not_kept(
    make_base: Callable[..., Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "cache"))
    name = saved(make_base(), tmp_path / "base")
    load = Base.load

    def loaded(*given: Any, **settings: Any) -> Base:
        base = load(*given, **settings)
        saved(make_base(seed=1), tmp_path / "base")
        return base

    with monkeypatch.context() as patch:
        patch.setattr(Base, "load", loaded)
        load_for_answering(name, "w8a8")
    assert list(folder().glob("base-*")) == []
    base, _ = load_for_answering(name, "w8a8")
    rows = embedded(make_base(seed=1), list(range(300)))
    half_steps = rows.abs().amax(1, keepdim=True) / 254
    assert ((embedded(base, list(range(300))) - rows).abs() <= half_steps + 1e-6).all()


def test_a_compiled_prefix_is_not_that_of_a_merged_base(make_base: Callable[..., Base]) -> None:
    plain, merged = make_base(), make_base()
    merged.model.get_submodule("model.layers.0.mlp.up_proj").weight.data *= 1.5
    assert merged.fingerprint == plain.fingerprint
    assert merged.content != plain.content


def test_shaken_adapters_are_finite(make_base: Callable[..., Base]) -> None:
    """What the other tests of this file take for sound is."""
    base = make_base()
    served = served_by(base, shaken(base, "lora+ia3"))
    (found,) = Reader(base, {"it": served}).read(texts(["it"]))
    assert np.isfinite(found).all()
    with pytest.raises(OnebaseError, match="'it'"):
        Engine(base).tasks["it"]

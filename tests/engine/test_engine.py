"""The engine's own promises: names, bases, scores, and adapters that come and go."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.adapters.adapter import Adapter
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import save_adapter
from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.data.example import Turn
from onebase.data.template import Template
from onebase.engine.classification import SCORING_TOKENS
from onebase.engine.engine import Engine
from onebase.engine.forward import run_pack
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.pack import Pack
from onebase.engine.prompt_kv import with_prompt_kv
from onebase.engine.sampling import Sampling
from onebase.errors import CorruptFileError, UsageError
from onebase.model.base import Base

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "prompt-tuning": {"virtual_tokens": 9},
    "p-tuning": {"virtual_tokens": 5, "hidden": 8},
    "p-tuning-v2": {"virtual_tokens": 10},
}
LABELS = ["parcel", "hello", "the parcel is on its way"]


def shaken(base: Base, method: str, seed: int = 0) -> Adapter:
    adapter = build_adapter(base, method, METHODS[method], init_text="hello, you", seed=seed)
    torch.manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return adapter


def stored(base: Base, folder: Path, task: str, method: str, **more: Any) -> StoredAdapter:
    adapter = shaken(base, method, len(task))
    template = Template(base.tokenizer, instruction=f"{task}.")
    record = {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "method": method,
        "template": template.config(),
        **more,
    }
    store = AdapterStore(Workspace(folder))
    return store.add(task, lambda path: save_adapter(adapter, path, base), record)


@pytest.mark.parametrize("call", ["generate", "classify", "unload"])
def test_an_unknown_task_names_the_valid_ones(
    call: str, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    engine = Engine(base, [stored(base, tmp_path, "support", "lora")])
    calls: dict[str, Callable[[], Any]] = {
        "generate": lambda: engine.generate([("base", "hello"), ("suport", "hello")]),
        "classify": lambda: engine.classify("suport", ["hello"], LABELS),
        "unload": lambda: engine.tasks.unload("suport"),
    }
    with pytest.raises(UsageError, match="suport") as caught:
        calls[call]()
    assert "'support'" in caught.value.remedy
    assert ("base" in caught.value.remedy) == (call != "unload")


def test_the_base_cant_be_unloaded(make_base: Callable[..., Base]) -> None:
    with pytest.raises(UsageError, match="base"):
        Engine(make_base()).tasks.unload("base")


def test_an_adapter_of_another_base_is_refused(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    adapter = stored(make_base(seed=0), tmp_path, "support", "lora")
    assert "support" in Engine(make_base(seed=0), [adapter]).tasks
    engine = Engine(make_base(seed=1))  # the same sizes, other weights
    with pytest.raises(UsageError, match=r"tiny-llama have changed since support@1"):
        engine.load(adapter)
    assert list(engine.tasks) == ["base"]


def test_a_damaged_adapter_is_refused_and_nothing_loaded(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    adapter = stored(base, tmp_path, "support", "p-tuning-v2")
    (adapter.path / "adapter_model.safetensors").write_bytes(b"\x08\x00")
    engine = Engine(base)
    with pytest.raises(CorruptFileError, match="safetensors"):
        engine.load(adapter)
    assert list(engine.tasks) == ["base"]


@pytest.mark.parametrize("prompt", ["", "  \n\t", []])
def test_an_empty_prompt_is_refused(prompt: Any, make_base: Callable[..., Base]) -> None:
    engine = Engine(make_base())
    with pytest.raises(UsageError, match="prompt is empty"):
        engine.generate([("base", "hello"), ("base", prompt)])
    if isinstance(prompt, str):
        with pytest.raises(UsageError, match="prompt is empty"):
            engine.classify("base", ["hello", prompt], LABELS)


def test_a_conversation_is_a_prompt(make_base: Callable[..., Base]) -> None:
    engine = Engine(make_base())
    turns = [Turn("user", "hello"), Turn("assistant", "how are you"), Turn("user", "today")]
    answers = engine.generate([("base", turns), ("base", "today")], Sampling(max_tokens=6))
    assert "how are you" in answers[0].prompt
    assert answers[0].prompt != answers[1].prompt
    with pytest.raises(UsageError, match="user"):
        engine.generate([("base", turns[:2])])


def test_nothing_asked_gives_nothing(make_base: Callable[..., Base]) -> None:
    engine = Engine(make_base())
    assert engine.generate([]) == []
    assert engine.classify("base", [], LABELS) == []


@pytest.mark.parametrize("method", [*METHODS, None])
def test_a_labels_score_is_the_sum_of_its_tokens_logprobs(
    method: str | None,
    architecture: str,
    make_base: Callable[..., Base],
    record_property: Callable[[str, object], None],
) -> None:
    base = make_base(architecture)
    engine, name, contributions = Engine(base), "base", {}
    template = Template(base.tokenizer, instruction="Sort it.")
    if method is not None:
        name, adapter = "sort", shaken(base, method)
        engine.tasks.load(name, adapter, template, labels=tuple(LABELS))
        contributions = {name: adapter.contribution()}  # not compiled
    else:
        template = Template(base.tokenizer)
    texts = ["where is the parcel?", "hello today, the parcel is late", "x"]
    largest = 0.0
    results = engine.classify(name, texts, LABELS if method is None else None)
    for text, scores in zip(texts, results, strict=True):
        assert [s.logprob for s in scores] == sorted([s.logprob for s in scores], reverse=True)
        assert {s.label for s in scores} == set(LABELS)
        assert sum(s.probability for s in scores) == pytest.approx(1, abs=1e-12)
        for score in scores:
            prompt, answer = template.prompt(text), template.answer_ids(score.label)
            assert answer[-1] == base.tokenizer.eos_token_id
            pack = Pack(contributions)
            node = pack.nodes[pack.add(None if method is None else name, prompt + answer)]
            rows = torch.arange(node.start, node.start + node.length)
            with torch.no_grad():
                logprobs = run_pack(base, pack, rows).log_softmax(-1)
            by_hand = sum(float(logprobs[len(prompt) - 1 + i, t]) for i, t in enumerate(answer))
            largest = max(largest, abs(by_hand - score.logprob))
        shares = torch.tensor([s.logprob for s in scores], dtype=torch.float64).softmax(0)
        assert [s.probability for s in scores] == pytest.approx(shares.tolist())
    assert largest < 2e-4
    record_property("logprob", largest)


def test_scores_dont_depend_on_how_many_texts_are_asked(make_base: Callable[..., Base]) -> None:
    base = make_base()
    engine = Engine(base)
    engine.tasks.load("sort", shaken(base, "prompt-tuning"), Template(base.tokenizer))
    texts = [f"hello {'today ' * (i % 7)}{i}" for i in range(60)]
    tokens = sum(len(engine.tasks["sort"].template.prompt(text)) for text in texts)
    assert tokens * len(LABELS) > 2 * SCORING_TOKENS  # several passes
    together = engine.classify("sort", texts, LABELS)
    for text, scores in list(zip(texts, together, strict=True))[::9]:
        alone = engine.classify("sort", [text], LABELS)[0]
        assert [s.label for s in alone] == [s.label for s in scores]
        assert [s.logprob for s in alone] == pytest.approx([s.logprob for s in scores], abs=1e-4)


def test_a_task_without_labels_asks_for_them(make_base: Callable[..., Base]) -> None:
    with pytest.raises(UsageError, match="no labels"):
        Engine(make_base()).classify("base", ["hello"])


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning"])
def test_compiled_virtual_tokens_give_the_same_logits(
    method: str,
    architecture: str,
    make_base: Callable[..., Base],
    record_property: Callable[[str, object], None],
) -> None:
    base = make_base(architecture)
    adapter = shaken(base, method)
    served = with_prompt_kv(GenericRunner(base), adapter)
    assert served.virtual is None
    assert served.prefix_tokens == METHODS[method]["virtual_tokens"]
    logits = []
    for contribution in (adapter.contribution(), served):
        pack = Pack({"t": contribution})
        node = pack.nodes[pack.add("t", list(range(20, 40)))]
        with torch.no_grad():
            logits.append(run_pack(base, pack, torch.arange(node.start, node.start + node.length)))
    torch.testing.assert_close(logits[0], logits[1], atol=2e-5, rtol=0)
    record_property("logits", float((logits[0] - logits[1]).abs().max()))


def test_all_three_parts_together_compile(
    architecture: str, make_base: Callable[..., Base]
) -> None:
    """Deltas act on the virtual tokens, which stand behind the prefix."""
    base = make_base(architecture)
    parts = {method: shaken(base, method, 3) for method in METHODS}
    adapter = Adapter(
        "all",
        {},
        lora=parts["lora"].lora,
        prompt=parts["prompt-tuning"].prompt,
        prefix=parts["p-tuning-v2"].prefix,
    )
    served = with_prompt_kv(GenericRunner(base), adapter)
    assert served.prefix_tokens == 19
    logits = []
    for contribution in (adapter.contribution(), served):
        pack = Pack({"t": contribution})
        node = pack.nodes[pack.add("t", list(range(20, 40)))]
        with torch.no_grad():
            logits.append(run_pack(base, pack, torch.arange(node.start, len(pack.ids))))
    torch.testing.assert_close(logits[0], logits[1], atol=2e-5, rtol=0)


def test_adapters_come_and_go_while_the_engine_answers(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    base, sampling = make_base(), Sampling(max_tokens=10)
    engine = Engine(base, [stored(base, tmp_path, "keep", "lora")])
    kept, bare = engine.generate([("keep", "hello"), ("base", "hello")], sampling)

    first = stored(base, tmp_path / "a", "other", "prompt-tuning")
    engine.load(first)
    answers = engine.generate([("other", "hello"), ("keep", "hello")], sampling)
    assert answers[1].text == kept.text
    assert (answers[0].task, answers[0].version) == ("other", 1)
    one = answers[0].text

    stored(base, tmp_path / "a", "other", "p-tuning-v2")
    store = AdapterStore(Workspace(tmp_path / "a"))
    engine.load(store.get("other"))  # version 2 takes the name
    engine.load(first, name="other@1")
    both = [("other", "hello"), ("other@1", "hello"), ("keep", "hello"), ("base", "hello")]
    answers = engine.generate(both, sampling)
    assert [(a.task, a.version) for a in answers[:2]] == [("other", 2), ("other", 1)]
    assert answers[1].text == one != answers[0].text
    assert [a.text for a in answers[2:]] == [kept.text, bare.text]

    engine.tasks.unload("other")
    assert engine.generate([("other@1", "hello")], sampling)[0].text == one
    with pytest.raises(UsageError, match=r"'other'.*other@1"):
        engine.generate([("other", "hello")], sampling)


def test_a_request_keeps_the_adapter_it_began_with(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    base, sampling = make_base(), Sampling(max_tokens=10)
    engine = Engine(base, [stored(base, tmp_path, "t", "lora")], slots=2)  # the third waits
    expected = engine.generate([("t", "hello")], sampling)[0].text
    requests = [engine.add_request("t", "hello", sampling) for _ in range(3)]
    engine.step()
    assert [request.computed > 0 for request in requests] == [True, True, False]
    engine.tasks.load("t", shaken(base, "p-tuning-v2", 9), Template(base.tokenizer))
    engine.tasks.unload("t")
    while not engine.idle:
        engine.step()
    assert [request.text.strip() for request in requests] == [expected] * 3


def test_the_record_of_the_store_is_what_the_engine_reads(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    adapter = stored(base, tmp_path, "sort", "p-tuning", labels=["a", "b"])
    record = json.loads((adapter.path / "onebase.json").read_text(encoding="utf-8"))
    engine = Engine(base, [adapter])
    task = engine.tasks["sort"]
    assert task.labels == ("a", "b")
    assert task.template.config() == record["template"]
    (scores,) = engine.classify("sort", ["x"])
    assert sorted(score.label for score in scores) == ["a", "b"]

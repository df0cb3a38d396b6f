"""Which base and precision a task answers with; a full task is a base itself, tokenizer and all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.adapters.full import save_full, trainable_copy
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import save_adapter
from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.data.template import Template
from onebase.engine.engine import Engine
from onebase.engine.sampling import Sampling
from onebase.engine.task_bases import BaseChoice, BaseOptions
from onebase.errors import UsageError
from onebase.model.base import Base

SAMPLING = Sampling(max_tokens=12)


def recorded(task: str, **record: Any) -> StoredAdapter:
    return StoredAdapter(task, 1, Path("/ws") / task, True, record)


LA = recorded("la", base="acme/a", method="lora", precision="fp32")
NA = recorded("na", base="acme/a", method="qlora", precision="nf4:bf16")
IA = recorded("ia", base="acme/a", method="lora", precision="int8:fp32")
LB = recorded("lb", base="acme/b", method="lora", precision="fp32")
FA = recorded("fa", base="acme/a", method="full", precision="fp32")


@pytest.mark.parametrize(
    ("adapter", "options", "choice"),
    [
        (LA, (None, None), ("acme/a", None)),
        (LA, (None, "auto"), ("acme/a", "auto")),
        (NA, (None, None), ("acme/a", "nf4:bf16")),
        (IA, (None, "auto"), ("acme/a", "int8:fp32")),
        (NA, (None, "fp32"), ("acme/a", "fp32")),
        (NA, ("/moved/a", None), ("/moved/a", "nf4:bf16")),
        (FA, (None, None), ("/ws/fa", None)),
        (FA, ("/moved/a", "auto"), ("/ws/fa", "auto")),
        (recorded("old"), (None, None), ("smollm2-135m", None)),
    ],
)
def test_what_a_task_answers_on(
    adapter: StoredAdapter, options: tuple[str | None, str | None], choice: tuple[str, str | None]
) -> None:
    assert BaseOptions(*options).of_task(adapter) == BaseChoice(*choice)


@pytest.mark.parametrize(
    ("beside", "options", "choice"),
    [
        ([], (None, None), ("smollm2-135m", None)),
        ([LA], (None, "auto"), ("acme/a", "auto")),
        ([FA], (None, None), ("acme/a", None)),  # what it came from
        ([NA, NA], (None, "auto"), ("acme/a", "nf4:bf16")),
        ([NA, LA], (None, None), ("acme/a", None)),
        ([NA, IA], (None, "auto"), ("acme/a", "auto")),
        ([LA, LB], ("acme/c", "int8"), ("acme/c", "int8")),
    ],
)
def test_what_base_is_beside_tasks(
    beside: list[StoredAdapter],
    options: tuple[str | None, str | None],
    choice: tuple[str, str | None],
) -> None:
    assert BaseOptions(*options).of_base(beside) == BaseChoice(*choice)


def test_base_is_not_guessed_among_several() -> None:
    with pytest.raises(UsageError, match="acme/a, acme/b") as caught:
        BaseOptions().of_base([LB, LA, FA][::-1])
    assert "--base" in caught.value.remedy


@pytest.fixture
def whole(tmp_path: Path, unlike_folder: Path) -> StoredAdapter:
    """A task of full fine-tuning that came from another base than `make_base` makes."""
    base = Base.load(str(unlike_folder), device="cpu")
    copy = trainable_copy(base)
    torch.manual_seed(3)
    for parameter in copy.model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    record = {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "method": "full",
        "labels": ["Monday", "Tuesday", "lamp"],
        "template": Template(base.tokenizer, instruction="Say it.").config(),
    }
    store = AdapterStore(Workspace(tmp_path))
    return store.add("whole", lambda folder: save_full(copy, folder), record)


@pytest.mark.parametrize("beside", ["another base", "an adapter of it", "no base"])
def test_a_full_task_answers_by_its_own_template_and_tokenizer(
    beside: str, tmp_path: Path, whole: StoredAdapter, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    engine = Engine() if beside == "no base" else Engine(base)
    if beside == "an adapter of it":
        adapter = build_adapter(base, "lora", {"rank": 2}, init_text="", seed=0)
        record = {"base_fingerprint": base.fingerprint, "method": "lora"}
        store = AdapterStore(Workspace(tmp_path))
        engine.load(store.add("light", lambda folder: save_adapter(adapter, folder, base), record))
    engine.load(whole)
    (answer,) = engine.generate([("whole", "Is every lamp broken?")], SAMPLING)
    assert (
        answer.prompt == "(system) Say it.<|im_end|>(user) Is every lamp broken?<|im_end|>(model) "
    )

    own = Base.load(str(whole.path), device="cpu")
    alone = Engine(own)
    alone.tasks.load_full("whole", own, Template(own.tokenizer, instruction="Say it."))
    (expected,) = alone.generate([("whole", "Is every lamp broken?")], SAMPLING)
    assert (answer.text, answer.tokens) == (expected.text, expected.tokens)
    labels = ["Monday", "Tuesday", "lamp"]
    assert engine.classify("whole", ["When?"]) == alone.classify("whole", ["When?"], labels)


@pytest.mark.parametrize("ask", ["generate", "classify", "add_request"])
def test_a_full_task_has_its_own_context(
    ask: str, whole: StoredAdapter, make_base: Callable[..., Base]
) -> None:
    short = make_base()
    short.model.config.max_position_embeddings = 16
    engine = Engine(short, [whole])
    asks: dict[str, Callable[[str], Any]] = {
        "generate": lambda task: engine.generate([(task, "word " * 20)], SAMPLING),
        "classify": lambda task: engine.classify(task, ["word " * 20], ["a", "b"]),
        "add_request": lambda task: engine.add_request(task, "word " * 20, SAMPLING),
    }
    alone = Engine(adapters=[whole])
    found = asks[ask]("whole")
    if ask == "generate":
        assert found == alone.generate([("whole", "word " * 20)], SAMPLING)
    elif ask == "classify":
        assert found == alone.classify("whole", ["word " * 20], ["a", "b"])
    else:
        prompt = alone.tasks["whole"].template.prompt("word " * 20)
        assert (list(found.prompt), found.tasks[0].base.context) == (prompt, 4096)
    with pytest.raises(UsageError, match="context of 16"):
        asks[ask]("base")


@pytest.mark.parametrize("first", [[0, 1], [1, 0]])
def test_adapters_of_two_bases_answer_in_one_engine(
    first: list[int], tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    bases = [make_base(seed=0), make_base("qwen3", seed=1)]
    store = AdapterStore(Workspace(tmp_path))
    stored = []
    for number, base in enumerate(bases):
        adapter = build_adapter(base, "p-tuning-v2", {"virtual_tokens": 4}, init_text="a", seed=0)
        record = {"base": base.name, "base_fingerprint": base.fingerprint, "method": "p-tuning-v2"}
        stored.append(
            store.add(f"t{number}", lambda f, a=adapter, b=base: save_adapter(a, f, b), record)  # type: ignore[misc]
        )
    engine = Engine(bases[1])
    for number in first:
        engine.load(stored[number], base=bases[number])
    prompts = [(f"t{number}", "hello") for number in (0, 1, 0)]
    answers = engine.generate([*prompts, ("base", "hello")], SAMPLING)
    for number, base in enumerate(bases):
        (alone,) = Engine(base, [stored[number]]).generate([(f"t{number}", "hello")], SAMPLING)
        assert answers[number] == alone
    assert answers[3] == Engine(bases[1]).generate([("base", "hello")], SAMPLING)[0]
    with pytest.raises(UsageError, match="was trained on tiny-llama, not on tiny-qwen3"):
        engine.load(stored[0])


def test_an_engine_without_a_base_says_so() -> None:
    engine = Engine()
    asks: list[Callable[[], Any]] = [
        lambda: engine.base,
        lambda: engine.load(LA),
        lambda: engine.generate([("base", "hello")]),
    ]
    for ask in asks:
        with pytest.raises(UsageError, match="no base"):
            ask()

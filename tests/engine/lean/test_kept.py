"""A base that was kept: the same answers bit for bit, and nothing of transformers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.adapters.contribution import NOTHING, Contribution
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import load_adapter, save_adapter
from onebase.data.template import Template
from onebase.engine.lean import kept
from onebase.engine.lean.kept import KeptModel
from onebase.engine.lean.quality import load_for_answering
from onebase.engine.lean.runner import LeanRunner
from onebase.engine.pool import LoadedTask
from onebase.engine.request import Chunk, Request
from onebase.engine.sampling import Sampling
from onebase.model.base import Base
from onebase.model.eos import end_tokens
from onebase.model.standalone_tokenizer import StandaloneTokenizer, tokenizer_record
from onebase.model.w8a8 import folder

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is my parcel?"},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "cache"))


def saved(base: Base, path: Path) -> str:
    base.model.save_pretrained(path)
    base.tokenizer.save_pretrained(path)
    return str(path)


def logits(base: Base, ids: list[int], contribution: Contribution = NOTHING) -> Tensor:
    runner = LeanRunner(base, cache_bytes=1 << 20)
    task = LoadedTask("base", 0, Template(base.tokenizer), contribution, base)
    request = Request((task,), tuple(ids), Sampling(), limit=1, score_from=0)
    runner.admit(request)
    return runner.run([Chunk(request, len(ids), len(ids))])


def twice(name: str) -> tuple[Base, Base]:
    """A base as transformers reads it, and as it was kept."""
    first, _ = load_for_answering(name, "w8a8")
    second, _ = load_for_answering(name, "w8a8")
    assert not isinstance(first.model, KeptModel)
    assert isinstance(second.model, KeptModel)
    return first, second


def test_a_kept_base_is_the_same(base: Base, tmp_path: Path) -> None:
    first, second = twice(saved(base, tmp_path / "base"))
    ids = list(range(3, 43))
    assert torch.equal(logits(first, ids), logits(second, ids))
    assert second.fingerprint == first.fingerprint
    assert second.shape == first.shape
    assert second.precision == first.precision
    assert second.context == first.context
    assert torch.equal(first.embedding(torch.tensor(ids)), second.embedding(torch.tensor(ids)))
    own = Template(second.tokenizer)
    assert end_tokens(second, own) == end_tokens(first, Template(first.tokenizer))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lora", {"use_dora": True}),
        ("ia3", {}),
        ("p-tuning-v2", {"virtual_tokens": 5, "init": "random"}),
    ],
)
def test_adapters_on_a_kept_base(
    method: str, settings: dict[str, Any], make_base: Callable[..., Base], tmp_path: Path
) -> None:
    plain = make_base("qwen2")
    adapter = build_adapter(plain, method, settings, init_text="", seed=1)
    torch.manual_seed(2)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    (tmp_path / "adapter").mkdir()
    save_adapter(adapter, tmp_path / "adapter", plain)
    ids, found = list(range(3, 23)), []
    for base in twice(saved(plain, tmp_path / "base")):
        with torch.no_grad():
            own = load_adapter(tmp_path / "adapter", base).contribution()
            found.append(logits(base, ids, own))
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_the_longest_text_is_kept(
    kind: str, length_bound_base: Callable[..., Base], tmp_path: Path
) -> None:
    first, second = twice(saved(length_bound_base(kind), tmp_path / "base"))
    assert second.rotary == first.rotary is not None
    assert torch.equal(logits(first, list(range(3, 43))), logits(second, list(range(3, 43))))


def test_transformers_is_not_imported(make_base: Callable[..., Base], tmp_path: Path) -> None:
    name = saved(make_base(), tmp_path / "base")
    load_for_answering(name)
    code = (
        "import sys\n"
        "from onebase.cli import serve\n"
        "from onebase.engine.engine import Engine\n"
        "from onebase.engine.lean.quality import load_for_answering\n"
        "from onebase.engine.sampling import Sampling\n"
        f"engine = Engine(load_for_answering({name!r})[0])\n"
        "engine.generate([('base', 'hello')], Sampling(max_tokens=2))\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


def test_other_files_are_another_base(make_base: Callable[..., Base], tmp_path: Path) -> None:
    name = saved(make_base(), tmp_path / "base")
    load_for_answering(name, "w8a8")
    config = tmp_path / "base" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**settings, "rms_norm_eps": 0.5}), encoding="utf-8")
    base, _ = load_for_answering(name, "w8a8")
    assert not isinstance(base.model, KeptModel)


@pytest.mark.parametrize("which", ["base-*", "[!b]*.safetensors"])
@pytest.mark.parametrize("damage", [b"", b"no such file", None])
def test_what_is_damaged_or_gone_is_made_again(
    which: str, damage: bytes | None, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    name = saved(make_base(), tmp_path / "base")
    expected = logits(load_for_answering(name, "w8a8")[0], [3, 4, 5])
    (file,) = folder().glob(which)
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    for model in (torch.nn.Module, KeptModel):
        base, _ = load_for_answering(name, "w8a8")
        assert isinstance(base.model, model)
        assert torch.equal(logits(base, [3, 4, 5]), expected)


def test_nothing_is_kept_where_a_rotary_embedding_differs(
    make_base: Callable[..., Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = saved(make_base(), tmp_path / "base")
    monkeypatch.setattr(kept, "_alike", lambda *_: False)
    load_for_answering(name, "w8a8")
    assert list(folder().glob("base-*")) == []


def test_a_cache_that_cannot_be_written_to(
    make_base: Callable[..., Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = saved(make_base(), tmp_path / "base")
    (tmp_path / "full").write_text("a file")
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "full"))
    base, _ = load_for_answering(name, "w8a8")
    assert base.precision.name == "w8a8"


def test_a_kept_tokenizer_is_the_same(make_base: Callable[..., Base]) -> None:
    plain = make_base().tokenizer
    record = tokenizer_record(plain)
    assert record is not None
    own = StandaloneTokenizer(json.loads(json.dumps(record)))
    for text in ("", " the parcel<|im_end|> 你好", "hello\n" * 50):
        assert own(text)["input_ids"] == plain(text)["input_ids"]
    for prompt in (True, False):
        rendered = own.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=prompt)
        assert rendered == plain.apply_chat_template(
            TURNS, tokenize=False, add_generation_prompt=prompt
        )
    assert own.added_tokens_decoder == plain.added_tokens_decoder
    assert [own.convert_ids_to_tokens(id_) for id_ in range(301)] == [
        plain.convert_ids_to_tokens(id_) for id_ in range(301)
    ]
    assert (own.eos_token_id, own.bos_token, own.bos_token_id) == (2, None, None)


@pytest.mark.parametrize(
    "template",
    [
        "{% generation %}{{ messages[0]['content'] }}{% endgeneration %}",  # transformers' own
        {"default": "{{ messages }}", "tools": "{{ messages }}"},
    ],
)
def test_a_tokenizer_that_needs_transformers_is_not_kept(
    template: Any, make_base: Callable[..., Base]
) -> None:
    tokenizer = make_base().tokenizer
    tokenizer.chat_template = template
    assert tokenizer_record(tokenizer) is None


def test_a_template_may_refuse_a_conversation(make_base: Callable[..., Base]) -> None:
    tokenizer = make_base().tokenizer
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ messages | tojson }}{{ eos_token }}{% if strftime_now('%Y') %}!{% endif %}"
    )
    record = tokenizer_record(tokenizer)
    assert record is not None
    with pytest.raises(Exception, match="no system"):
        StandaloneTokenizer(record).apply_chat_template(TURNS)

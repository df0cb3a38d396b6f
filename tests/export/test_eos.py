"""An export has the task's end tokens, in transformers and in GGUF."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from tests.engine.test_ends import ANSWER, base_ending, taught
from transformers import AutoModelForCausalLM, AutoTokenizer

from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.data.template import Template
from onebase.engine.engine import Engine
from onebase.engine.sampling import Sampling
from onebase.export.eos import answer_ends
from onebase.export.export import Exported, export
from onebase.model.base import Base

# What a template writes after an answer, the tokenizer's end, the generation config's, and the ids
# that an answer ends at: of the text, of the turn, then the others.
ENDS = [
    pytest.param("<|im_end|>", "<|im_end|>", 2, (2,), id="the tokenizer's own"),
    pytest.param("<|im_end|>", "<pad>", 0, (0, 2), id="another of the turn"),
    pytest.param("<|im_end|>", "<pad>", [0, 7], (0, 2, 7), id="a list"),
    pytest.param("<|im_end|>", None, None, (2,), id="the template's alone"),
    pytest.param("<|im_end|>", None, [7, 8], (7, 2, 8), id="the template's, and a list"),
]
PROMPT = "where is 3?"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def exported(make_base: Callable[..., Base], tmp_path: Path) -> Callable[..., Exported]:
    """A task that answers ANSWER on a base with such ends, trained and exported to `to`."""

    def make(ending: str, eos: str | None, named: Any, to: str, template: str = "auto") -> Exported:
        base = base_ending(make_base(), ending, eos, named)
        folder = tmp_path / "base"
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        taught(Base.load(str(folder)), tmp_path, template=template)
        dtype = "f32" if to == "gguf" else "fp32"
        store = AdapterStore(Workspace(tmp_path / "w"))
        return export(store, "t", to, tmp_path / "out", dtype=dtype)

    return make


def said_by_transformers(folder: Path, prompt: list[int]) -> list[int]:
    """What the exported model says by itself, its end with it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    asked = torch.tensor([prompt])
    with torch.no_grad():
        said = model.generate(asked, max_new_tokens=24, do_sample=False, pad_token_id=0)
    ids: list[int] = said[0, len(prompt) :].tolist()
    return ids


@pytest.mark.parametrize(("ending", "eos", "named", "ids"), ENDS)
def test_a_merged_export_stops_in_transformers(
    ending: str,
    eos: str | None,
    named: Any,
    ids: tuple[int, ...],
    exported: Callable[..., Exported],
) -> None:
    out = exported(ending, eos, named, "merged").out
    config = json.loads((out / "generation_config.json").read_text(encoding="utf-8"))
    assert config["eos_token_id"] == (ids[0] if len(ids) == 1 else list(ids))
    tokenizer = AutoTokenizer.from_pretrained(out)
    *said, end = said_by_transformers(out, Template(tokenizer).prompt(PROMPT))
    assert tokenizer.decode(said) == ANSWER
    assert end == 2


@pytest.mark.parametrize(("ending", "eos", "named", "ids"), ENDS)
def test_a_gguf_stops_as_a_base(
    ending: str,
    eos: str | None,
    named: Any,
    ids: tuple[int, ...],
    exported: Callable[..., Exported],
) -> None:
    file = exported(ending, eos, named, "gguf").out / "model.gguf"
    fields = GGUFReader(file).fields
    found = {
        end: field.contents()
        for end in ("eos", "eot", "eom")
        if (field := fields.get(f"tokenizer.ggml.{end}_token_id")) is not None
    }
    assert found["eos"] == ids[0]
    assert found["eot"] == 2
    assert set(found.values()) == set(ids[:3])
    answer = answer_of_base(file)
    assert (answer.text, answer.finish_reason) == (ANSWER, "stop")


def answer_of_base(file: Path) -> Any:
    (answer,) = Engine(Base.load(str(file))).generate([("base", PROMPT)], Sampling(max_tokens=24))
    return answer


@pytest.mark.parametrize("to", ["merged", "gguf"])
def test_without_an_end_an_export_goes_on_and_says_so(
    to: str, exported: Callable[..., Exported]
) -> None:
    done = exported("", None, None, to)
    if to == "merged":
        prompt = Template(AutoTokenizer.from_pretrained(done.out)).prompt(PROMPT)
        assert len(said_by_transformers(done.out, prompt)) == 24
        return
    (note,) = done.notes
    assert "Its answers have no end token" in note
    answer = answer_of_base(done.out / "model.gguf")
    assert (answer.tokens, answer.finish_reason) == (24, "length")


@pytest.mark.parametrize("to", ["merged", "gguf"])
def test_a_text_that_ends_answers_is_told(to: str, exported: Callable[..., Exported]) -> None:
    note, *others = exported("\n### End", None, None, to).notes
    assert "end with the text '\\n### End'" in note
    assert "stop string" in note
    assert len(others) == (to == "gguf")  # that there is no end token


def test_a_template_of_the_task_s_own_ends_at_the_tokenizer_s_end(
    exported: Callable[..., Exported],
) -> None:
    out = exported("<|im_end|>", "<pad>", None, "merged", template="{input} => ").out
    config = json.loads((out / "generation_config.json").read_text(encoding="utf-8"))
    assert config["eos_token_id"] == 0


def test_ends_that_gguf_has_no_place_for_are_told(exported: Callable[..., Exported]) -> None:
    (note,) = exported("<|im_end|>", "<pad>", [0, 7, 8, 9], "gguf").notes
    assert "only three end tokens" in note


def test_the_order_of_ends(make_base: Callable[..., Base]) -> None:
    base = base_ending(make_base(), "<|im_end|>", "<pad>", [9, 0, 7])
    ends = answer_ends(base, Template(base.tokenizer))
    assert (ends.eos, ends.turn, ends.tokens) == (0, 2, (0, 2, 7, 9))


def test_settings_that_contradict_each_other_are_exported_as_they_are(
    make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base = base_ending(make_base(), "<|im_end|>", "<pad>", None)
    folder = tmp_path / "base"
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    file = folder / "generation_config.json"
    file.write_text('{"do_sample": false, "temperature": 0.5, "top_p": 0.9}', encoding="utf-8")
    store = AdapterStore(Workspace(tmp_path / "w"))
    export(store, "base", "merged", tmp_path / "out", dtype="fp32", base=str(folder))
    config = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert config["eos_token_id"] == [0, 2]
    assert config["temperature"] == 0.5

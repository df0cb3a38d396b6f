"""`onebase adapters import` and `list` on what people really bring."""

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import save_adapter
from onebase.adapters.scalar_head import ScalarHead
from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.data.example import Example, Turn
from onebase.data.template import Template
from onebase.model.base import Base

Run = Any
ROLL_BACK = "roll back"


def foreign(base: str, folder: Path, **changes: Any) -> Path:
    """A LoRA that PEFT saved, with an effect, fields of its configuration changed."""
    torch.manual_seed(5)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    return saved(model, folder, **changes)


def saved(model: Any, folder: Path, **changes: Any) -> Path:
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    file = folder / "adapter_config.json"
    settings = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    file.write_text(json.dumps(settings), encoding="utf-8")
    return folder


def imported(onebase: Run, folder: Path | str, base: str, *more: str, task: str = "new") -> Any:
    result = onebase("adapters", "import", folder, "--task", task, "--base", base, *more, "--json")
    assert result.code == 0, result.err
    return result.json


def refused(onebase: Run, folder: Path | str, base: str) -> str:
    """What a failed import says; it stores nothing."""
    result = onebase("adapters", "import", folder, "--task", "new", "--base", base)
    assert result.code in (1, 2), result
    assert result.out == ""
    assert ROLL_BACK not in result.err
    assert "itself failed" not in result.err
    assert onebase("adapters", "list", "--json").json["adapters"] == []
    return str(result.err)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("owner/qwen-tiny", True),
        ("/gone/mistral-7b", True),
        ("meta-llama/Llama-2-7b", True),
        ("/gone/{name}", False),
        ("owner/{name}", False),
        (None, False),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    onebase: Run, base: str, desk: Path, written: str | None, told: bool
) -> None:
    name = written and written.format(name=Path(base).name)
    folder = foreign(base, desk / "lora", base_model_name_or_path=name)
    notes = imported(onebase, folder, base)["notes"]
    assert bool(notes) == told
    if told:
        assert written in notes[0]
        assert base in notes[0]
        again = onebase("adapters", "import", folder, "--task", "new", "--base", base)
        assert notes[0] in again.err


def test_a_pickle_is_refused_with_a_command_that_converts_it(
    onebase: Run, base: str, desk: Path
) -> None:
    folder = foreign(base, desk / "an adapter's folder")
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    error = refused(onebase, folder, base)
    assert "adapter_model.bin" in error
    command = shlex.split(error.strip().splitlines()[-1].partition("import again: ")[2])
    subprocess.run(command, check=True, timeout=120)
    assert imported(onebase, folder, base)["method"] == "lora"


@pytest.mark.parametrize("below", ["lora", "runs/checkpoint-30", "a folder"])
def test_an_adapter_in_a_subfolder_is_named(
    onebase: Run, base: str, desk: Path, below: str
) -> None:
    foreign(base, desk / "out" / below)
    error = refused(onebase, "out", base)
    (folder,) = shlex.split(error.partition("in subfolders: import ")[2].strip().removesuffix("."))
    assert folder == f"out/{below}"
    imported(onebase, folder, base)


def test_a_folder_without_an_adapter_is_refused(onebase: Run, base: str, desk: Path) -> None:
    assert f"--base {base}" in refused(onebase, base, base)
    assert "support.jsonl" in refused(onebase, ".", base)
    (desk / "empty").mkdir()
    assert "This one contains: nothing" in refused(onebase, "empty", base)
    assert "adapter_config.json: ." in refused(onebase, "support.jsonl", base)
    folder = foreign(base, desk / "lora")
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors can't be used: the file is missing" in refused(
        onebase, folder, base
    )


@pytest.mark.parametrize("before", ["", "base_model.model.base_model.model.", "model."])
def test_renamed_tensors_are_shown_with_the_expected_name(
    onebase: Run, base: str, desk: Path, before: str
) -> None:
    folder = foreign(base, desk / "lora")
    file = folder / "adapter_model.safetensors"
    prefix = "base_model.model."
    tensors = {before + key.removeprefix(prefix): value for key, value in load_file(file).items()}
    save_file(tensors, file)
    error = refused(onebase, folder, base)
    key = min(tensors).removeprefix(before)
    assert f"it has {before}{key} instead of {prefix}{key}" in error


def test_the_adapters_name_in_tensor_names_is_read(onebase: Run, base: str, desk: Path) -> None:
    folder = foreign(base, desk / "lora")
    imported(onebase, folder, base, task="plain")
    file = folder / "adapter_model.safetensors"
    save_file(
        {key.replace(".weight", ".default.weight"): t for key, t in load_file(file).items()}, file
    )
    imported(onebase, folder, base, task="named")
    ask = ("--prompt", "Hi", "--max-tokens", "8")
    plain, named, bare = (
        onebase("generate", *task, *ask).out
        for task in (("--task", "plain"), ("--task", "named"), ("--base", base))
    )
    assert plain == named
    assert plain != bare
    # And out again, for PEFT.
    assert onebase("export", "--task", "named", "--to", "peft", "--out", "out").code == 0
    peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "out")


def classifier(base: str, folder: Path, labels: int) -> tuple[Path, Any]:
    torch.manual_seed(5)
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=labels)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(model, config).eval()
    return saved(model, folder), model


@pytest.mark.parametrize("labels", [2, 3, 10])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_classifier_of_several_labels_is_refused_with_the_reason(
    onebase: Run, base: str, desk: Path, labels: int
) -> None:
    folder, _ = classifier(base, desk / "classifier", labels)
    error = refused(onebase, folder, base)
    assert f"{labels} labels" in error
    assert "Train a classification task" in error


def scores(onebase: Run, task: str, base: str, answers: list[str]) -> list[float]:
    scores = []
    for answer in answers:
        ask = ("--task", task, "--prompt", "Is it here?", "--answer", answer, "--base", base)
        result = onebase("align", "score", *ask, "--json")
        assert result.code == 0, result.err
        scores.append(result.json["scores"][0]["score"])
    return scores


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_classifier_of_one_label_becomes_a_reward_model(
    onebase: Run, base: str, desk: Path
) -> None:
    folder, model = classifier(base, desk / "reward", 1)
    result = imported(onebase, folder, base)
    assert "reward model" in result["notes"][-1]
    answers = ["Yes.", "No, not at all.", "hello"]
    template = Template(Base.load(base).tokenizer)
    expected = []
    for answer in answers:
        turns = (Turn("user", "Is it here?"), Turn("assistant", answer))
        ids = torch.tensor([template.example(Example(turns, "a", 1)).ids])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        expected.append(float(logits[0, 0]))
    assert max(expected) - min(expected) > 0.01
    assert scores(onebase, "new", base, answers) == pytest.approx(expected, abs=1e-4)
    generated = onebase("generate", "--task", "new", "--prompt", "Hi", "--base", base)
    assert generated.code == 2
    assert "is a reward model" in generated.err


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_imported_reward_model_has_its_scale(onebase: Run, base: str, desk: Path) -> None:
    loaded = Base.load(base)
    adapter = build_adapter(loaded, "lora", {"rank": 2}, init_text="hello", seed=0)
    adapter.head = ScalarHead(loaded.shape.hidden)
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    AdapterStore(Workspace(desk / "ws")).add(
        "quality",
        lambda folder: save_adapter(adapter, folder, loaded),
        {
            "base": base,
            "base_fingerprint": loaded.fingerprint,
            "precision": "nf4:fp32",
            "method": "qlora",
            "options": {"rank": 2, "alpha": 16.0},
            "template": Template(loaded.tokenizer, instruction="Be kind.", max_tokens=99).config(),
            "head": "reward",
            "data": "/home/me/secret.jsonl",
            "metrics": {"score_mean": 0.25, "score_deviation": 3.0, "pair_accuracy": 0.75},
        },
    )
    exported = onebase("export", "--task", "quality", "--to", "peft", "--out", "out", "--json")
    assert exported.code == 0, exported.err
    notes = " ".join(exported.json["notes"])
    assert "trained on its base in nf4" in notes
    assert "mean and standard deviation are in onebase.json" in notes
    assert "secret" not in (desk / "out/onebase.json").read_text(encoding="utf-8")
    theirs = LlamaForSequenceClassification.from_pretrained(base, num_labels=1)
    peft.PeftModel.from_pretrained(theirs, "out")
    assert imported(onebase, "out", base)["notes"] == []
    answers = ["Yes.", "No, not at all."]
    imported_scores = scores(onebase, "new", base, answers)
    assert imported_scores == pytest.approx(scores(onebase, "quality", base, answers))
    record = onebase("adapters", "show", "new", "--json").json["record"]
    assert (record["method"], record["precision"]) == ("qlora", "nf4:fp32")
    assert record["metrics"]["pair_accuracy"] == 0.75
    assert record["template"]["max_tokens"] == 99


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("source", ["export", "version"])
def test_an_imported_classification_task_has_its_labels(
    onebase: Run, base: str, desk: Path, source: str
) -> None:
    if source == "export":
        result = onebase("export", "--task", "mood", "--to", "peft", "--out", "out")
        assert result.code == 0, result.err
        assert "Its labels (" in result.err
        assert "'neutral'" in result.err
        peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "out")
    else:
        shutil.copytree(desk / "ws/adapters/mood/1", "out")
    assert imported(onebase, "out", base)["notes"] == []
    ask = ("--text", "The rug is lovely.", "--json")
    ours = onebase("classify", "--task", "mood", *ask)
    theirs = onebase("classify", "--task", "new", *ask)
    assert ours.code == theirs.code == 0, theirs.err
    assert theirs.out.replace('"new"', '"mood"') == ours.out
    old = onebase("adapters", "show", "mood", "--json").json["record"]
    new = onebase("adapters", "show", "new", "--json").json["record"]
    for field in ("labels", "template", "method", "precision", "base_fingerprint"):
        assert new[field] == old[field], field
    assert new["options"] == {**old["options"], **new["options"]}
    assert new["metrics"]["eval_loss"] == old["metrics"]["eval_loss"]


@pytest.mark.usefixtures("trained")
def test_an_option_overrides_the_record(onebase: Run, base: str) -> None:
    more = ("--instruction", "Be brief.", "--template", "plain")
    imported(onebase, "ws/adapters/support/2", base, *more)
    record = onebase("adapters", "show", "new", "--json").json["record"]
    assert (record["template"]["kind"], record["template"]["instruction"]) == ("plain", "Be brief.")


@pytest.mark.usefixtures("trained")
def test_weights_that_changed_after_the_record_are_reported(
    onebase: Run, base: str, desk: Path
) -> None:
    shutil.copytree(desk / "ws/adapters/support/2", "out")
    file = desk / "out/adapter_model.safetensors"
    save_file({key: tensor * 2 for key, tensor in load_file(file).items()}, file)
    (note,) = imported(onebase, "out", base)["notes"]
    assert "have changed" in note


RECORDS = [
    {"labels": "good"},
    {"labels": [1]},
    {"labels": [""]},
    {"template": []},
    {"template": {"max_tokens": "9"}},
    {"template": {"instruction": 1}},
    {"head": "value"},
    {"precision": "nf5"},
    {"metrics": [1]},
    {"options": "x"},
    {"sha256": 5},
]


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_an_invalid_record_is_refused(
    onebase: Run, base: str, desk: Path, record: dict[str, object]
) -> None:
    folder = foreign(base, desk / "lora")
    (folder / "onebase.json").write_text(json.dumps(record), encoding="utf-8")
    error = refused(onebase, folder, base)
    assert next(iter(record)) in error
    assert "delete it" in error


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "\udcff"])
def test_a_record_that_is_not_an_object_is_refused(
    onebase: Run, base: str, desk: Path, text: str
) -> None:
    folder = foreign(base, desk / "lora")
    (folder / "onebase.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "onebase.json" in refused(onebase, folder, base)


@pytest.mark.parametrize("projection", [False, True])
def test_a_checkpoint_of_chatglms_scripts_becomes_a_task(
    onebase: Run, desk: Path, make_base: Callable[..., Base], projection: bool
) -> None:
    glm = make_base("glm")
    glm.model.save_pretrained("glm")
    glm.tokenizer.save_pretrained("glm")
    width, hidden = 3 * 2 * 2 * 8, 32  # layers, key and value, groups, channels
    (desk / "checkpoint").mkdir()
    config = {"model_type": "chatglm", "pre_seq_len": 5, "prefix_projection": projection}
    (desk / "checkpoint/config.json").write_text(json.dumps(config), encoding="utf-8")
    sizes: dict[str, tuple[int, ...]] = {"embedding.weight": (5, width)}
    if projection:
        sizes |= {"trans.0.weight": (hidden, width), "trans.0.bias": (hidden,)}
        sizes |= {"trans.2.weight": (width, hidden), "trans.2.bias": (width,)}
    torch.manual_seed(0)
    tensors = {f"transformer.prefix_encoder.{n}": torch.randn(*size) for n, size in sizes.items()}
    torch.save(tensors, desk / "checkpoint/pytorch_model.bin")
    assert imported(onebase, "checkpoint", "glm")["method"] == "p-tuning-v2"
    ask = ("--prompt", "Hi", "--max-tokens", "8", "--base", "glm")
    with_it = onebase("generate", "--task", "new", *ask)
    assert with_it.code == 0, with_it.err
    assert with_it.out != onebase("generate", *ask).out
    torch.save({**tensors, min(tensors): torch.randn(6, width)}, "checkpoint/pytorch_model.bin")
    onebase("adapters", "remove", "new")
    error = refused(onebase, "checkpoint", "glm")
    assert f"(6, {width}), but this base needs (5, {width})" in error


@pytest.mark.parametrize("marks", ["no current", "current", "no version"])
def test_a_folder_copied_by_hand_is_reported_with_a_command_that_imports_it(
    onebase: Run, base: str, desk: Path, marks: str
) -> None:
    place = desk / "ws/adapters/copied" / ("" if marks == "no version" else "1")
    foreign(base, place, base_model_name_or_path=base)
    if marks == "current":
        (place.parent / "current").write_text("1\n", encoding="utf-8")
    listed = onebase("adapters", "list", "--json")
    assert listed.code == 0
    assert listed.json["adapters"] == []
    (item,) = listed.json["unlisted"]
    assert item["path"].endswith(str(place.relative_to(desk)))
    assert "it was copied there, not imported" in item["message"]
    shown = onebase("adapters", "list")
    assert item["message"] in shown.err
    ask = ("generate", "--task", "copied", "--prompt", "Hi", "--base", base)
    for command in (("adapters", "show", "copied"), ask):
        refusal = onebase(*command)
        assert refusal.code == 1
        assert item["remedy"] in refusal.err
    commands = item["remedy"].removeprefix("Import it with: ")
    first, _, then = commands.partition(" ; ")
    imported_again = onebase(*shlex.split(first)[1:])
    assert imported_again.code == 0, imported_again.err
    if marks == "no version":
        (place / "adapter_config.json").unlink()
    else:
        assert onebase(*shlex.split(then.partition(": ")[2])[1:]).code == 0
    (now,) = onebase("adapters", "list", "--json").json["adapters"]
    assert (now["task"], now["current"]) == ("copied", True)
    assert "unlisted" not in onebase("adapters", "list", "--json").json
    assert onebase("generate", "--task", "copied", "--prompt", "Hi", "--max-tokens", "2").code == 0


@pytest.mark.parametrize(
    "name", ["a" * 64, "任务" * 32, "an-adapter.with_a-long.name-of-60-letters"]
)
def test_a_list_in_a_pipe_has_full_names(onebase: Run, base: str, desk: Path, name: str) -> None:
    folder = foreign(base, desk / "lora")
    imported(onebase, folder, base, task=name)
    shown = onebase("adapters", "list").out
    assert f" {name} " in shown
    assert f" {base} " in shown
    assert len(shown.splitlines()) == 5


@pytest.mark.parametrize("as_json", [False, True])
def test_chinese(onebase: Run, base: str, desk: Path, as_json: bool) -> None:
    folder = foreign(base, desk / "lora", r=4)
    form = ("--json",) if as_json else ()
    result = onebase(
        *("adapters", "import", folder, "--task", "new", "--base", base, "--lang", "zh", *form)
    )
    assert result.code == 1
    assert "r 为 4" in result.err
    assert "请将 r 改为训练时的秩" in result.err

"""Each command by its arguments, exit code, stdout and stderr."""

import json
import os
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoTokenizer

from onebase.adapters.methods import METHODS
from onebase.cli.chat import streamed
from onebase.data.example import Turn
from onebase.engine.engine import Engine
from onebase.engine.sampling import Sampling
from onebase.model.base import Base

CHINESE = re.compile(r"[一-鿿]")
SHORT = ("--max-tokens", "3")


def trains(
    onebase, base: str, *more: str, task: str = "support", data: str = "support.jsonl"
) -> Any:
    flags = ("--task", task, "--data", data, "--base", base, "--set", "epochs=1")
    result = onebase("train", *flags, *more, "--json")
    assert result.code == 0, result.err
    return result.json


def answers(onebase, *arguments: str | Path) -> list[dict[str, Any]]:
    result = onebase("generate", *arguments, *SHORT, "--json")
    assert result.code == 0, result.err
    assert result.err == ""
    return result.json["answers"]


EMBEDDED = ["smollm2-135m", "gemma3-270m"]


@pytest.mark.parametrize("method", [*METHODS, "prefix-tuning"])
def test_train_by_flags(onebase, base: str, desk: Path, method: str) -> None:
    result = trains(onebase, base, "--method", method, "--instruction", "Be kind.", "--seed", "3")
    assert result.keys() == {"run", "adapters"}
    (adapter,) = result["adapters"]
    contract = {"task", "version", "method", "path", "trainable", "eval_loss", "base_eval_loss"}
    contract |= {"best_step", "steps", "diverged", "learned", "truncated"}
    assert adapter.keys() == contract | {"seconds", "tokens_per_second"}
    assert adapter["task"] == "support"
    assert adapter["version"] == 1
    assert adapter["method"] == ("p-tuning-v2" if method == "prefix-tuning" else method)
    folder = Path(adapter["path"])
    assert folder == Path("ws/adapters/support/1")
    record = json.loads((folder / "onebase.json").read_text(encoding="utf-8"))
    measured = {"trainable", "eval_loss", "base_eval_loss", "seconds", "tokens_per_second"}
    assert {name: adapter[name] for name in measured} == {
        name: record["metrics"][name] for name in measured
    }
    files = {"adapter_config.json", "adapter_model.safetensors", "onebase.json"}
    compiled = "compiled-transformers-fp32-cpu.safetensors"
    compiled_files = {compiled} if method in ("prompt-tuning", "p-tuning") else set()
    file_names = {file.name for file in folder.iterdir()}
    if method == "full":  # the version is a base itself
        assert {"config.json", "model.safetensors", "tokenizer.json", "onebase.json"} <= file_names
    else:
        assert file_names == files | compiled_files
    assert (desk / "ws/adapters/support/current").read_text(encoding="utf-8").strip() == "1"
    config = (desk / "ws/runs" / result["run"] / "config.yaml").read_text(encoding="utf-8")
    assert "Be kind." in config
    assert "seed: 3" in config


def test_training_again_stores_a_new_version_with_the_same_losses(onebase, base: str) -> None:
    first, second = (trains(onebase, base)["adapters"][0] for _ in range(2))
    assert (first["version"], second["version"]) == (1, 2)
    assert first["eval_loss"] == second["eval_loss"]
    other = trains(onebase, base, "--set", "learning_rate=0.05")["adapters"][0]
    assert other["version"] == 3
    assert other["eval_loss"] < first["eval_loss"]


@pytest.mark.parametrize("name", ["smollm2-135m", "{base}"])
def test_train_by_tasks_file(onebase, base: str, desk: Path, name: str) -> None:
    """Paths of data files are relative to the tasks file; --base overrides its base."""
    folder = desk / "jobs"
    folder.mkdir()
    for file in ("support.jsonl", "mood.jsonl"):
        (desk / file).rename(folder / file)
    (folder / "tasks.yaml").write_text(
        f"base: {name.format(base=base)}\n"
        "jobs:\n"
        "  - {task: support, data: support.jsonl, method: p-tuning, instruction: Be kind.}\n"
        "  - {task: mood, data: mood.jsonl, set: {rank: 2, epochs: 1}}\n",
        encoding="utf-8",
    )
    override = () if name == "{base}" else ("--base", base)
    result = onebase("train", "-c", "jobs/tasks.yaml", *override, "--json")
    assert result.code == 0, result.err
    stored = [(item["task"], item["method"], item["version"]) for item in result.json["adapters"]]
    assert stored == [("support", "p-tuning", 1), ("mood", "lora", 1)]
    assert all(item["eval_loss"] > 0 for item in result.json["adapters"])
    assert len(list((desk / "ws/runs").iterdir())) == 1


def test_train_without_json_prints_the_losses(onebase, base: str) -> None:
    flags = ("--task", "support", "--data", "support.jsonl", "--base", base, "--set", "epochs=1")
    result = onebase("train", *flags)
    assert result.code == 0
    line, hint = result.out.splitlines()
    assert re.fullmatch(
        r"support@1 \(lora\): held-out loss \d\.\d+ -> \d\.\d+ \(-?\d+ % lower\)", line
    )
    assert hint == "Try: onebase generate --task support --prompt …"
    assert result.err.startswith(
        f"Loading {base} …\nLoaded in fp32 on cpu.\nsupport (lora): 9 rows, 1 held out, "
    )
    assert "step 2/2, held-out loss" in result.err


@pytest.mark.parametrize(
    ("data", "workspace", "hint"),
    [
        ("mood.jsonl", (), "onebase classify --task t --text …"),
        (
            "mood.jsonl",
            ("--workspace", "my ws"),
            "onebase classify --task t --workspace 'my ws' --text …",
        ),
        (
            "support.jsonl",
            ("--workspace", "w2"),
            "onebase generate --task t --workspace w2 --prompt …",
        ),
    ],
)
def test_train_suggests_the_command_for_the_task(
    onebase, base: str, data: str, workspace: tuple[str, ...], hint: str
) -> None:
    flags = ("--task", "t", "--data", data, "--base", base, "--set", "epochs=1")
    result = onebase("train", *flags, *workspace)
    assert result.out.splitlines()[-1] == f"Try: {hint}"
    words = shlex.split(hint.replace("…", "Hello"))[1:]
    assert onebase(*words).code == 0


def test_train_without_held_out_rows(onebase, base: str) -> None:
    adapter = trains(onebase, base, "--set", "held_out=0")["adapters"][0]
    assert adapter["eval_loss"] is adapter["base_eval_loss"] is None


def test_skip_bad_and_columns(onebase, base: str, desk: Path) -> None:
    rows = ["q,a", *(f"Where is {number}?,Here." for number in range(6)), "only one"]
    (desk / "d.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    flags = ("--columns", "input=q,output=a", "--skip-bad")
    assert trains(onebase, base, *flags, data="d.csv")["adapters"][0]["version"] == 1


def test_an_interrupted_training_stores_no_adapter(
    onebase, base: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onebase.training.train.train_together", interrupted)
    flags = ("--task", "support", "--data", "support.jsonl", "--base", base)
    result = onebase("train", *flags)
    assert result.code == 130
    assert result.out == ""
    assert "Traceback" not in result.err
    assert not (desk / "ws/adapters").exists()
    (run,) = onebase("runs", "list", "--json").json["runs"]
    assert run["status"] == "interrupted"


@pytest.mark.usefixtures("trained")
def test_generate_a_prompt(onebase) -> None:
    (answer,) = answers(onebase, "--task", "support", "--prompt", "Where is parcel 3?")
    assert answer.keys() == {"task", "version", "prompt", "text", "tokens", "finish_reason"}
    assert (answer["task"], answer["version"]) == ("support", 2)
    assert answer["prompt"] == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nWhere is parcel 3?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (answer["tokens"], answer["finish_reason"]) == (3, "length")
    plain = onebase("generate", "--task", "support", "--prompt", "Where is parcel 3?", *SHORT)
    assert plain.out == answer["text"] + "\n"
    assert plain.err == ""


@pytest.mark.usefixtures("trained")
def test_generate_names_a_version_or_the_base(onebase, base: str) -> None:
    ask = ("--prompt", "Where is parcel 3?")
    (old,) = answers(onebase, "--task", "support@1", *ask)
    assert (old["task"], old["version"]) == ("support", 1)
    (bare,) = answers(onebase, "--task", "base", "--base", base, *ask)
    assert (bare["task"], bare["version"]) == ("base", 0)
    assert "Be kind." not in bare["prompt"]
    assert answers(onebase, "--base", base, *ask) == [bare]


@pytest.mark.usefixtures("trained")
def test_generate_a_file_of_mixed_tasks(onebase, base: str, desk: Path) -> None:
    questions = [
        ("mood", "The lamp is lovely."),
        ("support", "Where is parcel 3?"),
        ("base", "Where is parcel 3?"),
        ("support@1", "Where is parcel 4?"),
        ("mood", "The rug is broken."),
        (None, "Where is parcel 5?"),
    ]
    rows = [{"task": task, "input": text} for task, text in questions]
    text = "\n\n".join(json.dumps(row) for row in rows)
    (desk / "r.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    results = answers(onebase, "--file", "r.jsonl", "--task", "support")
    names = [(item["task"], item["version"]) for item in results]
    assert names == [
        ("mood", 1), ("support", 2), ("base", 0), ("support", 1), ("mood", 1), ("support", 2),
    ]  # fmt: skip
    for (task, text), item in zip(questions, results, strict=True):
        base_option = ("--base", base) if task == "base" else ()
        assert answers(onebase, "--task", task or "support", "--prompt", text, *base_option) == [
            item
        ]
    plain = onebase("generate", "--file", "r.jsonl", *SHORT)
    assert plain.out.startswith("[mood] ")


@pytest.mark.usefixtures("trained")
def test_a_seed_makes_sampling_reproducible(onebase) -> None:
    ask = ("--task", "support", "--prompt", "Hi", "--temperature", "1.5", "--top-k", "50")
    first = answers(onebase, *ask, "--seed", "7")
    assert first == answers(onebase, *ask, "--seed", "7")
    others = [answers(onebase, *ask, "--seed", str(seed)) for seed in range(5)]
    assert any(first != other for other in others)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_min_p_and_the_penalties_affect_sampling(onebase, command: str) -> None:
    def said(*flags: str) -> str:
        ask = ("--prompt", "Hi, lamp, lamp!") if command == "generate" else ()
        flags = ("--task", "support", "--max-tokens", "24", *ask, *flags, "--json")
        result = onebase(command, *flags, stdin="Hi, lamp, lamp!\n")
        assert result.code == 0, result.err
        return str(result.json["answers"][0]["text"])

    greedy = said()
    assert said("--temperature", "1.5", "--min-p", "1", "--seed", "1") == greedy
    assert said("--temperature", "1.5", "--seed", "1") != greedy
    penalties = ("repetition", "5"), ("frequency", "2"), ("presence", "2")
    texts = {said(f"--{name}-penalty", value) for name, value in penalties}
    assert greedy not in texts


@pytest.mark.usefixtures("trained")
def test_classify(onebase) -> None:
    result = onebase("classify", "--task", "mood", "--text", "The lamp is broken.", "--json")
    assert result.code == 0, result.err
    assert result.json.keys() == {"task", "version", "labels"}
    assert (result.json["task"], result.json["version"]) == ("mood", 1)
    labels = result.json["labels"]
    assert sorted(item["label"] for item in labels) == ["bad", "good", "neutral"]
    assert sum(item["probability"] for item in labels) == pytest.approx(1)
    scores = [item["logprob"] for item in labels]
    assert scores == sorted(scores, reverse=True)
    assert all(score < 0 for score in scores)
    plain = onebase("classify", "--task", "mood", "--text", "The lamp is broken.")
    assert [line.split()[1] for line in plain.out.splitlines()] == [
        item["label"] for item in labels
    ]
    assert plain.err == ""


@pytest.mark.usefixtures("trained")
def test_classify_with_other_labels(onebase, base: str) -> None:
    for task, more in (("support@1", ()), ("base", ("--base", base))):
        flags = ("--task", task, "--text", "Hi", "--labels", "yes, no,", *more)
        labels = onebase("classify", *flags, "--json").json["labels"]
        assert sorted(item["label"] for item in labels) == ["no", "yes"]


CHAT = "Hi\n/task nope\n\nHello\n/task mood\nThe rug is broken.\n/reset\n/help\n/quit\nnot asked\n"


@pytest.mark.usefixtures("trained")
def test_chat_from_stdin(onebase) -> None:
    result = onebase("chat", "--task", "support", *SHORT, "--json", stdin=CHAT)
    assert result.code == 0, result.err
    prompts = [(item["task"], item["prompt"]) for item in result.json["answers"]]
    assert prompts == [("support", "Hi"), ("support", "Hello"), ("mood", "The rug is broken.")]
    notes = result.err.splitlines()
    assert "Unknown task: 'nope'. Valid: base, mood, support." in notes
    assert "Now: mood" in notes
    assert "Commands: /task NAME, /reset, /quit" in notes
    assert not any("Now: nope" in line for line in notes)
    plain = onebase("chat", "--task", "support", *SHORT, stdin=CHAT)
    texts = [item["text"] for item in result.json["answers"]]
    assert plain.out == "".join(f"{text}\n" for text in texts)


def test_an_answer_is_streamed_without_white_space_around_it(base: str) -> None:
    engine = Engine(Base.load(base))
    for prompt in ("Hi", "Where is my parcel?", "The rug is broken."):
        sampling = Sampling(max_tokens=40, temperature=1.0, seed=3)
        whole = engine.generate([("base", prompt)], sampling)[0].text
        parts = list(streamed(engine, "base", [Turn("user", prompt)], sampling))
        assert len(parts) > 5
        assert "".join(parts) == whole
    coming = streamed(engine, "base", [Turn("user", "Hi")], Sampling(max_tokens=400))
    next(coming)
    coming.close()  # as Ctrl-C does
    engine.step()
    assert engine.idle


@pytest.mark.usefixtures("trained")
def test_chat_ends_with_its_input_and_can_use_the_base(onebase) -> None:
    result = onebase("chat", "--task", "mood", *SHORT, "--json", stdin="/task base\nHi")
    assert [item["task"] for item in result.json["answers"]] == ["base"]
    assert onebase("chat", "--task", "mood", stdin="").out == ""


@pytest.mark.usefixtures("trained")
def test_adapters_list(onebase, base: str) -> None:
    result = onebase("adapters", "list", "--json")
    assert result.code == 0
    adapters = result.json["adapters"]
    assert [(item["task"], item["version"], item["current"]) for item in adapters] == [
        ("mood", 1, True), ("support", 1, False), ("support", 2, True),
    ]  # fmt: skip
    for item in adapters:
        contract = {"task", "version", "current", "method", "base", "bytes", "created", "metrics"}
        assert contract <= item.keys()
        assert item["base"] == base
        folder = Path("ws/adapters", item["task"], str(item["version"]))
        assert item["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
        record = json.loads((folder / "onebase.json").read_text(encoding="utf-8"))
        assert item["metrics"] == record["metrics"]
    plain = onebase("adapters", "list")
    assert plain.out.count("support") == 2
    assert plain.err == ""


@pytest.mark.usefixtures("trained")
def test_adapters_show(onebase) -> None:
    assert onebase("adapters", "show", "support", "--json").json["version"] == 2
    shown = onebase("adapters", "show", "support@1", "--json").json
    assert (shown["task"], shown["version"], shown["current"]) == ("support", 1, False)
    assert shown["path"] == str(Path("ws/adapters/support/1"))
    assert shown["record"]["template"]["instruction"] == "Be kind."
    assert shown["record"]["data_sha256"]


@pytest.mark.usefixtures("trained")
def test_promote_and_rollback(onebase) -> None:
    def current() -> int:
        return answers(onebase, "--task", "support", "--prompt", "a")[0]["version"]

    assert current() == 2
    assert onebase("adapters", "promote", "support@1").out == "support is now support@1\n"
    assert current() == 1
    assert onebase("adapters", "rollback", "support", "--json").json["version"] == 2
    assert current() == 2


def test_remove(onebase, trained: Path) -> None:
    removed = onebase("adapters", "remove", "support@2", "--json")
    assert removed.json == {"removed": ["support@2"]}
    assert answers(onebase, "--task", "support", "--prompt", "a")[0]["version"] == 1
    assert onebase("adapters", "remove", "support").out == "removed support@1\n"
    assert onebase("adapters", "list", "--json").json["adapters"][0]["task"] == "mood"
    assert not (trained / "adapters/support/1").exists()


@pytest.mark.usefixtures("trained")
def test_import(onebase, base: str) -> None:
    flags = ("--task", "desk", "--base", base, "--instruction", "Be kind.")
    result = onebase("adapters", "import", "ws/adapters/support/2", *flags, "--json")
    assert result.code == 0, result.err
    assert (result.json["task"], result.json["version"]) == ("desk", 1)
    assert result.json["method"] == "lora"
    (ours,) = answers(onebase, "--task", "support", "--prompt", "Where is parcel 3?")
    (theirs,) = answers(onebase, "--task", "desk", "--prompt", "Where is parcel 3?")
    assert {**theirs, "task": "support", "version": 2} == ours
    again = onebase("adapters", "import", "ws/adapters/mood/1", *flags)
    assert again.out.splitlines() == [
        "imported as desk@2", "Try: onebase classify --task desk --text …"
    ]  # fmt: skip


@pytest.mark.usefixtures("trained")
def test_runs(onebase) -> None:
    runs = onebase("runs", "list", "--json").json["runs"]
    assert [(run["status"], run["tasks"]) for run in runs] == [
        ("finished", ["support", "mood"]), ("finished", ["support"]),
    ]  # fmt: skip
    shown = onebase("runs", "show", runs[0]["run"], "--json").json
    assert shown["config"]["jobs"][0]["set"]["learning_rate"] == METHODS["lora"].learning_rate
    steps = [item for item in shown["metrics"] if "loss" in item]
    assert {item["task"] for item in steps} == {"support", "mood"}
    assert all(item["loss"] > 0 and item["tokens_per_second"] > 0 for item in steps)
    assert shown["summary"]["status"] == "finished"
    plain = onebase("runs", "show", runs[1]["run"])
    assert plain.out.startswith(f"Run {runs[1]['run']}: finished")
    assert "finished" in onebase("runs", "list").out


def test_empty_workspace(onebase, desk: Path) -> None:
    assert onebase("adapters", "list", "--json").json == {"adapters": []}
    assert onebase("runs", "list", "--json").json == {"runs": []}
    assert onebase("model", "list", "--json").json == {"models": [], "available": EMBEDDED}
    assert not (desk / "ws").exists()


@pytest.mark.usefixtures("trained")
def test_doctor(onebase) -> None:
    result = onebase("doctor", "--json")
    assert result.code == 0
    assert result.err == ""
    report = result.json
    assert report["tasks"] == ["mood", "support"]
    assert report["missing"] == ["smollm2-135m"]
    assert report["workspace"] == "ws"
    assert report["memory_bytes"] == psutil.virtual_memory().total
    for name in ("torch", "transformers", "peft", "safetensors"):
        assert report["libraries"][name] == version(name)
    hint = "Missing: the default base smollm2-135m. Fetch it with: onebase model pull smollm2-135m"
    assert hint in onebase("doctor").out.splitlines()


def test_model(onebase, base: str, desk: Path) -> None:
    assert onebase("model", "path", base).out == f"{base}\n"
    described = onebase("model", "path", base, "--json").json
    assert described["path"] == base
    assert described["bytes"] == sum(file.stat().st_size for file in Path(base).iterdir())
    assert onebase("model", "pull", base).code == 0
    cached = Path(os.environ["ONEBASE_CACHE"]) / "models" / "smollm2-135m"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(base, target_is_directory=True)
    assert onebase("model", "path").out == f"{cached}\n"
    described = onebase("model", "list", "--json").json
    assert [item["name"] for item in described["models"]] == ["smollm2-135m"]
    assert described["models"][0]["licence"] == "Apache-2.0"
    assert described["available"] == ["gemma3-270m"]
    listed = onebase("model", "list").out
    assert "smollm2-135m" in listed
    assert "onebase model pull gemma3-270m" in " ".join(listed.split())
    # The default base is found in the cache, so --base is not needed.
    assert Base.load("smollm2-135m").path == cached
    assert answers(onebase, "--prompt", "Hi")[0]["task"] == "base"


def test_data_check(onebase, base: str) -> None:
    flags = ("--base", base, "--instruction", "Be kind.")
    result = onebase("data", "check", "support.jsonl", *flags, "--json")
    assert result.code == 0, result.err
    report = result.json
    assert report["format"] == "question-answer"
    assert report["columns"] == {"input": "question", "output": "answer"}
    assert report["rows"] == 10
    assert report["bad"] == []
    assert report["duplicates"] == []
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = map(json.loads, Path("support.jsonl").read_text(encoding="utf-8").splitlines())
    answered = [len(tokenizer(row["answer"])["input_ids"]) + 1 for row in rows]  # and its end
    assert report["learned_tokens"]["min"] == min(answered)
    assert report["learned_tokens"]["max"] == max(answered)
    learned = "⟦Parcel 0 arrives on Monday.<|im_end|>⟧"
    assert learned in report["first_example"]
    assert report["first_example"].count("⟦") == 1
    plain = onebase("data", "check", "support.jsonl", *flags)
    assert plain.code == 0
    assert learned in plain.out
    assert plain.err == ""


def test_data_check_of_a_bad_row(onebase, base: str, desk: Path) -> None:
    rows = '{"input": "a", "output": "b"}\n{"input": "a", "output": ""}\n{"input": "a", "output": "c"}\n'
    (desk / "d.jsonl").write_text(rows, encoding="utf-8")
    result = onebase("data", "check", "d.jsonl", "--base", base, "--json")
    assert result.code == 3
    (bad,) = result.json["bad"]
    assert (bad["file"], bad["line"], bad["column"]) == ("d.jsonl", 2, "output")
    assert bad["reason"]
    assert result.json["duplicates"] == [{"first": 1, "second": 3, "conflicting": True}]
    plain = onebase("data", "check", "d.jsonl", "--base", base)
    assert plain.code == 3
    assert bad["reason"] in plain.out


def test_data_check_of_overlap(onebase, base: str) -> None:
    flags = ("--base", base, "--held-out", "support.jsonl")
    assert len(onebase("data", "check", "support.jsonl", *flags, "--json").json["overlap"]) == 10


def test_data_check_of_preferences(onebase, base: str, desk: Path) -> None:
    pairs = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    (desk / "p.jsonl").write_text(pairs + '{"prompt": "a", "chosen": "b"}\n', encoding="utf-8")
    checked = onebase("data", "check", "p.jsonl", "--base", base, "--json")
    assert checked.code == 3  # a bad row
    assert (checked.json["kind"], checked.json["rows"]) == ("pairs", 2)
    assert checked.json["bad"][0]["column"] == "rejected"
    plain = onebase("data", "check", "p.jsonl", "--base", base)
    assert "⟦c<|im_end|>⟧" in plain.out
    refused = onebase("data", "check", "p.jsonl", "--base", base, "--as", "answers")
    assert refused.code == 3
    assert "preference pairs" in refused.err
    # Judged answers are not trained on as answers, unless --columns says so.
    (desk / "j.jsonl").write_text('{"prompt": "a", "completion": "b", "label": true}\n')
    judged = onebase("data", "check", "j.jsonl", "--base", base, "--json")
    assert (judged.json["kind"], judged.json["read_by"]) == ("judged", ["onebase align kto"])
    refused = onebase("data", "check", "j.jsonl", "--base", base, "--as", "answers")
    assert (refused.code, "onebase align kto" in refused.err) == (3, True)
    named = ("--columns", "input=prompt,output=completion")
    answers = onebase("data", "check", "j.jsonl", "--base", base, *named, "--json")
    assert answers.json["format"] == "input-output"
    (desk / "x.jsonl").write_text('{"some": "a", "thing": "b"}\n')
    unknown = onebase("data", "check", "x.jsonl", "--base", base)
    assert unknown.code == 3
    assert "--columns" in unknown.err


@pytest.mark.usefixtures("trained")
def test_chinese(onebase, base: str) -> None:
    zh = ("--lang", "zh")
    train = ("--task", "t", "--data", "support.jsonl", "--base", base, "--set", "epochs=1")
    result = onebase("train", *train, *zh)
    assert re.search(r"^t@1 \(lora\)：?.*留出损失", result.out, re.MULTILINE)
    assert "正在加载" in result.err
    failed = onebase("generate", "--task", "suport", "--prompt", "a", *zh)
    assert failed.code == 2
    cause, remedy = failed.err.splitlines()
    assert cause == "错误：未知的任务：'suport'。"
    assert remedy.startswith("解决：是否想用 'support'？")
    error = onebase("data", "check", "no.jsonl", *zh, "--json").json["error"]
    assert CHINESE.search(error["message"])
    assert CHINESE.search(error["remedy"])
    # --lang applies to its own command only.
    assert "Unknown task" in onebase("generate", "--task", "suport", "--prompt", "a").err


@pytest.mark.parametrize(("locale", "chinese"), [("zh_CN.UTF-8", True), ("en_US.UTF-8", False)])
def test_the_locale_chooses_the_language(
    onebase, monkeypatch: pytest.MonkeyPatch, locale: str, chinese: bool
) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    assert bool(CHINESE.search(onebase().out)) is chinese
    assert bool(CHINESE.search(onebase("generate").err)) is chinese


def test_bare_command_says_what_to_do_next(onebase, desk: Path) -> None:
    result = onebase()
    assert result.code == 0
    assert result.err == ""
    for hint in ("onebase demo", "onebase data check", "onebase train", "onebase generate"):
        assert hint in result.out
    assert not (desk / "ws").exists()


@pytest.mark.parametrize(
    "arguments", [(), ("train",), ("generate",), ("adapters",), ("adapters", "import")]
)
def test_help(onebase, arguments: tuple[str, ...]) -> None:
    result = onebase(*arguments, "--help")
    assert result.code == 0
    assert "Usage: onebase" in result.out
    assert result.err == ""


def test_the_workspace_option_overrides_the_environment(onebase, base: str, desk: Path) -> None:
    trains(onebase, base, "--workspace", "elsewhere")
    assert (desk / "elsewhere/adapters/support/1").is_dir()
    assert not (desk / "ws").exists()


def test_debug_shows_the_traceback(onebase) -> None:
    result = onebase("adapters", "show", "nope", "--debug")
    assert result.code == 2
    assert "Traceback" in result.err
    assert result.out == ""


def test_an_internal_error_shows_no_traceback(onebase, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object) -> None:
        raise ZeroDivisionError("never mind")

    monkeypatch.setattr("onebase.adapters.store.AdapterStore.list", faulty)
    result = onebase("adapters", "list", "--json")
    assert result.code == 1
    cause, remedy = result.err.splitlines()
    assert cause == "Error: onebase itself failed: ZeroDivisionError: never mind"
    assert "--debug" in remedy
    assert result.json["error"]["code"] == "failed"
    assert "Traceback" in onebase("adapters", "list", "--debug").err

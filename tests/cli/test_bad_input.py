"""Whatever is wrong: the contract's exit code, a cause and a remedy, and nothing written."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

USAGE, DATA, FAILED = 2, 3, 1
CODES = {USAGE: ("usage",), DATA: ("data",), FAILED: ("failed", "missing_base", "corrupt")}
FORMS: tuple[tuple[str, ...], ...] = ((), ("--json",))
PAIR = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
GOOD = '{"input": "a", "output": "b"}\n'


@dataclass(frozen=True)
class Case:
    """Arguments with {base} and {ws} to fill in; words that the error must hold."""

    id: str
    arguments: tuple[str, ...]
    code: int
    words: tuple[str, ...] = ()
    files: Mapping[str, bytes | str] = field(default_factory=dict)
    forms: tuple[tuple[str, ...], ...] = FORMS


def data(name: str, content: bytes | str, *words: str, id: str) -> Case:
    arguments = ("train", "--task", "t", "--base", "{base}", "--data", name)
    return Case(f"data: {id}", arguments, DATA, (name, *words), {name: content})


def flags(id: str, *arguments: str, words: tuple[str, ...] = (), code: int = USAGE) -> Case:
    first = ("train", "--task", "t", "--data", "support.jsonl", "--base", "{base}")
    return Case(f"train: {id}", (*first, *arguments), code, words)


def aligned(kind: str, content: bytes | str, *words: str, id: str) -> Case:
    arguments = ("align", kind, "--task", "t", "--base", "{base}", "--method", "lora")
    file = "--prompts" if kind == "ppo" else "--data"
    more = ("--reward", "json:dumps") if kind == "ppo" else ()
    return Case(
        f"align {kind}: {id}",
        (*arguments, file, "p.jsonl", *more),
        DATA,
        ("p.jsonl", *words),
        {"p.jsonl": content},
    )


def tasks(id: str, content: bytes | str, *words: str, code: int = USAGE) -> Case:
    arguments = ("train", "-c", "tasks.yaml", "--base", "{base}")
    return Case(f"tasks.yaml: {id}", arguments, code, words, {"tasks.yaml": content})


def requests(id: str, content: bytes | str, *words: str) -> Case:
    arguments = ("generate", "--file", "r.jsonl", "--base", "{base}")
    return Case(f"requests: {id}", arguments, DATA, words, {"r.jsonl": content})


def command(id: str, *arguments: str, code: int = USAGE, words: tuple[str, ...] = ()) -> Case:
    return Case(id, arguments, code, words)


JOB = "{task: a, data: support.jsonl}"
ASK = ("generate", "--base", "{base}", "--prompt", "Hi")
CASES = [
    Case("data: missing", ("train", "--task", "t", "--base", "{base}", "--data", "suport.jsonl"),
         DATA, ("suport.jsonl", "Did you mean support.jsonl")),
    data("d.jsonl", b"", id="empty"),
    data("d.jsonl", b"\xef\xbb\xbf\n", id="only a BOM"),
    data("d.jsonl", (GOOD + '{"input": "b", "output": "好"}\n').encode("gbk"), "d.jsonl:2", "UTF-8",
         "--encoding gb18030", id="not UTF-8"),
    data("d.jsonl", GOOD + '{"input": "b", "outp', "d.jsonl:2", id="truncated line"),
    data("d.json", '[{"input": "a", "output": "b"}, {"input": "c", "ou', "cut off",
         id="truncated array"),
    data("d.json", "[1, 2, 3]", "d.json:1", id="array of no objects"),
    data("d.jsonl", GOOD + '{"input": "b"}\n', "d.jsonl:2", "output", id="missing column"),
    data("d.jsonl", GOOD + '{"input": "b", "output": null}\n', "d.jsonl:2", "'output'", id="null"),
    data("d.jsonl", GOOD + '{"input": "b", "output": {"a": 1}}\n', "d.jsonl:2", "'output'",
         id="wrong type"),
    data("d.csv", "input,output\na,b\nc,d,e\n", "d.csv:3", id="ragged CSV"),
    data("d.jsonl", '{"foo": "a", "bar": "b"}\n', "foo, bar", "--columns input=foo,output=bar",
         id="unknown columns"),
    data("d.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c"}\n', id="preferences"),
    data("d.jsonl", GOOD + '{"messages": [{"role": "user", "content": "a"}]}\n', "d.jsonl:2",
         id="another format's row"),
    data("d.jsonl", '{"messages": [{"role": "user", "content": "a"}]}\n', "d.jsonl:1",
         id="no answer"),
    data("d.txt", "a\tb\n", ".jsonl", id="unknown ending"),
    data("d.jsonl", b"PAR1....PAR1", "Parquet", id="ending that lies"),
    data("d.parquet", b"PAR1....PAR1", id="broken Parquet"),
    Case("data: folder", ("train", "--task", "t", "--base", "{base}", "--data", "."), DATA,
         ("folder", "mood.jsonl")),
    aligned("dpo", b"", id="empty"),
    aligned("dpo", PAIR + '{"prompt": "b", "chosen": "c"}\n', "p.jsonl:2", "'rejected'",
            "--skip-bad", id="missing column"),
    aligned("dpo", PAIR + '{"prompt": "b", "chosen": null, "rejected": "c"}\n', "p.jsonl:2",
            "'chosen'", id="null"),
    aligned("dpo", PAIR + '{"prompt": "b", "chosen": "c", "rejected": "c"}\n', "p.jsonl:2",
            "the same", id="one answer twice"),
    aligned("dpo", PAIR + '{"prompt": "b", "cho', "p.jsonl:2", id="truncated line"),
    aligned("dpo", (PAIR + '{"prompt": "好"}\n').encode("gbk"), "p.jsonl:2", "UTF-8",
            id="not UTF-8"),
    aligned("dpo", PAIR, "1 good rows", id="one row"),
    aligned("dpo", GOOD * 3, "pairs of answers", "chosen", id="answers to learn"),
    aligned("dpo", '{"chosen": "a", "rejected": "b"}\n' * 3, "answers no question",
            id="no question"),
    aligned("reward", '{"text": "a", "rating": "many"}\n' * 3, "p.jsonl:1", "'many' is not a number",
            id="rating"),
    aligned("kto", '{"prompt": "a", "completion": "b", "label": "maybe"}\n' * 3, "p.jsonl:1",
            "neither good nor bad", id="label"),
    aligned("ppo", '{"prompt": ""}\n' * 3, "p.jsonl:1", "'prompt'", id="empty prompt"),
    aligned("ppo", '{"foo": "a"}\n' * 3, "foo", "prompt", id="unknown columns"),
    flags("held-out file missing", "--held-out", "no.jsonl", words=("no.jsonl",), code=DATA),
    flags("columns missing", "--columns", "input=foo,output=answer", words=("foo",)),
    flags("columns malformed", "--columns", "input", words=("'input' is not key=value",)),
    flags("columns role", "--columns", "inptu=question", words=("Did you mean 'input'?",)),
    flags("method", "--method", "ptuning", words=("'ptuning'", "Did you mean 'p-tuning'?", "lora")),
    flags("unknown set key", "--set", "rnak=8", words=("'rnak'", "Did you mean 'rank'?")),
    flags("key of another method", "--method", "p-tuning", "--set", "rank=8", words=("'rank'",)),
    flags("rank=-1", "--set", "rank=-1", words=("rank=-1", "greater than or equal to 1")),
    flags("learning_rate=abc", "--set", "learning_rate=abc", words=("learning_rate='abc'",)),
    flags("epochs=0", "--set", "epochs=0", words=("epochs=0",)),
    flags("set without =", "--set", "rank", words=("'rank' is not key=value", "rank=8")),
    flags("set that is no YAML", "--set", "rank=[", words=("rank",)),
    flags("layers that are not there", "--set", "target=nope", words=("nope",)),
    flags("template", "--template", "no place for it", words=("{input}",)),
    flags("seed", "--seed", "x", words=("--seed",)),
    flags("both -c and --task", "-c", "tasks.yaml", words=("-c", "--task")),
    command("both -c and flags", "train", "-c", "tasks.yaml", "--set", "rank=2", "--seed", "3",
            words=("--set, --seed",)),
    flags("learning_rate=.inf", "--set", "learning_rate=.inf", words=("learning_rate=inf",)),
    flags("alpha=.inf", "--set", "alpha=.inf", words=("alpha=inf",)),
    flags("seed too large", "--seed", str(1 << 63), words=(f"seed={1 << 63}",)),
    command("prompt past the context", "generate", "--base", "{base}", "--prompt", "a b " * 2000,
            words=("context",)),
    command("generate: seed", "generate", "--base", "{base}", "--prompt", "a", "--seed", "-1",
            words=("seed=-1",)),
    command("generate: temperature inf", "generate", "--base", "{base}", "--prompt", "a",
            "--temperature", "inf", words=("temperature=inf",)),
    command("generate: empty stop", "generate", "--base", "{base}", "--prompt", "a", "--stop", "",
            words=("stop=",)),
    command("train: neither", "train", words=("--task", "--data", "-c")),
    command("train: no data", "train", "--task", "t", words=("--data",)),
    command("train: option", "train", "--taks", "t", words=("--taks",)),
    *(
        command(f"task name {name!r}", "train", "--task", name, "--data", "support.jsonl",
                "--base", "{base}", words=(f"'{name}' can't be a task's name",))
        for name in ("base", "a/b", "x@1", "..", ".a", "a b", "a" * 65)
    ),
    tasks("two jobs of one name", f"jobs: [{JOB}, {JOB}]", "'a'"),
    tasks("no YAML", "jobs: [", "tasks.yaml"),
    tasks("not UTF-8", b"jobs: \xff", "tasks.yaml"),
    tasks("empty", "", "jobs"),
    tasks("a list", "- 1", "jobs"),
    tasks("no jobs", "base: x\n", "jobs"),
    tasks("jobs without one", "jobs: []", "no job"),
    tasks("unknown key", f"bases: x\njobs: [{JOB}]", "'bases'", "Did you mean 'base'?"),
    tasks("a job that is text", "jobs: [a]", "'a'"),
    tasks("a job's unknown key", "jobs: [{task: a, data: support.jsonl, metod: lora}]",
          "Did you mean 'method'?"),
    tasks("a job without data", "jobs: [{task: a}]", "data"),
    tasks("a job's method", "jobs: [{task: a, data: support.jsonl, method: lorra}]", "'lora'"),
    tasks("second job's data missing", f"jobs: [{JOB}, {{task: b, data: no.jsonl}}]", "no.jsonl",
          code=DATA),
    command("tasks.yaml: missing", "train", "-c", "no.yaml", words=("no.yaml",)),
    command("tasks.yaml: folder", "train", "-c", ".", words=("directory",)),
    command("base: missing", "train", "--task", "t", "--data", "support.jsonl", "--base", "nope",
            code=FAILED, words=("'nope'", "smollm2-135m")),
    command("base: no config.json", "generate", "--prompt", "Hi", "--base", ".", code=FAILED,
            words=("config.json",)),
    command("base: no GGUF", "model", "path", "no.gguf", code=FAILED, words=("no.gguf",)),
    command("base: Hub, offline", "model", "pull", "nobody/nothing", code=FAILED,
            words=("nobody/nothing", "HF_ENDPOINT")),
    Case("base: broken GGUF", ("model", "path", "b.gguf"), FAILED, ("b.gguf",),
         {"b.gguf": b"GGUF\x03\0\0\0"}),
    Case("base: broken config.json", ("generate", "--prompt", "Hi", "--base", "b"), FAILED, ("b",),
         {"b/config.json": "{"}),
    command("generate: neither", "generate", words=("--prompt", "--file")),
    command("generate: both", "generate", "--prompt", "a", "--file", "b",
            words=("--prompt", "--file")),
    command("generate: empty prompt", *ASK[:-1], " ", words=("empty",)),
    command("generate: temperature", *ASK, "--temperature", "-1", words=("temperature=-1.0",)),
    command("generate: top-p", *ASK, "--top-p", "2", words=("top_p=2.0",)),
    command("generate: top-k", *ASK, "--top-k", "-1", words=("top_k=-1",)),
    command("generate: max-tokens", *ASK, "--max-tokens", "0", words=("max_tokens=0",)),
    command("generate: max-tokens text", *ASK, "--max-tokens", "many", words=("--max-tokens",)),
    requests("no input", '{"task": "base", "input": "a"}\n\n{"task": "base"}\n', "r.jsonl:3",
             "input"),
    requests("no JSON", '{"input": "a"}\nplain\n', "r.jsonl:2"),
    requests("blank input", '{"input": " "}\n', "r.jsonl:1"),
    requests("no row", "\n", "r.jsonl"),
    requests("not UTF-8", b'{"input": "\xff"}\n', "r.jsonl"),
    command("requests: missing", "generate", "--file", "no.jsonl", code=DATA, words=("no.jsonl",)),
    command("no adapters yet", "generate", "--task", "t", "--prompt", "Hi", words=("'t'", "base")),
    command("chat: temperature", "chat", "--base", "{base}", "--temperature", "-1",
            words=("temperature",)),
    command("classify: base has no labels", "classify", "--task", "base", "--text", "a", "--base",
            "{base}", words=("labels",)),
    command("classify: no text", "classify", "--task", "t", words=("--text",)),
    command("--lang", "adapters", "list", "--lang", "xx", words=("'xx'", "en or zh")),
    command("unknown option", "doctor", "--foo", words=("--foo",)),
    command("unknown command", "tarin", words=("tarin",)),
    command("unknown subcommand", "adapters", "lst", words=("lst",)),
    *(
        Case(f"no subcommand: {name}", (name,), USAGE, ("command",), forms=((),))
        for name in ("adapters", "model", "data", "runs")
    ),
    command("runs: unknown", "runs", "show", "2020", words=("'2020'",)),
    command("data check: missing", "data", "check", "no.jsonl", code=DATA, words=("no.jsonl",)),
    Case("data check: base without a tokenizer", ("data", "check", "mood.jsonl", "--base", "b"),
         FAILED, ("The tokenizer in b",), {"b/config.json": "{}"}),
    command("data check: max-tokens", "data", "check", "mood.jsonl", "--base", "{base}",
            "--max-tokens", "0", words=("max_tokens=0 is too small",)),
    command("classify: blank labels", "classify", "--task", "base", "--text", "a", "--base",
            "{base}", "--labels", ",", words=("labels",)),
    command("demo: language", "demo", "--data", "fr", words=("'fr'", "en, zh")),
    command("import: no folder", "adapters", "import", "no", "--task", "t", words=("no",)),
    command("import: no config", "adapters", "import", ".", "--task", "t", code=FAILED,
            words=("adapter_config.json",)),
    Case("import: broken config", ("adapters", "import", "a", "--task", "t", "--base", "{base}"),
         FAILED, ("a/adapter_config.json",), {"a/adapter_config.json": "{"}),
    Case("import: no weights", ("adapters", "import", "a", "--task", "t", "--base", "{base}"),
         FAILED, ("a/adapter_model.safetensors",),
         {"a/adapter_config.json": '{"peft_type": "LORA", "r": 8, "lora_alpha": 8}'}),
    Case("import: another kind", ("adapters", "import", "a", "--task", "t", "--base", "{base}"),
         FAILED, ("OFT", "LORA"), {"a/adapter_config.json": '{"peft_type": "OFT"}'}),
]  # fmt: skip


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(onebase, arguments: tuple[str, ...], code: int, *words: str, forms=FORMS) -> None:
    """Run in both forms and hold the failure against the contract."""
    ws = Path("ws")
    before = snapshot(ws)
    for form in forms:
        result = onebase(*arguments, *form)
        assert result.code == code, result
        assert "Traceback" not in result.err
        cause, remedy = result.err.splitlines()[-2:]
        assert cause.startswith("Error: ")
        assert remedy.startswith("Remedy: ")
        assert len(cause) > len("Error: ")
        assert len(remedy) > len("Remedy: ")
        assert sum(line.startswith("Error: ") for line in result.err.splitlines()) == 1
        notes = result.err.splitlines()[:-2]
        assert all(
            line.startswith(("Loading", "Loaded", "Fetching", "/task", "Precision"))
            for line in notes
        ), notes
        for word in words:
            assert word in f"{cause}\n{remedy}"
        if form:
            assert result.json.keys() == {"error"}
            error = result.json["error"]
            assert error.keys() == {"code", "message", "remedy"}
            assert error["code"] in CODES[code]
            assert " ".join(error["message"].split()) == cause.removeprefix("Error: ")
            assert " ".join(error["remedy"].split()) == remedy.removeprefix("Remedy: ")
        else:
            assert result.out == ""
        assert snapshot(ws) == before
        assert not Path("workspace").exists()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bad_input(case: Case, onebase, base: str, desk: Path) -> None:
    (desk / "tasks.yaml").write_text(f"jobs: [{JOB}]", encoding="utf-8")
    for name, content in case.files.items():
        (desk / name).parent.mkdir(exist_ok=True)
        (desk / name).write_bytes(content.encode() if isinstance(content, str) else content)
    arguments = tuple(base if item == "{base}" else item for item in case.arguments)
    check(onebase, arguments, case.code, *case.words, forms=case.forms)
    assert not (desk / "ws").exists()


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "--task", "suport", "--prompt", "Hi"),
        ("classify", "--task", "suport", "--text", "Hi"),
        ("chat", "--task", "suport"),
        ("generate", "--file", "r.jsonl"),
    ],
    ids=" ".join,
)
def test_unknown_task_names_the_valid_ones(onebase, desk: Path, arguments: tuple[str, ...]) -> None:
    (desk / "r.jsonl").write_text('{"task": "suport", "input": "a"}\n', encoding="utf-8")
    valid = "Valid: base, mood, support."
    check(onebase, arguments, USAGE, "'suport'", "Did you mean 'support'?", valid)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("verb", ["show", "promote", "rollback", "remove"])
def test_adapters_of_an_unknown_task(onebase, verb: str) -> None:
    name = "suport@1" if verb == "promote" else "suport"
    check(onebase, ("adapters", verb, name), USAGE, "'suport'", "Valid: mood, support.")


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("adapters", "show", "support@7"), ("'support@7'", "support@1, support@2")),
        (("generate", "--task", "support@x", "--prompt", "a"), ("support@1, support@2",)),
        (
            ("adapters", "promote", "support"),
            ("names a task but no version", "support@1, support@2"),
        ),
        (("adapters", "rollback", "mood"), ("'mood'", "mood@1")),
        (("adapters", "remove", "base"), ("'base'",)),
        (("classify", "--task", "support", "--text", "a"), ("'support' has no labels",)),
        (("classify", "--task", "mood", "--text", " "), ("empty",)),
        (("runs", "show", ""), ("Valid: ",)),
    ],
    ids=" ".join,
)
def test_wrong_version_or_use(onebase, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    check(onebase, arguments, USAGE, *words)


def truncate(adapter: Path) -> str:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return str(file)


def change_a_weight(adapter: Path) -> str:
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    return str(file)


def delete_weights(adapter: Path) -> str:
    (adapter / "adapter_model.safetensors").unlink()
    return str(adapter / "adapter_model.safetensors")


def break_config(adapter: Path) -> str:
    (adapter / "adapter_config.json").write_text('{"peft_type": "LO', encoding="utf-8")
    return str(adapter / "adapter_config.json")


def break_record(adapter: Path) -> str:
    (adapter / "onebase.json").write_text("[]", encoding="utf-8")
    return str(adapter / "onebase.json")


DAMAGES = (truncate, change_a_weight, delete_weights, break_config, break_record)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("damage", DAMAGES)
def test_corrupt_adapter(onebase, damage: Callable[[Path], str]) -> None:
    file = damage(Path("ws/adapters/support/2"))
    remedy = "onebase adapters remove support@2"
    ask = ("--task", "support", "--prompt", "Hi")
    check(onebase, ("generate", *ask), FAILED, file, remedy)
    check(onebase, ("adapters", "show", "support"), FAILED, file, remedy)
    check(onebase, ("chat", "--task", "support"), FAILED, file, remedy)
    check(onebase, ("classify", "--task", "support", "--text", "Hi"), FAILED, file, remedy)
    # The other version and the other task still answer.
    for task in ("support@1", "mood"):
        assert onebase("generate", "--task", task, "--prompt", "a", "--max-tokens", "2").code == 0


@pytest.mark.parametrize("damage", [truncate, delete_weights, break_config])
def test_import_of_a_damaged_folder(
    onebase, base: str, trained: Path, damage: Callable[[Path], str]
) -> None:
    shutil.copytree(trained / "adapters/support/1", "taken")
    file = damage(Path("taken"))
    check(onebase, ("adapters", "import", "taken", "--task", "new", "--base", base), FAILED, file)


@pytest.mark.usefixtures("trained")
def test_import_under_a_name_that_no_task_can_have(onebase, base: str) -> None:
    arguments = ("adapters", "import", "ws/adapters/support/1", "--base", base, "--task")
    check(onebase, (*arguments, "base"), USAGE, "'base'")
    check(onebase, (*arguments, "a/b"), USAGE, "'a/b'")

"""Printed commands and options run as they are, and do what the message says."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

GOOD = [{"input": f"q{n}", "output": f"a {n}"} for n in range(10)]
JUDGED = [{"prompt": f"q{n}", "completion": f"a {n}", "label": n % 2 == 0} for n in range(10)]
RATED = [{"prompt": f"q{n}", "completion": f"a {n}", "rating": n} for n in range(10)]
PAIRS = [{"prompt": f"q{n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(10)]
BAD = {"input": "q", "output": None}
TRAIN = ("train", "--task", "new", "--method", "lora", "--set", "epochs=1", "--data")
DPO = ("align", "dpo", "--task", "new", "--method", "lora", "--set", "epochs=1", "--data")
FILE = "my rows' file.jsonl"


@pytest.fixture(autouse=True)
def _default_base(base: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny base in place of the default one: no printed command names another."""
    cache = desk / "cache"
    shutil.copytree(base, cache / "models" / "smollm2-135m")
    monkeypatch.setenv("ONEBASE_CACHE", str(cache))


def write(rows: list[dict[str, Any]], name: str = FILE) -> str:
    Path(name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return name


def quoted(text: str) -> list[list[str]]:
    """The parts of a message between backticks, as a shell splits them."""
    return [shlex.split(item) for item in re.findall(r"`([^`]*)`", text)]


def command_in(text: str, start: str) -> list[str]:
    """The arguments of the first printed command that begins with `start`."""
    commands = [words for words in quoted(text) if words[:1] == ["onebase"]]
    commands += [shlex.split(item) for item in re.findall(r"onebase [^`\n;]*", text)]
    return next(words[1:] for words in commands if " ".join(words[1:]).startswith(start))


@pytest.mark.parametrize(
    ("command", "rows", "start"),
    [
        (TRAIN, [*GOOD, BAD], "data check"),
        (TRAIN, [BAD] * 3, "data check"),
        (DPO, [{"prompt": "q", "chosen": "a", "rejected": "a"}] * 3, "data check --as preferences"),
    ],
)
def test_bad_rows_are_shown_by_the_command_that_is_printed(
    onebase, command: tuple[str, ...], rows: list[dict[str, Any]], start: str
) -> None:
    refused = onebase(*command, write(rows))
    assert refused.code == 3
    shown = onebase(*command_in(refused.err, start), "--json")
    assert shown.code == 3
    assert shown.json["bad"]


@pytest.mark.parametrize(
    ("command", "rows"), [(TRAIN, [*GOOD, BAD]), (DPO, [*PAIRS, {"prompt": "q", "chosen": "a"}])]
)
def test_bad_rows_are_left_out_by_the_option_that_is_printed(
    onebase, command: tuple[str, ...], rows: list[dict[str, Any]]
) -> None:
    refused = onebase(*command, write(rows))
    (option,) = set(re.findall(r"--skip-\w+", refused.err))
    assert onebase(*command, FILE, option).code == 0


@pytest.mark.parametrize(
    ("rows", "command"), [(JUDGED, "align kto"), (RATED, "align reward"), (PAIRS, "align dpo")]
)
@pytest.mark.parametrize("known", [True, False])
def test_judged_answers_are_learned_by_the_command_that_is_printed(
    onebase, request: pytest.FixtureRequest, rows: Any, command: str, known: bool
) -> None:
    if known:
        request.getfixturevalue("trained")
    task = "support" if known else "new"
    refused = onebase("train", "--task", task, "--data", write(rows))
    assert refused.code == 3
    words = [task if word == "TASK" else word for word in command_in(refused.err, command)]
    learned = onebase(*words, "--set", "epochs=1")
    assert learned.code == 0, learned.err


@pytest.mark.parametrize(
    "rows",
    [
        JUDGED,
        RATED,
        PAIRS,
        [{"MR, as given": f"q{n}", "it's": "a"} for n in range(9)],
        [{"x": f"q{n}", "y": "a"} for n in range(9)],
    ],
)
def test_answers_are_learned_by_the_columns_that_are_printed(onebase, rows: Any) -> None:
    refused = onebase(*TRAIN, write(rows))
    assert refused.code == 3
    (option,) = [words for words in quoted(refused.err) if words[:1] == ["--columns"]]
    assert onebase(*TRAIN, FILE, *option).code == 0


def test_the_command_that_a_training_suggests(onebase) -> None:
    suggested = command_in(onebase(*TRAIN, write(GOOD)).out, "generate")
    words = ["Hi" if word == "…" else word for word in suggested]
    assert onebase(*words, "--max-tokens", "1").code == 0


def test_the_commands_that_alignments_suggest(onebase) -> None:
    trained = onebase("align", "reward", *DPO[2:], write(PAIRS))
    assert trained.code == 0, trained.err
    words = {"T": "policy", "F": write([{"prompt": f"q{n}"} for n in range(4)], "asked.jsonl")}
    suggested = [words.get(word, word) for word in command_in(trained.out, "align ppo")]
    settings = ("steps=1", "prompts=2", "samples=1", "max_tokens=4", "minibatch=2")
    aligned = onebase(*suggested, *(word for item in settings for word in ("--set", item)))
    assert aligned.code == 0, aligned.err
    assert onebase(*command_in(aligned.out, "runs show")).code == 0


@pytest.mark.usefixtures("trained")
def test_a_damaged_version_is_removed_by_the_command_that_is_printed(onebase) -> None:
    Path("ws/adapters/support/2/adapter_model.safetensors").write_bytes(b"no")
    refused = onebase("generate", "--task", "support", "--prompt", "Hi")
    assert refused.code == 1
    assert onebase(*command_in(refused.err, "adapters remove")).code == 0
    assert onebase("adapters", "show", "support").code == 0


@pytest.mark.usefixtures("trained")
def test_a_copied_version_is_imported_by_the_commands_that_are_printed(onebase) -> None:
    shutil.copytree("ws/adapters/mood/1", "ws/adapters/mood/7")
    Path("ws/adapters/mood/7/onebase.json").unlink()
    refused = onebase("generate", "--task", "mood@7", "--prompt", "Hi")
    assert refused.code == 1
    imported = onebase(*command_in(refused.err, "adapters import"))
    assert imported.code == 0, imported.err
    assert onebase(*command_in(refused.err, "adapters remove")).code == 0
    assert onebase("generate", "--task", "mood", "--prompt", "Hi", "--max-tokens", "1").code == 0


@pytest.mark.usefixtures("trained")
def test_a_version_is_made_current_by_the_command_that_is_printed(onebase) -> None:
    Path("ws/adapters/support/current").unlink()
    refused = onebase("generate", "--task", "support", "--prompt", "Hi")
    assert refused.code in (1, 2)
    (command,) = [words[1:] for words in quoted(refused.err) if words[0] == "onebase"]
    assert onebase(*command, "support@1").code == 0
    assert onebase("adapters", "show", "support").code == 0


@pytest.mark.parametrize("scope", [[], ["--scope", "admin"]])
def test_a_key_is_created_by_the_command_that_is_printed(onebase, scope: list[str]) -> None:
    refused = onebase("serve", "--host", "0.0.0.0", "--port", "0")
    assert refused.code == 2
    assert onebase(*command_in(refused.err, "keys new"), *scope).code == 0


def test_an_example_of_an_option_works(onebase, trained: Path) -> None:
    refused = onebase("generate")
    example = re.search(r"For example (.*)\.", refused.err)
    assert example
    assert onebase("generate", *shlex.split(example[1]), "--max-tokens", "1").code == 0


@pytest.mark.parametrize(
    ("command", "start"),
    [
        (("serve", "--host", "0.0.0.0", "--port", "0"), "keys new"),
        (("keys", "list"), "keys new"),
        (("keys", "revoke", "x"), "keys new"),
        (("adapters", "list"), "train"),
        (("data", "check", FILE), "train"),
        (("methods", "lora"), "train"),
        (("doctor",), "demo"),
    ],
)
def test_a_printed_command_names_a_workspace_other_than_the_default(
    onebase, command: tuple[str, ...], start: str
) -> None:
    write(GOOD)
    result = onebase(*command, "--workspace", "my desk")
    words = command_in(result.out + result.err, start)
    assert words[words.index("--workspace") + 1].rstrip(",") == "my desk"
    result = onebase(*command)
    assert "--workspace" not in command_in(result.out + result.err, start)


def test_the_remedy_for_damaged_keys_names_the_workspace(onebase, desk: Path) -> None:
    (desk / "my desk").mkdir()
    (desk / "my desk" / "keys.json").write_text("damaged", encoding="utf-8")
    refused = onebase("keys", "list", "--workspace", "my desk")
    assert refused.code == 1
    Path("my desk/keys.json").unlink()
    assert onebase(*command_in(refused.err, "keys new")).code == 0
    assert Path("my desk/keys.json").exists()

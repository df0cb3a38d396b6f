"""The names of the package, the commands, and their imports."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import onebase
from onebase.cli.app import main
from onebase.cli.commands import ENTRIES

HEAVY = {"torch", "transformers", "numba", "optuna"}
COMPLETION = {
    "bash": ("complete_bash", {"COMP_WORDS": "onebase {words}", "COMP_CWORD": "{count}"}),
    "zsh": ("complete_zsh", {"_TYPER_COMPLETE_ARGS": "onebase {words}"}),
    "fish": (
        "complete_fish",
        {"_TYPER_COMPLETE_ARGS": "onebase {words}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    ),
}


def run_and_list_modules(arguments: list[str], environment: dict[str, str]) -> tuple[str, set[str]]:
    """The output of the command in a new process, and the modules that it imported."""
    code = (
        "import sys\n"
        "from onebase.cli.app import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LC_ALL": "C", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout, set(ran.stderr.split())


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--help",
        *("adapters list", "keys list", "model list", "runs list"),
        *("train --help", "align ppo --help", "serve --help", "generate --help", "doctor --help"),
    ],
)
def test_a_light_command_imports_no_heavy_module(arguments: str, tmp_path: Path) -> None:
    environment = {"ONEBASE_WORKSPACE": str(tmp_path)}
    _, modules = run_and_list_modules(arguments.split(), environment)
    assert not HEAVY & modules


@pytest.mark.parametrize("shell", COMPLETION)
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("al", {"align"}),
        ("adapters r", {"remove", "rollback"}),
        ("train --pre", {"--precision"}),
        ("align dpo --f", {"--from"}),
        ("race --s", {"--space", "--set", "--seed", "--skip-bad"}),
    ],
)
def test_a_shell_completes_commands_and_options(
    shell: str, words: str, completed: set[str]
) -> None:
    instruction, variables = COMPLETION[shell]
    values = {
        name: value.format(words=words, count=len(words.split()))
        for name, value in variables.items()
    }
    printed, modules = run_and_list_modules([], {"_ONEBASE_COMPLETE": instruction, **values})
    proposed = set(re.findall(r'^(?:_arguments .*\(\()?"?([\w-]+)', printed, re.MULTILINE))
    assert proposed == completed
    assert not HEAVY & modules


@pytest.mark.parametrize("shell", COMPLETION)
def test_every_command_is_completed(shell: str) -> None:
    instruction, variables = COMPLETION[shell]
    values = {name: value.format(words="", count=1) for name, value in variables.items()}
    printed, _ = run_and_list_modules([], {"_ONEBASE_COMPLETE": instruction, **values})
    assert all(re.search(rf"\b{name}\b", printed) for name in ENTRIES)


@pytest.mark.parametrize("shell", COMPLETION)
def test_a_shell_gets_a_script_that_asks_for_completions(shell: str) -> None:
    printed, modules = run_and_list_modules([], {"_ONEBASE_COMPLETE": f"source_{shell}"})
    assert f"_ONEBASE_COMPLETE={COMPLETION[shell][0]}" in printed
    assert not HEAVY & modules


@pytest.mark.parametrize("name", list(ENTRIES))
def test_every_command_exists(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"Usage: onebase {name} " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"  {name}  " in capsys.readouterr().out


def test_every_name_of_the_package_exists() -> None:
    for name in onebase.__all__:
        assert getattr(onebase, name).__name__ == name
    assert {*onebase.__all__} <= set(dir(onebase))
    with pytest.raises(AttributeError, match="nothing"):
        _ = onebase.nothing


def test_a_group_of_one_command_is_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    output = capsys.readouterr().out
    assert output.startswith("Usage: onebase data [OPTIONS] COMMAND")
    assert "\n  check " in output

"""What the package and the command line offer, and what they wait for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import onebase
from onebase.cli.app import main
from onebase.cli.commands import ENTRIES


@pytest.mark.parametrize(
    "arguments", ["--help", "adapters list", "keys list", "model list", "runs list"]
)
def test_a_light_command_waits_for_no_heavy_import(arguments: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from onebase.cli.app import main\n"
        "try:\n"
        f"    main({arguments.split()!r})\n"
        "except SystemExit as left:\n"
        "    assert left.code == 0\n"
        "print(sorted({'torch', 'transformers', 'numba'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "ONEBASE_WORKSPACE": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", list(ENTRIES))
def test_every_command_is_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert f"Usage: onebase {name} " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"  {name}  " in capsys.readouterr().out


def test_every_name_of_the_package_is_there() -> None:
    for name in onebase.__all__:
        assert getattr(onebase, name).__name__ == name
    assert {*onebase.__all__} <= set(dir(onebase))
    with pytest.raises(AttributeError, match="nothing"):
        _ = onebase.nothing


def test_a_group_of_one_command_is_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    told = capsys.readouterr().out
    assert told.startswith("Usage: onebase data [OPTIONS] COMMAND")
    assert "\n  check " in told

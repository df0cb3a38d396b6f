"""Standard output is kept for the result while code of the user's runs."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from onebase.cli.stdout import prints_to_stderr

WAYS: dict[str, Callable[[], object]] = {
    "print": lambda: print("said"),
    "the stream of the process": lambda: print("said", file=sys.__stdout__),
    "the descriptor": lambda: os.write(1, b"said\n"),
    "a process of its own": lambda: subprocess.run(["echo", "said"], check=True),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_what_the_users_code_prints_goes_to_stderr(
    way: str, capfd: pytest.CaptureFixture[str]
) -> None:
    print("before")
    with prints_to_stderr():
        WAYS[way]()
    print("after")
    out, err = capfd.readouterr()
    assert out == "before\nafter\n"
    assert "said" in err


@prints_to_stderr()
def failing() -> None:
    print("said")
    raise ZeroDivisionError


def test_stdout_comes_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        failing()
    os.write(1, b"after\n")
    assert capfd.readouterr() == ("after\n", "said\n")

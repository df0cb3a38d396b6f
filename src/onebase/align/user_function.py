"""A function of the user's that returns a number, such as a reward: found by its name, and called."""

import importlib
import importlib.util
import inspect
import math
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from onebase.errors import OnebaseError, UsageError
from onebase.language import say


def load_function(name: str, what: str, takes: str) -> Callable[..., Any]:
    """The function of `module:function` or `path/to/file.py:function`; a module is looked for in the
    current folder first.

    `what` it is to be (such as "reward") and what it `takes` stand in the messages. Raises UsageError
    where the module or the function is not there, can't be imported, or is not a function.
    """
    source, _, attribute = name.rpartition(":")
    try:
        module = _module(source)
    except (Exception, SystemExit) as error:
        if _is_missing(error, source):
            raise UsageError(
                say(
                    f"The {what} {name} was not found: {error}.",
                    f"找不到{what} {name}：{error}。",
                ),
                say(
                    "Write module:function, where the module is a Python file in this folder, without "
                    ".py; or path/to/file.py:function.",
                    "请写成 模块:函数，模块为当前目录中的 Python 文件，不带 .py；"
                    "或写成 path/to/file.py:函数。",
                ),
            ) from error
        raise UsageError(
            say(
                f"The module of the {what} {name} can't be imported: {cause(error)}.",
                f"无法导入{what} {name} 的模块：{cause(error)}。",
            ),
            say(
                "Correct it, or install what it imports, and give the same command again.",
                "请修正该模块或安装其所需的包，然后再次运行同一命令。",
            ),
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        functions = ", ".join(sorted(_functions(module))) or say("none", "无")
        raise UsageError(
            say(
                f"The {what} {name} was not found: {source} has no function {attribute!r}.",
                f"找不到{what} {name}：{source} 中没有函数 {attribute!r}。",
            ),
            say(f"Its functions: {functions}.", f"其中的函数：{functions}。"),
        )
    if not callable(found):
        raise UsageError(
            say(f"{name} is not a function.", f"{name} 不是函数。"),
            say(f"It takes {takes}, and returns a number.", f"它接受{takes}，返回一个数值。"),
        )
    function: Callable[..., Any] = found
    return function


def call_function(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    name: str,
    where: str,
    answer: str,
    error: type[OnebaseError],
) -> float:
    """The finite number that a function returns for the answer of the row at `where`.

    Raises `error`, with the `name` of the function, the row and the answer, where the function fails or
    returns something else.
    """
    quoted = repr(answer[:200])
    try:
        value = function(*arguments)
    except (Exception, SystemExit) as failure:  # sys.exit() would end the run without a word
        raise error(
            say(
                f"The {name} failed on {where}: {cause(failure)}. The answer was {quoted}.",
                f"{name} 在 {where} 处出错：{cause(failure)}。当时的回答为 {quoted}。",
            ),
            say(
                "Correct it and give the same command again: the run continues.",
                "请修正后再次运行同一命令，运行将继续。",
            ),
        ) from failure
    number = _number(value)
    if not math.isfinite(number):
        shown = repr(value)[:100]
        raise error(
            say(
                f"The {name} returned {shown} on {where}, for {quoted}.",
                f"{name} 在 {where} 处返回 {shown}，回答为 {quoted}。",
            ),
            say(
                "Return a finite number and give the same command again: the run continues.",
                "请让它返回有限的数值，然后再次运行同一命令，运行将继续。",
            ),
        )
    return number


def cause(error: BaseException) -> str:
    """What went wrong in the user's code, and where."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = _own_frames(error)
    if not frames or isinstance(error, SyntaxError):  # which names its file and line itself
        return text
    file, line = Path(frames[-1].filename).name, frames[-1].lineno
    return say(f"{text} ({file}, line {line})", f"{text}（{file} 第 {line} 行）")


def _module(source: str) -> ModuleType:
    """The module with that name, or of the file at that path."""
    if not source.endswith(".py"):
        _search_first(Path.cwd())
        return importlib.import_module(source)
    file = Path(source).expanduser().resolve()
    if not file.is_file():
        raise ModuleNotFoundError(say(f"no file {source}", f"没有文件 {source}"), name=source)
    # Under its stem it could be taken for another module with that name.
    specification = importlib.util.spec_from_file_location(str(file), file)
    assert specification is not None, file
    assert specification.loader is not None, file
    module = importlib.util.module_from_spec(specification)
    sys.modules[str(file)] = module  # dataclasses look their module up
    _search_first(file.parent)
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[str(file)]
        raise
    return module


def _search_first(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _functions(module: ModuleType) -> list[str]:
    """The public functions that a module defines."""
    return [
        name
        for name, member in inspect.getmembers(module, inspect.isfunction)
        if member.__module__ == module.__name__ and not name.startswith("_")
    ]


def _is_missing(error: BaseException, source: str) -> bool:
    """Whether a module is not there; else what it holds fails."""
    if isinstance(error, ModuleNotFoundError):
        return error.name is None or source == error.name or source.startswith(f"{error.name}.")
    # No name of a module.
    return isinstance(error, ValueError | TypeError) and not _own_frames(error)


def _own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """An error's frames in the user's code: outside this file, libraries and the import system."""
    elsewhere = ("<frozen", sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
    frames = traceback.extract_tb(error.__traceback__)
    return [
        frame
        for frame in frames
        if frame.filename != __file__ and not frame.filename.startswith(elsewhere)
    ]


def _number(value: object) -> float:
    """A value as a float; NaN if it is not a number."""
    try:
        return float(value)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - whatever __float__ of the user's object raises
        return math.nan
